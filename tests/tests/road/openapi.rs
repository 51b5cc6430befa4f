//! The OpenAPI documents against the running handlers: each operation answers, its examples are accepted, each answer is of
//! its schema, each documented status occurs, and no answer has a status that is not documented.

use std::collections::BTreeSet;

use anyhow::{Context, ensure};
use berth_tests::{
    TestResult, fresh,
    http::{self, Answer},
    schema,
    server::{Options, Server},
    tokens::{self, ADMIN_KEY, SERVICE_KEY},
};
use serde_json::{Value, json};

/// Documented, and not caused here.
const NOT_CAUSED: [(&str, u16, &str); 6] = [
    ("sendMessage", 429, "100,000 messages behind: logic/src/tests/faults.rs bounds what is accepted"),
    ("putGroup", 429, "who comes and goes faster than spread: logic/src/conformance/store_groups.rs"),
    ("addMembers", 429, "the same"),
    ("*", 503, "a failing disk: logic/src/tests/http.rs"),
    ("*", 504, "a body that does not come for 15 s: logic/src/tests/http.rs"),
    ("schedule", 503, "no gateway: scheduler/src/http/tests.rs"),
];

/// What is asked of an operation, beside the examples of its schema.
struct Case {
    operation: &'static str,
    /// What stands for the name in the path.
    id: String,
    query: &'static str,
    key: Option<String>,
    body: Option<String>,
    status: u16,
}

struct Tried<'a> {
    server: &'a Server,
    base: &'a str,
    document: Value,
    seen: BTreeSet<(String, u16)>,
}

impl<'a> Tried<'a> {
    async fn new(server: &'a Server, base: &'a str) -> anyhow::Result<Self> {
        let answer = http::get(&format!("{base}/v1/openapi.json"), None).await?;
        ensure!(
            answer.status == 200 && answer.header("content-type") == Some("application/json"),
            "{answer:?}"
        );
        let document: Value = answer.json()?;
        ensure!(document["openapi"] == "3.1.0", "{document:.100}");
        Ok(Self { server, base, document, seen: BTreeSet::new() })
    }

    /// Every operation: id, method, path, itself.
    fn operations(&self) -> Vec<(String, String, String, Value)> {
        let paths = self.document["paths"].as_object().expect("a document has paths");
        let of = |(path, methods): (&String, &Value)| -> Vec<_> {
            let methods = methods.as_object().expect("a path has methods");
            let one = |(method, operation): (&String, &Value)| {
                let id = operation["operationId"].as_str().expect("an operation has an id").to_owned();
                (id, method.to_uppercase(), path.clone(), operation.clone())
            };
            methods.iter().map(one).collect()
        };
        let mut all: Vec<_> = paths.iter().flat_map(of).collect();
        // What makes a thing before what reads or changes it.
        all.sort_by_key(|(_, method, ..)| method != "PUT");
        all
    }

    async fn ask(&mut self, case: Case) -> anyhow::Result<Answer> {
        let operations = self.operations();
        let found = operations.into_iter().find(|(id, ..)| id == case.operation);
        let (id, method, path, operation) =
            found.with_context(|| format!("{} is not documented", case.operation))?;
        let (before, rest) = path.split_once('{').unwrap_or((&path, ""));
        let after = rest.split_once('}').map_or("", |(_, after)| after);
        let shown = if rest.is_empty() { "" } else { &case.id };
        let url = format!("{}{before}{shown}{after}{}", self.base, case.query);
        let answer = http::send(&method, &url, case.key.as_deref(), case.body.clone()).await?;
        let told = || {
            format!(
                "{method} {url} {:.200}: {} {:.300}",
                case.body.clone().unwrap_or_default(),
                answer.status,
                answer.body
            )
        };
        ensure!(answer.status == case.status, "{} instead of {}", told(), case.status);
        let response = &operation["responses"][answer.status.to_string()];
        ensure!(response.is_object(), "an undocumented status: {}", told());
        let response = schema::follow(&self.document, response)?;
        let kind = if answer.status == 200 { "application/json" } else { "application/problem+json" };
        ensure!(answer.header("content-type") == Some(kind), "{}", told());
        schema::check(&self.document, &response["content"][kind]["schema"], &answer.value())
            .with_context(told)?;
        if answer.status != 200 {
            ensure!(answer.value()["status"] == answer.status, "{}", told());
            let wait = response["headers"]["Retry-After"].is_object();
            ensure!(answer.header("retry-after").is_some() == wait, "{}", told());
        }
        self.seen.insert((id, answer.status));
        Ok(answer)
    }

