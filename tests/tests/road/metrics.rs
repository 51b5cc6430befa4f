//! The metrics: exactly those of docs/operating.md, each counter moves when what it counts happens, and Prometheus' own linter
//! finds nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    process::{Command, Stdio},
};

use anyhow::{Context, ensure};
use berth_proto::client::{
    AckRequest, ConversationsRequest, HistoryRequest, MarkReadRequest, PullRequest, Request,
    client_frame::Frame, request::Method,
};
use berth_tests::{
    TestResult,
    device::{Device, hello},
    fresh, http,
    metrics::Scrape,
    raw::{Raw, Transport},
    root,
    server::{Composition, Options, Role, Server},
    tokens::{self, ADMIN_KEY, SERVICE_KEY},
    wait,
};
use serde_json::json;

use crate::docs::document;

/// Counters and histograms, with labels, that [`cause`] must move.
const MOVED: [(&str, &[(&str, &str)]); 65] = [
    ("berth_scheduler_requests_total", &[("outcome", "ok")]),
    ("berth_scheduler_requests_total", &[("outcome", "invalid_argument")]),
    ("berth_scheduler_requests_total", &[("outcome", "unauthenticated")]),
    ("berth_scheduler_requests_total", &[("outcome", "forbidden")]),
    ("berth_scheduler_requests_total", &[("outcome", "not_found")]),
    ("berth_scheduler_requests_total", &[("outcome", "method_not_allowed")]),
    ("berth_scheduler_request_seconds_count", &[]),
    ("berth_scheduler_admin_requests_total", &[("outcome", "ok")]),
    ("berth_scheduler_admin_requests_total", &[("outcome", "unauthenticated")]),
    ("berth_scheduler_explains_total", &[("outcome", "ok")]),
    ("berth_scheduler_explains_total", &[("outcome", "unauthenticated")]),
    ("berth_scheduler_decisions_total", &[("pool", "stable"), ("reason", "DEFAULT")]),
    ("berth_scheduler_admissions_total", &[("outcome", "admitted")]),
    ("berth_scheduler_snapshot_seconds_count", &[]),
    ("berth_scheduler_reports_total", &[]),
    ("berth_scheduler_redirects_total", &[("outcome", "answered")]),
    ("berth_scheduler_pending_ended_total", &[("how", "used")]),
    ("berth_scheduler_policy_loads_total", &[("outcome", "broken")]),
    ("berth_scheduler_located_total", &[("by", "nothing")]),
    ("berth_gateway_connections_closed_total", &[("code", "4501")]),
    ("berth_gateway_connections_closed_total", &[("code", "4503")]),
    ("berth_gateway_connections_closed_total", &[("code", "4504")]),
    ("berth_gateway_connections_closed_total", &[("code", "http")]),
    ("berth_gateway_heartbeat_timeouts_total", &[]),
    ("berth_gateway_handshakes_total", &[("result", "accepted")]),
    ("berth_gateway_handshakes_total", &[("result", "upgraded")]),
    ("berth_gateway_handshakes_total", &[("result", "welcomed")]),
    ("berth_gateway_handshakes_total", &[("result", "refused")]),
    ("berth_gateway_handshakes_total", &[("result", "redirected")]),
    ("berth_gateway_handshakes_failed_total", &[("code", "4002")]),
    ("berth_gateway_handshakes_failed_total", &[("code", "4500")]),
    ("berth_gateway_handshake_seconds_count", &[]),
    ("berth_gateway_worker_turn_seconds_count", &[]),
    ("berth_gateway_frames_received_total", &[("kind", "heartbeat")]),
    ("berth_gateway_frames_received_total", &[("kind", "bad")]),
    ("berth_gateway_frames_sent_total", &[("kind", "notify")]),
    ("berth_gateway_frames_sent_total", &[("kind", "disconnect")]),
    ("berth_gateway_received_bytes_total", &[]),
    ("berth_gateway_sent_bytes_total", &[]),
    ("berth_gateway_requests_refused_total", &[("reason", "invalid")]),
    ("berth_gateway_requests_refused_total", &[("reason", "unimplemented")]),
    ("berth_gateway_request_seconds_count", &[("method", "send")]),
    ("berth_gateway_request_seconds_count", &[("method", "pull")]),
    ("berth_logic_messages_accepted_total", &[]),
    ("berth_logic_messages_duplicate_total", &[]),
    ("berth_logic_messages_committed_total", &[]),
    ("berth_logic_messages_delivered_total", &[]),
    ("berth_logic_queue_append_seconds_count", &[]),
    ("berth_logic_queue_sync_seconds_count", &[]),
    ("berth_logic_queue_batches_total", &[]),
    ("berth_logic_store_sync_seconds_count", &[]),
    ("berth_logic_groups_created_total", &[]),
    ("berth_logic_memberships_changed_total", &[("kind", "joined")]),
    ("berth_logic_memberships_changed_total", &[("kind", "left")]),
    ("berth_logic_group_messages_delivered_total", &[]),
    ("berth_logic_spread_slice_seconds_count", &[]),
    ("berth_logic_requests_total", &[("method", "history")]),
    ("berth_logic_request_seconds_count", &[("method", "mark_read")]),
    ("berth_logic_requests_refused_total", &[("code", "PERMISSION_DENIED")]),
    ("berth_logic_sessions_opened_total", &[]),
    ("berth_logic_sessions_replaced_total", &[]),
    ("berth_logic_notifies_total", &[]),
    ("berth_logic_inbox_refreshes_total", &[]),
    ("berth_logic_http_requests_total", &[("route", "disconnect_user"), ("status", "200")]),
    ("berth_logic_http_request_seconds_count", &[("route", "other")]),
];

