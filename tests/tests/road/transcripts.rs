//! The transcripts of docs/sdk-authors.md come true on a real server, over each transport.

use anyhow::{Context, ensure};
use berth_tests::{TestResult, raw::Transport, root, server::Server, transcript};

async fn replay_all(transport: Transport) -> TestResult {
    let text = std::fs::read_to_string(root().join("docs/sdk-authors.md"))?;
    let transcripts = transcript::read(&text)?;
    ensure!(transcripts.len() >= 10, "only {} transcripts", transcripts.len());
    let server = Server::shared().await?;
    for one in transcripts.iter().filter(|one| !one.tcp || transport == Transport::Tcp) {
        let what =
            || format!("the transcript at line {} of docs/sdk-authors.md, over {transport:?}", one.line);
        one.replay(&server.at, transport).await.with_context(what)?;
    }
    Ok(())
}

#[tokio::test]
async fn the_transcripts_come_true_over_websocket_with_json() -> TestResult {
    replay_all(Transport::WsJson).await
}

#[tokio::test]
async fn the_transcripts_come_true_over_websocket_with_protobuf() -> TestResult {
    replay_all(Transport::WsProto).await
}

#[tokio::test]
async fn the_transcripts_come_true_over_tcp() -> TestResult {
    replay_all(Transport::Tcp).await
}
