//! A disk whose power can be cut: `powercut/shim.c` keeps beside a data dir what is durable of it; this puts that in its place.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use anyhow::{Context, ensure};

use crate::root;

/// The disk of one run of a server.
pub struct Disk {
    data: PathBuf,
    durable: PathBuf,
    shim: PathBuf,
}

impl Disk {
    /// Keeps what is durable of `data` in a new folder under `folder`. What is there now counts as durable.
    ///
    /// # Errors
    /// When the shim cannot be built (it needs gcc).
    pub fn under(folder: &Path, data: &Path) -> anyhow::Result<Self> {
        let durable = folder.join(format!("durable-{}", crate::fresh("run")));
        fs::create_dir_all(&durable)?;
        Ok(Self { data: data.canonicalize()?, durable: durable.canonicalize()?, shim: shim()? })
    }

    /// What the server's environment needs.
    #[must_use]
    pub fn env(&self) -> [(&'static str, OsString); 4] {
        [
            ("LD_PRELOAD", self.shim.clone().into()),
            ("BERTH_POWERCUT_DATA", self.data.clone().into()),
            ("BERTH_POWERCUT_DURABLE", self.durable.clone().into()),
            ("BERTH_POWERCUT_LIE", self.durable.join("lie").into()),
        ]
    }

    /// From now on fsync does nothing and says 0.
    ///
    /// # Errors
    /// Only the file system's.
    pub fn lie(&self) -> anyhow::Result<()> {
        Ok(fs::write(self.durable.join("lie"), "")?)
    }

    /// Replaces `data` by what is durable of it. Its process must be dead.
    ///
    /// # Errors
    /// When what the shim wrote does not fit together.
    pub fn cut(&self, data: &Path) -> anyhow::Result<()> {
        let names = Names::read(&fs::read_to_string(self.durable.join("log"))?)?;
        fs::remove_dir_all(data)?;
        fs::create_dir_all(data)?;
        for folder in names.folders() {
            fs::create_dir_all(data.join(folder))?;
        }
        for (path, key) in &names.files {
            if let Some(folder) = path.parent() {
                fs::create_dir_all(data.join(folder))?;
            }
            let content = self.durable.join("c").join(key);
            if content.exists() {
                // cp keeps the holes of a preallocated journal.
                let copied =
                    Command::new("cp").arg("--sparse=always").arg(content).arg(data.join(path)).status()?;
                ensure!(copied.success(), "cp of {}: {copied}", path.display());
            } else {
                fs::write(data.join(path), "")?; // its name was synced, its content never
            }
        }
        Ok(())
    }
}

/// Which name is which file, as of the last sync that says so.
#[derive(Debug, Default, PartialEq, Eq)]
struct Names {
    files: BTreeMap<PathBuf, String>,
    folders: BTreeSet<PathBuf>,
}

impl Names {
    /// Replays the shim's log. A last record cut off by the kill did not happen.
    fn read(log: &str) -> anyhow::Result<Self> {
        let mut names = Self::default();
        let mut lines = log.split_inclusive('\n').filter(|line| line.ends_with('\n')).map(str::trim_end);
        while let Some(line) = lines.next() {
            let fields: Vec<&str> = line.split('\t').collect();
            match fields[..] {
                ["F", path, key] => {
                    names.files.insert(path.into(), key.to_owned());
                }
                ["L", path, count] => {
                    let count = count.parse().with_context(|| format!("the shim's log: {line}"))?;
                    let entries: Vec<&str> = lines.by_ref().take(count).collect();
                    if entries.len() == count {
                        names.list(Path::new(path), &entries)?;
                    }
                }
                _ => anyhow::bail!("the shim's log: {line}"),
            }
        }
        Ok(names)
    }

    /// A directory is exactly this now.
    fn list(&mut self, folder: &Path, entries: &[&str]) -> anyhow::Result<()> {
        let (mut files, mut folders) = (BTreeMap::new(), BTreeSet::new());
        for entry in entries {
            match entry.split('\t').collect::<Vec<_>>()[..] {
                ["f", name, key] => {
                    files.insert(folder.join(name), key.to_owned());
                }
                ["d", name, _] => {
                    folders.insert(folder.join(name));
                }
                _ => anyhow::bail!("the shim's log: {entry}"),
            }
        }
        let inside = |path: &Path| path.parent() == Some(folder);
        self.files.retain(|path, _| !inside(path));
        let gone: Vec<_> =
            self.folders.iter().filter(|f| inside(f) && !folders.contains(*f)).cloned().collect();
        for folder in gone {
            self.files.retain(|path, _| !path.starts_with(&folder));
            self.folders.retain(|path| !path.starts_with(&folder));
        }
        self.files.extend(files);
        self.folders.extend(folders);
        Ok(())
    }

