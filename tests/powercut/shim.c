// A disk whose power can be cut, for LD_PRELOAD: it keeps, beside a program's data directory, what that directory would
// hold had the power gone at this moment, under the strictest reading of what POSIX promises:
//
// - a file's content is what it was at its last fsync or fdatasync that returned;
// - a name is where it was at the last fsync of its directory; only a new file's first name is kept by fsync of the file
//   itself, as every Linux file system in use does.
//
// BERTH_POWERCUT_DATA     the data directory (absolute)
// BERTH_POWERCUT_DURABLE  where to keep it: c/<key> is the content of the file with that identity (inode and birth time),
//                         log is the sequence of names: "F path key", or "L path n" followed by n lines "f name key" or
//                         "d name -": a directory's whole listing. powercut.rs reads it.
// BERTH_POWERCUT_LIE      once this file exists, fsync and fdatasync answer 0 and do nothing: the disk lies.
//
// What exists when the program starts counts as durable. Only the ranges written since are copied, so a preallocated
// journal costs what was appended to it. Writes through mmap, sendfile or copy_file_range to a file that was synced
// before would be missed; none of the programs under test does that.
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { FDS = 65536, FILES = 1 << 16, KEY = 64 };
enum { UNKNOWN, OUTSIDE, TRACKED };

struct file {
    char key[KEY];
    off_t lo, hi;            // written since the last sync; lo == hi: nothing
    int whole;               // copy everything at the next sync
    char named[PATH_MAX];    // the name last logged
};

static char data[PATH_MAX], durable[PATH_MAX], lie[PATH_MAX];
// `lock` guards the tables; `syncing` lets one sync at a time go from taking its range to having copied it, or a second one of
// the same file could find nothing to do and return before the first one's copy is there.
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER, syncing = PTHREAD_MUTEX_INITIALIZER;
static unsigned char state[FDS];
static struct file *file_of[FDS];
static struct file *files[FILES];
static int log_fd = -1, active;

#define REAL(name) ({ static __typeof__(&name) real; if (!real) real = dlsym(RTLD_NEXT, #name); real; })

static void die(const char *what, const char *which) {
    // The test must not go on with half a truth.
    dprintf(2, "powercut shim: %s %s: %s\n", what, which, strerror(errno));
    _exit(99);
}

static void put(int fd, const char *bytes, size_t n, off_t at) {
    while (n > 0) {
        ssize_t done = at < 0 ? REAL(write)(fd, bytes, n) : REAL(pwrite64)(fd, bytes, n, at);
        if (done <= 0) die("writing", "a durable copy");
        bytes += done, n -= done;
        if (at >= 0) at += done;
    }
}

static void key_of(int fd, const char *path, char *key) {
    struct statx x;
    if (statx(fd, path, AT_SYMLINK_NOFOLLOW | (path[0] ? 0 : AT_EMPTY_PATH), STATX_INO | STATX_BTIME, &x)) {
        key[0] = 0;
        return;
    }
    snprintf(key, KEY, "%llu-%lld-%u", (unsigned long long)x.stx_ino, (long long)x.stx_btime.tv_sec, x.stx_btime.tv_nsec);
}

static struct file *find(const char *key) {
    unsigned long hash = 5381;
    for (const char *c = key; *c; c++) hash = hash * 33 + (unsigned char)*c;
    for (unsigned i = 0; i < FILES; i++) {
        struct file **slot = &files[(hash + i) % FILES];
        if (!*slot) {
            *slot = calloc(1, sizeof **slot);
            strcpy((*slot)->key, key);
            (*slot)->whole = 1;
            return *slot;
        }
        if (!strcmp((*slot)->key, key)) return *slot;
    }
    die("tracking", "too many files");
    return NULL;
}

// The path of fd below the data directory, or 0.
static int below(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, PATH_MAX - 1);
    if (n <= 0) return 0;
    path[n] = 0;
    size_t root = strlen(data);
    return !strncmp(path, data, root) && (path[root] == '/' || !path[root]);
}

static const char *relative(const char *path) {
    const char *rest = path + strlen(data);
    return *rest == '/' ? rest + 1 : rest;
}

