//! Ends and starts over the embedded databases.

use std::{fs, path::Path};

use berth_proto::metric::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{KEY, config, gateway::Gateway, until};
use crate::{Config, Logic, StoreChoice};

async fn start(directory: &Path, boot: &str, partitions: u16) -> Result<Logic, String> {
    let config = Config {
        os_boot_id: boot.to_owned(),
        partitions,
        ..config(StoreChoice::Embedded(directory.to_owned()))
    };
    Logic::start(config, Registry::new(&metrics::NoopRecorder)).await.map_err(|error| error.to_string())
}

/// What is on the disk and in the kernel now, as after kill -9.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("makes a directory");
    for entry in fs::read_dir(from).expect("reads a directory") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copies");
        }
    }
}

#[tokio::test]
async fn a_clean_end_keeps_everything_and_the_epoch() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut epochs = Vec::new();
    for (round, boot) in ["boot-1", "boot-2", ""].into_iter().enumerate() {
        let logic = start(directory.path(), boot, 16).await.expect("starts");
        let gateway = Gateway::attach(&logic, "g1", round as u64);
        let alice = gateway.open("alice", "d", 1).await;
        assert_eq!(alice.opened.inbox_epoch, 1, "nothing was lost");
        assert_eq!(alice.opened.inbox_seq, round as u64);
        epochs.push(alice.opened.session_epoch);
        alice.sent(&format!("c-{round}"), "bob", "x").await;
        alice.notified(round as u64 + 1).await;
        logic.stop().await;
    }
    assert!(epochs.is_sorted_by(|a, b| a < b), "session epochs grow over restarts: {epochs:?}");
    let logic = start(directory.path(), "boot-3", 4)
        .await
        .expect("drained by a clean end: another count may be chosen");
    let gateway = Gateway::attach(&logic, "g1", 9);
    let alice = gateway.open("alice", "d", 1).await;
    assert!(alice.sent("c-1", "bob", "x").await.duplicate, "names are remembered");
    assert_eq!(alice.messages().await.len(), 3);
    logic.stop().await;
}

#[tokio::test]
async fn nobody_outside_can_make_an_end_unclean() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let logic = start(directory.path(), "boot-1", 16).await.expect("starts");
    let mut slow = Vec::new();
    for half in ["", "POST /v1/messages HTTP/1.1\r\nHost: lo", &post("Content-Length: 10\r\n\r\n{")] {
        let mut stream = tokio::net::TcpStream::connect(logic.local_addr()).await.expect("connects");
        stream.write_all(half.as_bytes()).await.expect("writes");
        slow.push(stream);
    }
    // Answered: so the three before it are taken up too.
    let mut last = tokio::net::TcpStream::connect(logic.local_addr()).await.expect("connects");
    let whole = post("Connection: close\r\nContent-Length: 0\r\n\r\n");
    last.write_all(whole.as_bytes()).await.expect("writes");
    last.read_to_end(&mut Vec::new()).await.expect("reads");
    logic.stop().await;
    assert!(!directory.path().join("open").exists(), "a clean end, whatever half requests were there");
}

/// The head of a request as far as the service key, then `rest`.
fn post(rest: &str) -> String {
    format!("POST /v1/messages HTTP/1.1\r\nHost: logic\r\nAuthorization: Bearer {KEY}\r\n{rest}")
}

#[tokio::test]
async fn after_kill_nine_everything_acknowledged_is_there() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let logic = start(&directory.path().join("live"), "boot-1", 16).await.expect("starts");
    let gateway = Gateway::attach(&logic, "g1", 1);
    let alice = gateway.open("alice", "d", 1).await;
    for n in 0..100 {
        alice.sent(&format!("c-{n}"), "bob", "x").await;
    }
    for copied in ["same", "other", "refused"] {
        copy(&directory.path().join("live"), &directory.path().join(copied));
    }
    let busy = start(&directory.path().join("live"), "boot-1", 16).await.err().expect("locked");
    assert!(busy.contains("Locked"), "{busy}");
    logic.stop().await;
    for (copied, boot, inbox_epoch) in [("same", "boot-1", 1), ("other", "boot-2", 2)] {
        let logic = start(&directory.path().join(copied), boot, 16).await.expect("starts");
        let gateway = Gateway::attach(&logic, "g1", 2);
        for user in ["alice", "bob"] {
            let session = gateway.open(user, "d", 1).await;
            assert_eq!(session.opened.inbox_epoch, inbox_epoch, "{copied}");
            let messages = until("everything is there", async || {
                let messages = session.messages().await;
                (messages.len() >= 100).then_some(messages)
            })
            .await;
            let seqs: Vec<u64> = messages.iter().map(|message| message.conversation_seq).collect();
            assert_eq!(seqs, (1..=100).collect::<Vec<_>>());
        }
        logic.stop().await;
    }
}
