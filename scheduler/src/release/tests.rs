//! Policies from files, operators and other schedulers; rules that are stopped and go on.

use berth_proto::{
    carry::Record,
    health::HANDSHAKE_BUCKETS,
    wire::{CarriedRecord, GatewayHealth, GatewayReport, PolicyText, RuleStop, SchedulerSeen},
};
use serde_json::{Value, json};

use crate::{
    Config,
    core::lock,
    http::admin::tests::ask,
    testing::{ADMIN_KEY, Fixture, config, eventually, report},
};

const RULE: &str = "[[gray]]\nid = \"new\"\npool = \"canary\"\nusers = [\"alice\"]\npercent = 100\n";

fn policy(version: u64, rest: &str) -> String {
    format!("version = {version}\n{rest}")
}

fn carried(version: u64, text: &str, by: &str) -> CarriedRecord {
    let text = PolicyText { version, text: text.to_owned(), by: by.to_owned(), ..PolicyText::default() };
    Record::Policy(text).carried(version, 0)
}

async fn admin(fixture: &Fixture, method: &str, path: &str, body: Value) -> (u16, Value) {
    ask(fixture, ADMIN_KEY, method, &format!("/admin/v1{path}"), &body).await
}

fn in_force(fixture: &Fixture) -> (u64, String) {
    let policy = fixture.scheduler.core.policy.load();
    (policy.version, policy.text.clone())
}