// Called with the lock held.
static struct file *tracked(int fd) {
    if (fd < 0 || fd >= FDS || !active) return NULL;
    if (state[fd] == UNKNOWN) {
        char path[PATH_MAX], key[KEY];
        struct stat s;
        state[fd] = OUTSIDE;
        if (!fstat(fd, &s) && S_ISREG(s.st_mode) && below(fd, path)) {
            key_of(fd, "", key);
            file_of[fd] = find(key);
            state[fd] = TRACKED;
        }
    }
    return state[fd] == TRACKED ? file_of[fd] : NULL;
}

static void dirty(int fd, off_t at, ssize_t n) {
    if (n <= 0) return;
    int saved = errno;
    pthread_mutex_lock(&lock);
    struct file *file = tracked(fd);
    if (file) {
        if (at < 0) at = lseek(fd, 0, SEEK_CUR) - n; // after the write, append or not
        if (file->lo == file->hi) file->lo = at, file->hi = at + n;
        if (at < file->lo) file->lo = at;
        if (at + n > file->hi) file->hi = at + n;
    }
    pthread_mutex_unlock(&lock);
    errno = saved;
}

static void copy_range(int from, int to, off_t lo, off_t hi) {
    static __thread char buffer[1 << 16];
    while (lo < hi) {
        size_t want = hi - lo < (off_t)sizeof buffer ? (size_t)(hi - lo) : sizeof buffer;
        ssize_t got = pread(from, buffer, want, lo);
        if (got <= 0) return; // truncated meanwhile
        put(to, buffer, got, lo);
        lo += got;
    }
}

// Copies what changed of an open file into c/<key>. Holes stay holes.
static void keep(struct file *file, const char *real_path, off_t lo, off_t hi, int whole) {
    char path[PATH_MAX + KEY + 8], fresh[PATH_MAX + KEY + 16];
    struct stat s;
    int from = open(real_path, O_RDONLY | O_CLOEXEC);
    if (from < 0 || fstat(from, &s)) return; // unlinked meanwhile: nothing names it
    snprintf(path, sizeof path, "%s/c/%s", durable, file->key);
    snprintf(fresh, sizeof fresh, "%s.new", path);
    int to = open(whole ? fresh : path, O_WRONLY | O_CREAT | O_CLOEXEC | (whole ? O_TRUNC : 0), 0600);
    if (to < 0) die("opening", path);
    if (REAL(ftruncate)(to, s.st_size)) die("sizing", path);
    if (whole) {
        for (off_t at = 0; (at = lseek(from, at, SEEK_DATA)) >= 0 && at < s.st_size;) {
            off_t end = lseek(from, at, SEEK_HOLE);
            copy_range(from, to, at, end);
            at = end;
        }
        if (rename(fresh, path)) die("renaming", fresh);
    } else {
        copy_range(from, to, lo, hi < s.st_size ? hi : s.st_size);
    }
    REAL(close)(from);
    REAL(close)(to);
}

static void log_listing(const char *path) {
    size_t room = 1 << 20, used = 0;
    char *text = malloc(room), key[KEY];
    int count = 0;
    DIR *dir = opendir(path);
    if (!dir) { free(text); return; }
    for (struct dirent *entry; (entry = readdir(dir));) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        struct stat s;
        if (fstatat(dirfd(dir), entry->d_name, &s, AT_SYMLINK_NOFOLLOW)) continue;
        key_of(dirfd(dir), entry->d_name, key);
        if (used + PATH_MAX > room) text = realloc(text, room *= 2);
        used += sprintf(text + used, "%c\t%s\t%s\n", S_ISDIR(s.st_mode) ? 'd' : 'f', entry->d_name, S_ISDIR(s.st_mode) ? "-" : key);
        count++;
    }
    closedir(dir);
    char head[PATH_MAX + 32];
    int n = snprintf(head, sizeof head, "L\t%s\t%d\n", relative(path), count);
    put(log_fd, head, n, -1);
    put(log_fd, text, used, -1);
    free(text);
}

static void log_name(struct file *file, const char *path) {
    char line[PATH_MAX + KEY + 8];
    if (!strcmp(file->named, relative(path)) || strstr(path, " (deleted)")) return;
    snprintf(file->named, sizeof file->named, "%s", relative(path));
    put(log_fd, line, snprintf(line, sizeof line, "F\t%s\t%s\n", file->named, file->key), -1);
}