/// What is not caused here, and why.
const NOT_CAUSED: [(&str, &str); 33] = [
    ("berth_gateway_moves_total", "needs a drain: tests/tests/road/drain.rs"),
    ("berth_scheduler_guard_breaches_total", "needs a pool that fails: tests/tests/road/gray.rs"),
    ("berth_scheduler_reports_refused_total", "needs a gateway with a fault: scheduler/src/tests.rs"),
    ("berth_scheduler_queue_tokens_total", "needs a crowd: scheduler/src/http/tests.rs"),
    ("berth_scheduler_jwks_loads_total", "needs a JWKS file: scheduler/src/tests/credentials.rs"),
    ("berth_gateway_sessions_revoked_total", "needs a revocation: tests/tests/road/revoked.rs"),
    ("berth_gateway_sessions_key_void_total", "needs a ticket key that leaked: tests/tests/faults/keys.rs"),
    ("berth_gateway_carried_evicted_total", "needs 65,536 records: proto/src/carry/tests.rs"),
    ("berth_scheduler_carried_evicted_total", "the same: scheduler/src/carried/tests.rs"),
    ("berth_logic_sessions_revoked_total", "the same as that of gateways"),
    ("berth_logic_revocations_total", "the same"),
    ("berth_scheduler_geoip_loads_total", "needs a database: tests/tests/road/proximity.rs"),
    ("berth_scheduler_geoip_lookups_total", "needs a database: scheduler/src/locate/tests.rs"),
    ("berth_scheduler_rtt_votes_total", "needs a gateway with a region: scheduler/src/locate/tests.rs"),
    ("berth_gateway_accept_errors_total", "needs a process without descriptors: gateway/tests/famine.rs"),
    (
        "berth_gateway_grace_sessions_total",
        "needs a gateway without any scheduler: gateway/tests/gateway/outage.rs, tests/tests/faults/schedulers.rs",
    ),
    (
        "berth_gateway_limited_total",
        "needs a flood: gateway/tests/gateway/limits.rs, tests/tests/road/noisy.rs",
    ),
    ("berth_logic_sessions_refused_total", "needs 33 devices: tests/tests/road/noisy.rs"),
    ("berth_gateway_worker_stalls_total", "needs a stuck thread: gateway/src/supervisor/tests.rs"),
    ("berth_gateway_writes_blocked_total", "needs megabytes unread: tests/tests/road/slow.rs"),
    ("berth_gateway_notifies_total", "merging needs notifies that meet: gateway/tests"),
    ("berth_gateway_late_responses_total", "needs a logic slower than 10 s: gateway/tests"),
    ("berth_gateway_link_refused_total", "needs a full link: gateway/tests"),
    ("berth_gateway_sessions_reannounced_total", "needs a logic that forgot: gateway/tests"),
    ("berth_logic_gateway_messages_lost_total", "needs a full link: logic/src/tests/faults.rs"),
    (
        "berth_logic_messages_failed_total",
        "needs a sender removed between accept and commit: logic/src/tests",
    ),
    ("berth_logic_lane_full_total", "needs a lane of 1,024 waiting messages"),
    ("berth_logic_leases_expired_total", "needs a gateway silent for 15 s: logic/src/tests/faults.rs"),
    ("berth_logic_inbox_rows_expired_total", "needs rows an hour old: logic/src/conformance/store.rs"),
    ("berth_logic_records_poisoned_total", "needs a damaged queue"),
    ("berth_logic_spread_set_aside_total", "needs a damaged row: logic/src/tests/faults.rs"),
    ("berth_logic_store_failures_total", "needs a failing disk: logic/src/tests/faults.rs"),
    ("process_cpu_seconds_total", "counted by the kernel"),
];