/// The rule and pool that alice is given.
async fn alices(fixture: &Fixture) -> (String, String) {
    let answer = fixture.schedule(r#"{"deviceId":"d"}"#).await;
    let told = |field: &str| answer.body["decision"][field].as_str().unwrap_or_default().to_owned();
    (told("ruleId"), told("pool"))
}

#[tokio::test]
async fn a_newer_policy_that_is_carried_replaces_an_older_file() {
    let (fixture, _path, _directory) = Fixture::with_policy(&policy(3, "")).await;
    let gateway = fixture.attach(&report("gw-1"));
    gateway.carry(vec![carried(2, &policy(2, "# older"), "bob")]);
    assert_eq!(in_force(&fixture).0, 3);
    gateway.carry(vec![carried(5, &policy(5, RULE), "bob")]);
    assert_eq!(in_force(&fixture), (5, policy(5, RULE)));
    let (_, told) = admin(&fixture, "GET", "/policy/history", Value::Null).await;
    let newest = &told["changes"][0];
    assert_eq!((&newest["from"], &newest["by"]), (&json!("carried"), &json!("bob")), "{told}");
    assert_eq!(newest["changed"], json!(["rule new added: takes 100% now, nobody before"]));
    eventually("the file is not what is in force", || {
        fixture.metric("berth_scheduler_policy_file_refused") == 1.0
    })
    .await;
}

#[tokio::test]
async fn a_policy_in_force_is_carried_to_gateways_and_introduced() {
    let (fixture, _path, _directory) = Fixture::with_policy(&policy(4, RULE)).await;
    let gateway = fixture.attach(&report("gw-1"));
    gateway.report(report("gw-1"));
    eventually("others could tell what they carry", || fixture.scheduler.core.policy.agreed()).await;
    gateway.report(report("gw-1"));
    let records: Vec<_> = gateway.carried().into_iter().flat_map(|carried| carried.records).collect();
    let Some(Record::Policy(text)) = records.first().and_then(Record::read) else { panic!("{records:?}") };
    assert_eq!((text.version, text.text), (4, policy(4, RULE)));
    gateway.report(report("gw-1"));
    let before = gateway.introduced().expect("now");
    assert_eq!((before.policy_version, before.scheduler_id.contains(':')), (4, true), "{before:?}");
    let applied = admin(&fixture, "POST", "/policy:apply", json!({ "text": policy(5, RULE) })).await;
    assert_eq!(applied.0, 200, "{applied:?}");
    gateway.report(report("gw-1"));
    let after = gateway.introduced().expect("again");
    assert_eq!((after.policy_version, after.placement), (5, before.placement), "nobody belongs elsewhere");
    let none = admin(&fixture, "POST", "/policy:apply", json!({ "text": policy(6, "") })).await;
    assert_eq!(none.0, 200, "{none:?}");
    gateway.report(report("gw-1"));
    assert_ne!(gateway.introduced().expect("again").placement, before.placement);
}

#[tokio::test]
async fn policies_are_applied_compared_and_rolled_back() {
    let fixture = Fixture::start(config()).await;
    let apply = async |text: String| {
        admin(&fixture, "POST", "/policy:apply", json!({ "text": text, "by": "alice", "note": "why" })).await
    };
    let (status, answer) = apply(policy(7, RULE)).await;
    assert_eq!((status, &answer["taken"], &answer["policyVersion"]), (200, &json!(true), &json!("7")));
    assert_eq!(answer["onDisk"], false, "it has no data directory");
    assert_eq!(apply(policy(7, RULE)).await.1["taken"], false, "it is in force already");
    for (text, status, part) in [
        (policy(6, ""), 409, "older than 7"),
        (policy(7, "# other"), 409, "another text under version 7"),
        (policy(1_000_008, ""), 409, "more than 1000000 above 7"),
        (policy(8, "[load]\nbound = -1"), 400, "line 3, load.bound: -1 is not between"),
    ] {
        let (refused, problem) = apply(text).await;
        let detail = problem["detail"].as_str().unwrap_or_default();
        assert!(refused == status && detail.contains(part), "{problem}");
    }
    let (_, diff) = admin(&fixture, "POST", "/policy:diff", json!({ "text": policy(8, "") })).await;
    assert_eq!(diff["diff"]["rules"][0]["change"], "removed", "{diff}");
    assert_eq!(diff["diff"]["moves"][0]["percent"], 100.0, "{diff}");
    assert_eq!(in_force(&fixture).0, 7, "compared only");

    apply(policy(9, "# the second")).await;
    let (status, back) = admin(&fixture, "POST", "/policy:rollback", json!({ "by": "bob" })).await;
    assert_eq!((status, &back["policyVersion"]), (200, &json!("10")), "{back}");
    assert_eq!(in_force(&fixture), (10, policy(10, RULE)), "the text before, under the next version");
    let (_, back) = admin(&fixture, "POST", "/policy:rollback", json!({ "toVersion": 9 })).await;
    assert_eq!((in_force(&fixture).1, &back["policyVersion"]), (policy(11, "# the second"), &json!("11")));
    let (status, problem) = admin(&fixture, "POST", "/policy:rollback", json!({ "toVersion": 3 })).await;
    assert!(
        status == 404 && problem["detail"].as_str().is_some_and(|d| d.contains("11, 10, 9, 7")),
        "{problem}"
    );

    let (_, history) = admin(&fixture, "GET", "/policy/history", Value::Null).await;
    let told: Vec<_> = history["changes"].as_array().expect("a list").iter().collect();
    let who = |place: usize| (told[place]["by"].clone(), told[place]["note"].clone());
    assert_eq!(who(1), (json!("bob"), json!("back to version 7")));
    assert_eq!((who(3), told.len()), ((json!("alice"), json!("why")), 4));
}

#[tokio::test]
async fn a_stopped_rule_takes_nobody_until_it_is_resumed_or_its_text_changes() {
    let (fixture, path, _directory) = Fixture::with_policy(&policy(1, RULE)).await;
    let gateway = fixture.gateway(report("gw-1")).await;
    let _canary = fixture.gateway(GatewayReport { pool: "canary".to_owned(), ..report("gw-c") }).await;
    let (takes, nobody) = (("new".to_owned(), "canary".to_owned()), (String::new(), "stable".to_owned()));
    assert_eq!(alices(&fixture).await, takes);
    let hash = fixture.scheduler.core.policy.load().gray[0].hash.clone();
    let stop = |version, hash: &str| {
        let stop = RuleStop {
            rule_id: "new".to_owned(),
            rule_hash: hash.to_owned(),
            stopped: true,
            reason: "connect failures: 20%".to_owned(),
            ..RuleStop::default()
        };
        Record::RuleStop(stop).carried(version, 0)
    };
    let stopped = || fixture.metric(r#"berth_scheduler_rule_stopped{rule="new"}"#);
    gateway.carry(vec![stop(1, "of another definition")]);
    assert_eq!((alices(&fixture).await, stopped()), (takes.clone(), 0.0));
    gateway.carry(vec![stop(2, &hash)]);
    assert_eq!((alices(&fixture).await, stopped()), (nobody.clone(), 1.0), "though she is named");
    let body = json!({ "deviceId": "d", "userId": "alice" }).to_string();
    let bearer = format!("Bearer {ADMIN_KEY}");
    let why = fixture.post("/v1/schedule:explain", &[("authorization", &bearer)], &body).await;
    let rule = &why.body["stages"]["rules"][0];
    assert_eq!((&rule["verdict"], &rule["stopped"]), (&json!("stopped"), &json!("connect failures: 20%")));

    let resume = |rule: &str| json!({ "ruleId": rule, "by": "bob" });
    let other = "of a third definition";
    gateway.carry(vec![stop(3, other)]);
    assert_eq!((alices(&fixture).await, stopped()), (nobody.clone(), 1.0), "another's stop changes nothing");
    let (status, answer) = admin(&fixture, "POST", "/policy:resume", resume("new")).await;
    let told = json!({ "ruleId": "new", "resumed": true, "percent": 100.0, "onDisk": false });
    assert_eq!((status, answer), (200, told));
    assert_eq!((alices(&fixture).await, stopped()), (takes.clone(), 0.0));
    let (_, history) = admin(&fixture, "GET", "/policy/history", Value::Null).await;
    let told = |place: usize| (&history["changes"][place]["what"], &history["changes"][place]["ruleHash"]);
    assert_eq!((told(0), told(1)), ((&json!("resume"), &json!(hash)), (&json!("stop"), &json!(hash))));
    assert_eq!(history["changes"].as_array().map(Vec::len), Some(3), "only what was in force: {history}");
    for (rule, part) in [("new", "is not stopped"), ("old", "it has: new")] {
        let (status, problem) = admin(&fixture, "POST", "/policy:resume", resume(rule)).await;
        assert!(status == 409 && problem["detail"].as_str().is_some_and(|d| d.contains(part)), "{problem}");
    }

    gateway.carry(vec![stop(u64::MAX, &hash)]);
    assert_eq!(alices(&fixture).await, nobody);
    std::fs::write(&path, policy(2, RULE)).expect("written");
    fixture.scheduler.reload();
    eventually("the next version", || in_force(&fixture).0 == 2).await;
    assert_eq!(alices(&fixture).await, nobody, "the rule is the same");
    std::fs::write(&path, policy(3, &RULE.replace("100", "99"))).expect("written");
    fixture.scheduler.reload();
    eventually("the version after", || in_force(&fixture).0 == 3).await;
    assert_eq!(alices(&fixture).await, takes, "another rule");
}

#[tokio::test]
async fn a_guard_stops_its_rule_by_itself_and_a_restart_keeps_it() {
    let guard = "[gray.guard]\nconnect_failures = 0.02\nwindow_seconds = 5\nmin_handshakes = 10\n";
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (data, path) = (directory.path().join("data"), directory.path().join("policy.toml"));
    std::fs::write(&path, policy(1, &(RULE.to_owned() + guard))).expect("written");
    let config = || Config { data_dir: Some(data.clone()), policy_file: Some(path.clone()), ..config() };
    let fixture = Fixture::start(config()).await;
    let health = |failed, welcomed| {
        let handshake_ms = vec![0; HANDSHAKE_BUCKETS];
        Some(GatewayHealth { connects_failed: failed, welcomed, handshake_ms, ..GatewayHealth::default() })
    };
    let stable = GatewayReport { health: health(0, 0), ..report("gw-1") };
    let canary = GatewayReport { pool: "canary".to_owned(), health: health(0, 0), ..report("gw-c") };
    let stable_gateway = fixture.gateway(stable.clone()).await;
    let canary_gateway = fixture.gateway(canary.clone()).await;
    let stopped = |fixture: &Fixture| fixture.metric(r#"berth_scheduler_rule_stopped{rule="new"}"#);
    let core = &fixture.scheduler.core;
    let watched_seconds = || {
        let policy = core.policy.load_full();
        let (rule, now_ms) = (&policy.gray[0], core.clock.monotonic_ms());
        lock(&core.guards).figures(rule, &rule.guard.expect("it has one"), now_ms).seconds
    };
    eventually("the rule is watched: what is heard from now on counts", || watched_seconds() > 0).await;
    stable_gateway.report(GatewayReport { health: health(0, 100), ..stable });
    canary_gateway.report(GatewayReport { health: health(20, 80), ..canary });
    eventually("the guard stops it", || stopped(&fixture) == 1.0).await;
    assert_eq!(fixture.metric(r#"berth_scheduler_guard_breaches_total{limit="connect_failures"}"#), 1.0);
    let (_, state) = admin(&fixture, "GET", "/policy", Value::Null).await;
    let reason = state["rules"][0]["stopped"]["reason"].as_str().unwrap_or_default();
    assert!(reason.starts_with("connect failures: 20.00% (20 of 100) against 0.00% (0 of 100)"), "{state}");
    fixture.scheduler.core.carry_durably(Vec::new()).await.expect("nothing");
    drop((stable_gateway, canary_gateway));
    let (_, before) = admin(&fixture, "GET", "/policy/history", Value::Null).await;
    fixture.stop().await;

    let again = Fixture::start(config()).await;
    assert_eq!(stopped(&again), 1.0);
    let (_, history) = admin(&again, "GET", "/policy/history", Value::Null).await;
    let newest = &history["changes"][0];
    assert_eq!((&newest["what"], &newest["by"]), (&json!("stop"), &json!("guard")), "{history}\n{before}");
}

#[tokio::test]
async fn of_two_texts_under_one_version_all_keep_the_same_in_whichever_order_they_come() {
    let texts = [policy(5, ""), policy(5, "# another, longer one"), policy(5, "# yet another, longer")];
    let mut kept = Vec::new();
    for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
        let fixture = Fixture::start(config()).await;
        let gateway = fixture.attach(&report("gw-1"));
        order.iter().for_each(|place| gateway.carry(vec![carried(5, &texts[*place], "eve")]));
        kept.push(in_force(&fixture));
    }
    assert!(kept.iter().all(|one| *one == kept[0]), "{kept:?}");
    assert_ne!(kept[0].1, texts[0], "the longer one");
}

#[tokio::test]
async fn a_file_with_another_text_under_the_version_agreed_on_is_not_put_in_force() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("policy.toml");
    std::fs::write(&path, policy(5, "")).expect("written");
    let config = || Config {
        data_dir: Some(directory.path().join("data")),
        policy_file: Some(path.clone()),
        ..config()
    };
    let agreed = policy(5, RULE);
    let fixture = Fixture::start(config()).await;
    fixture.scheduler.core.carry_durably(vec![carried(5, &agreed, "bob")]).await.expect("room");
    assert_eq!(in_force(&fixture).1, agreed);
    fixture.stop().await;
    let again = Fixture::start(config()).await;
    assert_eq!(in_force(&again).1, agreed);
    assert_eq!(again.metric("berth_scheduler_policy_file_refused"), 1.0, "from the start");
    let (_, answer) = admin(&again, "POST", "/policy:apply", json!({ "text": policy(6, "") })).await;
    assert_eq!((&answer["taken"], &answer["onDisk"]), (&json!(true), &json!(true)), "{answer}");
}

#[tokio::test]
async fn a_restart_puts_no_file_in_force_that_would_be_refused() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("policy.toml");
    let data = |kept: bool| kept.then(|| directory.path().join("data"));
    let config = |kept| Config { data_dir: data(kept), policy_file: Some(path.clone()), ..config() };
    let agreed = policy(5, RULE);
    std::fs::write(&path, policy(5, "")).expect("written");
    let fixture = Fixture::start(config(true)).await;
    fixture.scheduler.core.carry_durably(vec![carried(5, &agreed, "bob")]).await.expect("room");
    fixture.stop().await;
    let longer = format!("{agreed}# a longer text\n");
    for (kept, file) in [
        (true, policy(9_007_199_254_740_992, "")),
        (false, policy(9_007_199_254_740_992, "")),
        (true, longer.clone()),
        (false, longer),
        (false, policy(4, "")),
    ] {
        std::fs::write(&path, &file).expect("written");
        let fixture = Fixture::start(config(kept)).await;
        let gateway = fixture.attach(&report("gw-1"));
        if !kept {
            assert_eq!(in_force(&fixture).1, file, "nobody knows better");
            gateway.report(report("gw-1"));
            assert_eq!(gateway.carried(), [], "but it is not told either");
            gateway.carry(vec![carried(5, &agreed, "bob")]);
        }
        assert_eq!(in_force(&fixture), (5, agreed.clone()), "on disk: {kept}, the file: {file}");
        assert_eq!(fixture.metric("berth_scheduler_policy_file_refused"), 1.0);
        gateway.report(report("gw-1"));
        eventually("others could tell what they carry", || fixture.scheduler.core.caught_up()).await;
        gateway.report(report("gw-1"));
        let told = gateway.carried().into_iter().flat_map(|carried| carried.records);
        assert_eq!(told.map(|record| record.version).max().unwrap_or(5), 5, "nothing higher is carried");
        let (_, state) = admin(&fixture, "GET", "/policy/history", Value::Null).await;
        assert_eq!(state["changes"][0]["policyHash"], fixture.scheduler.core.policy.load().hash, "{state}");
        fixture.stop().await;
    }
}

#[tokio::test]
async fn a_newer_file_at_a_restart_replaces_what_gateways_carry() {
    let (fixture, _path, _directory) = Fixture::with_policy(&policy(6, "")).await;
    let gateway = fixture.attach(&report("gw-1"));
    gateway.carry(vec![carried(5, &policy(5, RULE), "bob")]);
    assert_eq!(in_force(&fixture), (6, policy(6, "")));
    gateway.report(report("gw-1"));
    let told = gateway.carried().into_iter().flat_map(|carried| carried.records);
    assert_eq!(told.map(|record| record.version).max(), Some(6));
}

#[tokio::test]
async fn what_the_history_file_does_not_take_is_not_said_to_be_on_disk() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let data_dir = directory.path().join("data");
    let fixture = Fixture::start(Config { data_dir: Some(data_dir.clone()), ..config() }).await;
    // What would be written cannot be: a directory is in its place.
    std::fs::create_dir(data_dir.join("policy-history.jsonl")).expect("made");
    let (_, answer) = admin(&fixture, "POST", "/policy:apply", json!({ "text": policy(2, "") })).await;
    assert_eq!((&answer["taken"], &answer["onDisk"]), (&json!(true), &json!(false)), "{answer}");
}

#[tokio::test]
async fn a_stop_that_comes_before_its_policy_is_remembered_with_it() {
    let fixture = Fixture::start(config()).await;
    let gateway = fixture.attach(&report("gw-1"));
    let rule = crate::policy::parse(&policy(3, RULE)).expect("a policy").gray.remove(0);
    let stop = RuleStop {
        rule_id: rule.id,
        rule_hash: rule.hash,
        stopped: true,
        reason: "no data".to_owned(),
        by: "guard".to_owned(),
        ..RuleStop::default()
    };
    gateway.carry(vec![Record::RuleStop(stop).carried(1, 0)]);
    gateway.carry(vec![carried(3, &policy(3, RULE), "bob")]);
    let (_, history) = admin(&fixture, "GET", "/policy/history", Value::Null).await;
    let newest = &history["changes"][0];
    assert_eq!(
        (&newest["what"], &newest["by"], &newest["note"]),
        (&json!("stop"), &json!("guard"), &json!("no data"))
    );
    assert_eq!(history["changes"][1]["what"], "policy", "{history}");
}

#[tokio::test]
async fn every_scheduler_that_gateways_hear_of_is_listed_with_its_policy() {
    let (fixture, _path, _directory) = Fixture::with_policy(&policy(2, "")).await;
    let other = SchedulerSeen {
        scheduler_id: "other".to_owned(),
        policy_version: 9,
        policy_hash: "h".to_owned(),
        ..SchedulerSeen::default()
    };
    let told = GatewayReport { schedulers: vec![other], ..report("gw-1") };
    let _gateway = fixture.gateway(told).await;
    let (_, state) = admin(&fixture, "GET", "/policy", Value::Null).await;
    let listed: Vec<_> = state["replicas"].as_array().expect("a list").iter().collect();
    assert_eq!(listed.len(), 2, "{state}");
    assert!(listed.iter().any(|one| one["schedulerId"] == "other" && one["policyVersion"] == "9"), "{state}");
    assert!(
        listed.iter().any(|one| one["schedulerId"] == state["schedulerId"] && one["policyVersion"] == "2")
    );
    assert_eq!(fixture.metric("berth_scheduler_policy_version_seen"), 9.0);
}