    fn folders(&self) -> impl Iterator<Item = &Path> {
        self.folders.iter().map(PathBuf::as_path)
    }
}

/// Builds the shim once per process, into the target folder.
fn shim() -> anyhow::Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    BUILT.get_or_init(|| build().map_err(|error| format!("{error:#}"))).clone().map_err(anyhow::Error::msg)
}

fn build() -> anyhow::Result<PathBuf> {
    let exe = std::env::current_exe()?;
    // Beside the test, under a name of this process's: several test binaries may build it at once.
    let path = exe.with_file_name(format!("berth-powercut-{}.so", std::process::id()));
    let source = root().join("tests/powercut/shim.c");
    let flags = ["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o"];
    let built = Command::new("gcc").args(flags).arg(&path).arg(source).args(["-ldl", "-lpthread"]).output();
    let built = built.context("gcc is needed for the power cut tests")?;
    ensure!(built.status.success(), "gcc: {}", String::from_utf8_lossy(&built.stderr));
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a Python program on the disk and returns what a power cut at its end leaves.
    fn after_power_cut(program: &str) -> BTreeMap<String, String> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let data = folder.path().join("data");
        fs::create_dir(&data).expect("creates");
        fs::write(data.join("before"), "old").expect("writes");
        let disk = Disk::under(folder.path(), &data).expect("builds the shim");
        let help =
            "import os\ndef sync(path):\n  fd = os.open(path, os.O_RDONLY)\n  os.fsync(fd)\n  os.close(fd)\n";
        let mut python = Command::new("python3");
        python.args(["-c", &format!("{help}{program}")]).current_dir(&data).envs(disk.env());
        let ended = python.output().expect("python3 is there");
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
        disk.cut(&data).expect("cuts");
        let entries = fs::read_dir(&data).expect("lists").map(|entry| entry.expect("an entry").path());
        let read = |path: PathBuf| {
            let name = path.file_name().expect("has a name").to_string_lossy().into_owned();
            (name, fs::read_to_string(path).unwrap_or_else(|_| "(folder)".to_owned()))
        };
        entries.map(read).collect()
    }

    fn content(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
    }

    #[test]
    fn what_was_never_synced_is_gone() {
        let left = after_power_cut("open('new', 'w').write('x')\nopen('before', 'a').write('+')");
        assert_eq!(left, content(&[("before", "old")]));
    }

    #[test]
    fn a_synced_file_keeps_what_it_had_then() {
        let program = "f = open('j', 'wb', buffering=0)\nos.ftruncate(f.fileno(), 1000)\nf.write(b'ab')\n\
            os.fdatasync(f.fileno())\nos.pwrite(f.fileno(), b'B', 1)\nf.write(b'c')\nos.fdatasync(f.fileno())\n\
            os.ftruncate(f.fileno(), 3)\nos.fsync(f.fileno())\nf.write(b'lost')";
        assert_eq!(after_power_cut(program), content(&[("before", "old"), ("j", "aBc")]));
    }

    #[test]
    fn a_rename_lasts_once_its_folder_is_synced() {
        let write =
            "f = open('t', 'w')\nf.write('new')\nf.flush()\nos.fsync(f.fileno())\nos.rename('t', 'before')\n";
        assert_eq!(after_power_cut(write), content(&[("before", "old"), ("t", "new")]));
        let left = after_power_cut(&format!("{write}sync('.')"));
        assert_eq!(left, content(&[("before", "new")]));
    }

    #[test]
    fn a_removal_lasts_once_its_folder_is_synced() {
        assert_eq!(after_power_cut("os.remove('before')"), content(&[("before", "old")]));
        assert_eq!(after_power_cut("os.remove('before')\nsync('.')"), content(&[]));
    }

    #[test]
    fn a_name_without_content_is_an_empty_file() {
        let left = after_power_cut("f = open('n', 'w')\nf.write('x')\nf.flush()\nos.mkdir('d')\nsync('.')");
        assert_eq!(left, content(&[("before", "old"), ("n", ""), ("d", "(folder)")]));
    }

    #[test]
    fn a_disk_that_lies_keeps_nothing_more() {
        let program = "open(os.environ['BERTH_POWERCUT_LIE'], 'w')\nf = open('before', 'a')\nf.write('+')\n\
            f.flush()\nos.fsync(f.fileno())";
        assert_eq!(after_power_cut(program), content(&[("before", "old")]));
    }

    #[test]
    fn half_a_record_did_not_happen() {
        let names = Names::read("F\ta\t1\nL\t\t2\nf\tb\t2\n").expect("reads");
        assert_eq!(names.files.keys().collect::<Vec<_>>(), [Path::new("a")]);
    }
}