/// Some series come with what they are about: with a gray rule.
pub(crate) const RULE: &str = "version = 1\n[[gray]]\nid = \"r\"\npool = \"stable\"\npercent = 1.0\n";

/// What each process shows.
async fn texts(server: &Server) -> anyhow::Result<Vec<String>> {
    let mut texts = Vec::new();
    for url in server.at.admin.urls() {
        texts.push(http::get(&format!("{url}/metrics"), None).await?.body);
    }
    Ok(texts)
}

/// A series of the links between processes: only there where roles run apart.
fn of_links(name: &str) -> bool {
    ["berth_scheduler_link_", "berth_gateway_link_", "berth_logic_link_"]
        .iter()
        .any(|start| name.starts_with(start))
        && name != "berth_gateway_link_refused_total"
}

/// Name and type of every family.
fn families(text: &str) -> BTreeMap<String, String> {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    types.map(|(name, kind)| (name.to_owned(), kind.to_owned())).collect()
}

/// Name and label names of each metric in the first cells of the metrics' tables.
fn documented() -> anyhow::Result<BTreeMap<String, BTreeSet<String>>> {
    let text = document("operating.md")?;
    let first_cells = text.lines().filter_map(|line| Some(line.strip_prefix("| ")?.split_once(" | ")?.0));
    let names = first_cells.flat_map(|cell| cell.split('`').skip(1).step_by(2));
    let names = names.filter(|name| ["berth_", "process_"].iter().any(|prefix| name.starts_with(prefix)));
    let labels = |cell: &str| -> (String, BTreeSet<String>) {
        let (name, labels) = cell.split_once('{').unwrap_or((cell, ""));
        let labels = labels.trim_end_matches('}').split(',').filter(|label| !label.is_empty());
        (name.to_owned(), labels.map(str::to_owned).collect())
    };
    Ok(names.map(labels).collect())
}