    /// Sends every example of every request schema, and wants 200.
    async fn examples(&mut self, key_of: impl Fn(&Value) -> Option<String>, id: &str) -> TestResult {
        for (operation, _, _, described) in self.operations() {
            let content = &described["requestBody"]["content"]["application/json"]["schema"];
            let key = key_of(described.get("security").unwrap_or(&self.document["security"]));
            let mut bodies: Vec<Option<String>> = if content.is_null() {
                vec![None]
            } else {
                let schema = schema::follow(&self.document, content)?;
                let examples =
                    schema["examples"].as_array().with_context(|| format!("{operation} has no example"))?;
                examples.iter().try_for_each(|example| schema::check(&self.document, schema, example))?;
                examples.iter().map(|example| Some(example.to_string())).collect()
            };
            if described["requestBody"]["required"] == false {
                bodies.push(None);
            }
            for body in bodies {
                let operation: &'static str = Box::leak(operation.clone().into_boxed_str());
                let case =
                    Case { operation, id: id.to_owned(), query: "", key: key.clone(), body, status: 200 };
                self.ask(case).await?;
            }
        }
        Ok(())
    }

    /// Every documented status was seen, or is said not to be caused here.
    fn complete(&self) -> TestResult {
        for (id, _, _, described) in self.operations() {
            for status in described["responses"].as_object().context("responses")?.keys() {
                let status: u16 = status.parse()?;
                let excused = NOT_CAUSED
                    .iter()
                    .any(|(operation, other, _)| (*operation == "*" || *operation == id) && *other == status);
                let seen = self.seen.contains(&(id.clone(), status));
                ensure!(seen || excused, "{id} documents {status}, which did not occur");
            }
        }
        Ok(())
    }
}

fn service() -> Option<String> {
    Some(SERVICE_KEY.to_owned())
}

/// The cases of one operation that takes a body.
fn bodies(operation: &'static str, id: &str, largest: usize, cases: Vec<(Value, u16)>) -> Vec<Case> {
    let case =
        |key, body, status| Case { operation, id: id.to_owned(), query: "", key, body: Some(body), status };
    let mut all = vec![
        case(None, "{}".to_owned(), 401),
        case(Some("wrong".to_owned()), "{}".to_owned(), 401),
        case(service(), "nonsense".to_owned(), 400),
        case(service(), " ".repeat(largest + 1), 413),
    ];
    all.extend(cases.into_iter().map(|(body, status)| case(service(), body.to_string(), status)));
    all
}

#[tokio::test]
async fn the_back_end_api_is_as_documented() -> TestResult {
    let server = Server::shared().await?;
    let mut tried = Tried::new(&server, &server.at.logic).await?;
    let (group, other, none) = (fresh("team:a"), fresh("team:b"), fresh("nobody"));
    tried.examples(|security| security.get(0).and_then(|_| service()), &group).await?;

    let id = fresh("once");
    let message = |to: &str, body: &str| json!({"to": {"userId": to}, "clientMsgId": id, "body": body});
    let to_group = json!({"to": {"groupId": none}, "clientMsgId": "c"});
    let to_system = json!({"from": "alice", "to": {"userId": "system"}, "clientMsgId": "c"});
    let to_two = json!({"to": {"userId": "alice", "groupId": "g"}, "clientMsgId": "c"});
    let members = json!({"members": ["carol", "dave"]});
    let large = 1024 * 1024;
    let mut cases = bodies(
        "sendMessage",
        "",
        64 * 1024,
        vec![
            (message("alice", "aGk="), 200),
            (message("alice", "aGk="), 200),
            (message("bob", "aGk="), 409),
            (to_group, 404),
            (to_system, 403),
            (to_two, 400),
            (message("a b", ""), 400),
        ],
    );
    cases.extend(bodies("putGroup", &other, large, vec![(members.clone(), 200), (json!({}), 400)]));
    cases.extend(bodies("addMembers", &other, large, vec![(json!({"members": ["eve"]}), 200)]));
    cases.extend(bodies("removeMembers", &other, large, vec![(json!({"members": ["carol"]}), 200)]));
    cases.extend(bodies("addMembers", &none, large, vec![(members.clone(), 404)]));
    cases.extend(bodies("removeMembers", &none, large, vec![(members, 404)]));
    cases.extend(bodies("batchGetPresence", "", 64 * 1024, vec![(json!({"userIds": ["a b"]}), 400)]));
    for operation in ["disconnectUser", "revokeUser"] {
        cases.extend(bodies(operation, &none, 64 * 1024, vec![(json!({"reason": "r".repeat(101)}), 400)]));
    }
    cases.extend(bodies("restoreUser", &none, 64 * 1024, vec![(json!({"deviceId": "a b"}), 400)]));
    for (id, key, status) in [(&none, None, 401), (&"a%20b".to_owned(), service(), 400)] {
        cases.push(Case { operation: "getRevocations", id: id.clone(), query: "", key, body: None, status });
    }
    for (id, query, key, status) in [
        (&other, "", None, 401),
        (&none, "", service(), 404),
        (&other, "?limit=x", service(), 400),
        (&other, "?cursor=%zz", service(), 400),
        (&other, "?limit=%ff", service(), 400),
        (&other, "?limit=1&cursor=dave", service(), 200),
    ] {
        cases.push(Case { operation: "getGroup", id: id.clone(), query, key, body: None, status });
    }
    for case in cases {
        tried.ask(case).await?;
    }
    check_kinds(&tried).await?;
    tried.seen.extend(
        tried
            .operations()
            .into_iter()
            .filter(|(.., o)| o["requestBody"].is_object())
            .map(|(id, ..)| (id, 415)),
    );
    tried.complete()
}