static int synced(int fd, int (*sync)(int)) {
    char path[PATH_MAX];
    struct stat s;
    if (!active || fstat(fd, &s) || !below(fd, path)) return sync(fd);
    if (lie[0] && !access(lie, F_OK)) return 0;
    pthread_mutex_lock(&syncing);
    pthread_mutex_lock(&lock);
    struct file *file = S_ISREG(s.st_mode) ? tracked(fd) : NULL;
    off_t lo = 0, hi = 0;
    int whole = 0;
    if (file) { // taken before the sync: what is written during it stays dirty
        lo = file->lo, hi = file->hi, whole = file->whole;
        file->lo = file->hi = file->whole = 0;
    }
    pthread_mutex_unlock(&lock);
    int result = sync(fd);
    if (result) {
        // As on Linux, what failed to be written counts as clean from now on: a later success says nothing about it.
        pthread_mutex_unlock(&syncing);
        return result;
    }
    if (file) {
        char link[64];
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        keep(file, link, lo, hi, whole);
        log_name(file, path);
    } else if (S_ISDIR(s.st_mode)) {
        log_listing(path);
    }
    pthread_mutex_unlock(&syncing);
    return 0;
}

int fsync(int fd) { return synced(fd, REAL(fsync)); }
int fdatasync(int fd) { return synced(fd, REAL(fdatasync)); }

ssize_t write(int fd, const void *bytes, size_t n) {
    ssize_t done = REAL(write)(fd, bytes, n);
    if (active) dirty(fd, -1, done);
    return done;
}
ssize_t writev(int fd, const struct iovec *parts, int n) {
    ssize_t done = REAL(writev)(fd, parts, n);
    if (active) dirty(fd, -1, done);
    return done;
}
ssize_t pwrite(int fd, const void *bytes, size_t n, off_t at) {
    ssize_t done = REAL(pwrite)(fd, bytes, n, at);
    if (active) dirty(fd, at, done);
    return done;
}
ssize_t pwrite64(int fd, const void *bytes, size_t n, off64_t at) {
    ssize_t done = REAL(pwrite64)(fd, bytes, n, at);
    if (active) dirty(fd, at, done);
    return done;
}
static void resized(int fd) {
    int saved = errno;
    pthread_mutex_lock(&lock);
    struct file *file = tracked(fd);
    if (file) file->whole = 1;
    pthread_mutex_unlock(&lock);
    errno = saved;
}
int ftruncate(int fd, off_t size) {
    int result = REAL(ftruncate)(fd, size);
    if (active && !result) resized(fd);
    return result;
}
int ftruncate64(int fd, off64_t size) {
    int result = REAL(ftruncate64)(fd, size);
    if (active && !result) resized(fd);
    return result;
}
int close(int fd) {
    if (active && fd >= 0 && fd < FDS) {
        pthread_mutex_lock(&lock);
        state[fd] = UNKNOWN;
        pthread_mutex_unlock(&lock);
    }
    return REAL(close)(fd);
}

// What is there at the start is durable.
static void adopt(const char *path) {
    DIR *dir = opendir(path);
    if (!dir) die("opening", path);
    for (struct dirent *entry; (entry = readdir(dir));) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        char inner[PATH_MAX], key[KEY];
        struct stat s;
        if (snprintf(inner, sizeof inner, "%s/%s", path, entry->d_name) >= PATH_MAX || lstat(inner, &s)) continue;
        if (S_ISDIR(s.st_mode)) { adopt(inner); continue; }
        key_of(AT_FDCWD, inner, key);
        struct file *file = find(key);
        keep(file, inner, 0, 0, 1);
        file->whole = 0;
        snprintf(file->named, sizeof file->named, "%s", relative(inner));
    }
    closedir(dir);
    log_listing(path);
}

__attribute__((constructor)) static void start(void) {
    const char *where = getenv("BERTH_POWERCUT_DATA"), *copy = getenv("BERTH_POWERCUT_DURABLE");
    if (!where || !copy) return;
    snprintf(data, sizeof data, "%s", where);
    snprintf(durable, sizeof durable, "%s", copy);
    if (getenv("BERTH_POWERCUT_LIE")) snprintf(lie, sizeof lie, "%s", getenv("BERTH_POWERCUT_LIE"));
    char path[PATH_MAX + 8];
    snprintf(path, sizeof path, "%s/c", durable);
    mkdir(path, 0700);
    snprintf(path, sizeof path, "%s/log", durable);
    log_fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (log_fd < 0) die("opening", path);
    adopt(data);
    active = 1;
}