#[tokio::test]
async fn the_documents_list_is_what_there_is() -> TestResult {
    let server = Server::start(Options::default().policy(RULE)).await?;
    let text = texts(&server).await?.concat();
    let (there, told) = (families(&text), documented()?);
    let undocumented: Vec<_> = there.keys().filter(|name| !told.contains_key(*name)).collect();
    ensure!(undocumented.is_empty(), "docs/operating.md lacks {undocumented:?}");
    let one = Options::default().composition() == Composition::One;
    let elsewhere = |name: &str| one && of_links(name);
    let gone: Vec<_> = told.keys().filter(|name| !there.contains_key(*name) && !elsewhere(name)).collect();
    ensure!(gone.is_empty(), "docs/operating.md has {gone:?}, which /metrics has not");
    for (series, labels, _) in Scrape::parse(&text)?.all() {
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| {
            series.strip_suffix(end).filter(|base| there.get(*base).is_some_and(|kind| kind == "histogram"))
        });
        let has: BTreeSet<_> = labels.keys().filter(|label| *label != "le").cloned().collect();
        let told = &told[base.unwrap_or(series)];
        ensure!(*told == has, "{series} has the labels {has:?}; docs/operating.md says {told:?}");
    }
    Ok(())
}

#[tokio::test]
async fn promtool_finds_nothing() -> TestResult {
    let given = std::env::var_os("BERTH_TEST_PROMTOOL");
    let promtool = given.map_or_else(|| root().join("target/tools/prometheus/usr/bin/promtool"), Into::into);
    let server = Server::start(Options::default()).await?;
    let mut device = Device::connect(&server.at, Transport::Tcp, &fresh("alice"), "d").await?;
    device.heartbeat().await?;
    for text in texts(&server).await? {
        let mut child = Command::new(&promtool)
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| {
                format!("{}: ./tests/run gets it, or set BERTH_TEST_PROMTOOL", promtool.display())
            })?;
        child.stdin.take().context("is piped")?.write_all(text.as_bytes())?;
        let output = child.wait_with_output()?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        ensure!(output.status.success() && said.is_empty(), "{}: {said}", output.status);
    }
    Ok(())
}

#[tokio::test]
async fn every_counter_moves_when_what_it_counts_happens() -> TestResult {
    let policy = "version = 1\n";
    let options =
        Options::default().heartbeat(300, 900).policy(policy).expect_warning("the policy file is refused");
    let server = Server::start(options).await?;
    let before = Scrape::fetch(&server.at.admin).await?;
    cause(&server).await?;
    wait::until("every counter moved", || async {
        let now = Scrape::fetch(&server.at.admin).await?;
        let still: Vec<_> =
            MOVED.iter().filter(|(name, labels)| now.sum(name, labels) <= before.sum(name, labels)).collect();
        if !still.is_empty() {
            println!("still to move: {still:?}");
        }
        Ok(still.is_empty().then_some(()))
    })
    .await?;
    let families = families(&texts(&server).await?.concat());
    for (family, kind) in families.iter().filter(|(name, kind)| *kind != "gauge" && !of_links(name)) {
        let series = if kind == "histogram" { format!("{family}_count") } else { family.clone() };
        let moved = MOVED.iter().any(|(name, _)| *name == series);
        let excused = NOT_CAUSED.iter().any(|(name, _)| name == family);
        ensure!(moved != excused, "{family} stands in MOVED or in NOT_CAUSED, and not in both");
    }
    Ok(())
}

/// Makes everything happen that [`MOVED`] counts.
async fn cause(server: &Server) -> TestResult {
    at_the_scheduler(server).await?;
    at_the_gateway(server).await?;
    at_logic(server).await
}