/// 415 of every operation that takes a body: the harness' client always says JSON, curl says what it is told.
async fn check_kinds(tried: &Tried<'_>) -> TestResult {
    for (id, method, path, operation) in tried.operations() {
        if !operation["requestBody"].is_object() {
            continue;
        }
        let url =
            format!("{}{}", tried.server.at.logic, path.replace("{groupId}", "g").replace("{userId}", "u"));
        let output = std::process::Command::new("curl")
            .args(["-s", "-X", &method, &url, "-d", "<a/>", "-H", "Content-Type: text/xml"])
            .args(["-H", &format!("Authorization: Bearer {SERVICE_KEY}")])
            .output()?;
        let problem: Value = serde_json::from_slice(&output.stdout)?;
        ensure!(problem["status"] == 415, "{id}: {problem}");
        let response = schema::follow(&tried.document, &operation["responses"]["415"])?;
        schema::check(&tried.document, &response["content"]["application/problem+json"]["schema"], &problem)?;
    }
    Ok(())
}

#[tokio::test]
async fn the_schedulers_api_is_as_documented() -> TestResult {
    let options = Options::default().env("BERTH_SCHEDULER__REQUESTS_PER_SECOND_PER_USER", 4);
    let server = Server::start(options).await?;
    let mut tried = Tried::new(&server, &server.at.scheduler).await?;
    let key_of = |security: &Value| {
        let keys = security.get(0)?.as_object()?;
        Some(if keys.contains_key("adminKey") { ADMIN_KEY.to_owned() } else { tokens::user("alice") })
    };
    tried.examples(key_of, "").await?;
    let case = |operation, key, body: &str, status| Case {
        operation,
        id: String::new(),
        query: "",
        key,
        body: Some(body.to_owned()),
        status,
    };
    let (bob, system) = (Some(tokens::user("bob")), Some(tokens::user("system")));
    for case in [
        case("schedule", None, "{}", 401),
        case("schedule", bob.clone(), "{}", 400),
        case("schedule", bob.clone(), "[]", 400),
        case("schedule", bob, r#"{"deviceId":"d","transports":["pigeon"]}"#, 400),
        case("schedule", system, r#"{"deviceId":"d"}"#, 403),
        case("explainSchedule", Some("wrong".to_owned()), "{}", 401),
        case("explainSchedule", Some(ADMIN_KEY.to_owned()), "{}", 400),
    ] {
        tried.ask(case).await?;
    }
    let (url, carol) = (format!("{}/v1/schedule", server.at.scheduler), tokens::user("carol"));
    for _ in 0..10 {
        http::post(&url, Some(&carol), &json!({"deviceId": "d"})).await?;
    }
    tried.ask(case("schedule", Some(carol), r#"{"deviceId":"d"}"#, 429)).await?;
    tried.complete()
}