async fn at_the_scheduler(server: &Server) -> TestResult {
    server.write_policy("version = \"nonsense\"\n")?;
    let at = &server.at.scheduler;
    let (schedule, explain) = (format!("{at}/v1/schedule"), format!("{at}/v1/schedule:explain"));
    let (alice, system) = (tokens::user("alice"), tokens::user("system"));
    let device = json!({"deviceId": "d"});
    http::post(&schedule, Some(&alice), &json!({})).await?;
    http::post(&schedule, None, &device).await?;
    http::post(&schedule, Some(&system), &device).await?;
    http::get(&schedule, None).await?;
    http::get(&format!("{at}/v1/nothing"), None).await?;
    let gateways = format!("{}/admin/v1/gateways", server.admin_of(Role::Scheduler(0)));
    for key in ["wrong", ADMIN_KEY] {
        http::get(&gateways, Some(key)).await?;
    }
    http::post(&explain, Some("wrong"), &device).await?;
    http::post(&explain, Some(ADMIN_KEY), &json!({"userId": "alice", "deviceId": "d"})).await?;
    Ok(())
}

async fn at_the_gateway(server: &Server) -> TestResult {
    let gateway = &server.at.gateway;
    http::get(&format!("http://{gateway}/v1/elsewhere"), None).await?;
    let (alice, mallory) = (fresh("alice"), fresh("mallory"));
    let elsewhere = tokens::sign(&tokens::ticket(&alice, "d", "gw-9"));
    for ticket in [elsewhere.as_str(), "forged"] {
        let mut raw = Raw::connect(Transport::WsJson, gateway).await?;
        raw.send(hello(ticket, "d")).await?;
        raw.ending().await?;
    }
    let mut bad = Device::connect(&server.at, Transport::WsJson, &mallory, "d").await?;
    bad.raw.send_bytes(b"nonsense".to_vec()).await?;
    bad.ending().await?;
    let mut first = Device::connect(&server.at, Transport::WsProto, &alice, "d").await?;
    let mut second = Device::connect(&server.at, Transport::Tcp, &alice, "d").await?;
    first.ending().await?;
    second.heartbeat().await?;
    second.refused(Method::Pull(PullRequest { after_seq: 0, limit: 1_000 })).await?;
    second.raw.send(Frame::Request(Request { id: 900, method: None })).await?;
    // Says nothing more, and is closed with 4003.
    second.ending().await?;
    Ok(())
}

async fn at_logic(server: &Server) -> TestResult {
    let (alice, bob) = (fresh("alice"), fresh("bob"));
    let mut bobs = Device::connect(&server.at, Transport::WsJson, &bob, "d").await?;
    let mut alices = Device::connect(&server.at, Transport::Tcp, &alice, "d").await?;
    let sent = alices.send(&bob, "c-1", "x").await?;
    alices.send(&bob, "c-1", "x").await?;
    bobs.receive(1).await?;
    let conversation_id = sent.conversation_id;
    bobs.mark_read(conversation_id, 1).await?;
    bobs.history(HistoryRequest { conversation_id, ..Default::default() }).await?;
    bobs.request(Method::Conversations(ConversationsRequest::default())).await?;
    bobs.request(Method::Ack(AckRequest { seq: 1 })).await?;
    bobs.refused(Method::MarkRead(MarkReadRequest { conversation_id: 1, seq: 1 })).await?;
    bobs.presence(&[&alice]).await?;
    let (group, change) = (fresh("group"), format!("{}/v1/groups", server.at.logic));
    let members = json!({"members": [alice, bob]}).to_string();
    http::send("PUT", &format!("{change}/{group}"), Some(SERVICE_KEY), Some(members)).await?;
    let to_group = json!({"from": alice, "to": {"groupId": group}, "clientMsgId": "g-1", "body": "aGk="});
    http::post(&format!("{}/v1/messages", server.at.logic), Some(SERVICE_KEY), &to_group).await?;
    bobs.receive(1).await?;
    http::post(&format!("{change}/{group}/members:remove"), Some(SERVICE_KEY), &json!({"members": [bob]}))
        .await?;
    let url = format!("{}/v1/users/{bob}:disconnect", server.at.logic);
    http::post(&url, Some(SERVICE_KEY), &json!({})).await?;
    bobs.ending().await?;
    http::get(&format!("{}/v1/nothing", server.at.logic), Some(SERVICE_KEY)).await?;
    Ok(())
}
