//! Policies that are taken, a table of those that are not with the message each gets, and what may replace what.

use berth_proto::bucket::BUCKETS;
use proptest::prelude::*;

use super::*;
use crate::locate::{DistanceBy, Locality};

const DOCUMENTED: &str = r#"
version = 3
[[home]]
region = "cn-east"
users = ["alice"]
[[home]]
region = "cn-west"
buckets = [0, 5000]
[[gray]]
id = "canary-ios"
pool = "canary"
users = ["alice"]
percent = 5.0
match = { platforms = ["ios"], app_version = ">=7.3.0, <8", regions = ["cn-east"], cidrs = ["10.0.0.0/8"], devices = ["d-1"] }
[[gray]]
id = "named"
pool = "next"
users = ["bob"]
[proximity]
spill_at = 0.5
[[proximity.place]]
region = "cn-east"
countries = ["CN"]
subdivisions = ["CN-SH"]
asns = [4134, 4812]
cidrs = ["203.0.113.0/24"]
[[proximity.region]]
name = "cn-east"
lat = 31.2
lon = 121.5
[[proximity.region]]
name = "eu"
lat = 50.1
lon = 8.7
[[proximity.distance]]
between = ["cn-east", "us"]
ms = 130
[load]
bound = 0
slow_start_seconds = 1.5
"#;

#[test]
fn the_documents_policy_is_taken() {
    let policy = parse(DOCUMENTED).expect("PROTOCOL.md's own");
    assert_eq!((policy.version, policy.spill_at, policy.bound, policy.slow_start_ms), (3, 0.5, 0.0, 1_500));
    assert_eq!(policy.text, DOCUMENTED);
    assert_eq!(policy.hash.len(), 64);
    assert!(policy.homes[0].users.contains("alice") && policy.homes[0].buckets.is_empty());
    assert_eq!(policy.homes[1].buckets, 0..5_000);
    let rule = &policy.gray[0];
    assert_eq!((rule.salt.as_str(), rule.percent), ("canary-ios", 5.0), "the salt defaults to the id");
    assert_eq!(rule.matcher.platforms, [Platform::Ios]);
    assert_eq!(policy.gray[1].percent, 0.0, "named users only");
}

#[test]
fn the_places_of_the_operators_document_are_a_policy() {
    let document = include_str!("../../../docs/proximity.md");
    let block =
        document.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).expect("a block");
    let policy = parse(block).expect("what operators copy");
    assert_eq!(policy.proximity.places.len(), 4);
    assert!(policy.proximity.from("sa").is_some_and(|from| from.to("cn-east").is_some()));
}

#[test]
fn defaults_are_the_documents() {
    let policy = parse("version = 1").expect("nothing else is required");
    assert_eq!((policy.spill_at, policy.bound, policy.slow_start_ms), (0.85, 0.25, 30_000));
    assert!(policy.gray.is_empty() && policy.homes.is_empty());
}

/// Policies that are refused, and the message each gets, as the operators' document tells them.
fn refused() -> Vec<(String, &'static str)> {
    let rows = include_str!("../../../docs/policy-errors.md").lines().filter_map(|line| {
        let (text, message) = line.strip_prefix("| `` ")?.strip_suffix(" `` |")?.split_once(" `` | `` ")?;
        Some((text.replace(" ⏎ ", "\n"), message))
    });
    rows.collect()
}

#[test]
fn broken_policies_are_refused_as_the_document_says() {
    let table = refused();
    assert!(table.len() > 60, "{} rows", table.len());
    for (text, message) in table {
        let error = parse(&text).expect_err(&text);
        assert_eq!(error.to_string(), message, "{text:?}");
        assert!(!message.contains('\n'), "{text:?}: one line for the log");
    }
}

#[test]
fn a_policy_has_limits() {
    let long = format!("version = 1\n# {}", "x".repeat(MAX_TEXT));
    assert!(parse(&long).expect_err("too long").reason.contains("at most 1048576"));
    let rule = |n| format!("[[gray]]\nid = \"r{n}\"\npool = \"p\"\npercent = 1\n");
    let many: String = (0..257).map(rule).collect();
    let error = parse(&format!("version = 1\n{many}")).expect_err("too many rules");
    assert_eq!((error.line, error.key.as_str()), (2 + 256 * 4, "gray"));
}

#[test]
fn places_and_distances_are_as_written() {
    let proximity = parse(DOCUMENTED).expect("the document's own").proximity;
    let place = |ip: &str, subdivision, asn| {
        let locality = Locality::of("CN", subdivision).in_as(asn);
        proximity.place(ip.parse().expect("an address"), locality).map(|(_, region)| region)
    };
    assert_eq!(place("203.0.113.1", "SH", 4812), Some("cn-east"));
    assert_eq!(place("203.0.114.1", "SH", 4812), None, "every list that is given counts");
    assert_eq!(place("203.0.113.1", "ZJ", 4812), None);
    assert_eq!(place("203.0.113.1", "SH", 4809), None);
    let far = |from, to| proximity.from(from).and_then(|from| from.to(to)).map(|far| (far.ms, far.by));
    assert_eq!(far("us", "cn-east"), Some((130, DistanceBy::Distance)), "in both directions");
    assert_eq!(far("eu", "cn-east"), Some((147, DistanceBy::Coordinates)), "8,850 km");
    assert_eq!((far("us", "eu"), far("eu", "eu"), far("mars", "eu")), (None, None, None));
    let many: String =
        (0..65).map(|n| format!("[[proximity.region]]\nname = \"r{n}\"\nlat = {n}\nlon = 1\n")).collect();
    let error = parse(&format!("version = 1\n{many}")).expect_err("too many regions");
    assert_eq!((error.line, error.key.as_str()), (2 + 64 * 4, "proximity.region[64]"));
}

#[test]
fn every_condition_of_a_match_counts() {
    let matcher = &parse(DOCUMENTED).expect("PROTOCOL.md's own").gray[0].matcher;
    let fitting = Client {
        platform: Some(Platform::Ios),
        app_version: app_version("7.3"),
        region: "",
        origin: "cn-east",
        zone: "",
        ip: Some([10, 1, 2, 3].into()),
        device_id: "d-1",
    };
    assert_eq!(matcher.mismatch(&fitting), None);
    let cases = [
        (Client { platform: None, ..fitting.clone() }, "platforms"),
        (Client { platform: Some(Platform::Web), ..fitting.clone() }, "platforms"),
        (Client { app_version: app_version("8.0.0"), ..fitting.clone() }, "app_version"),
        (Client { app_version: app_version("8.0.0-beta.1"), ..fitting.clone() }, "app_version"),
        (Client { app_version: app_version("7.2.9-rc.1"), ..fitting.clone() }, "app_version"),
        (Client { app_version: None, ..fitting.clone() }, "app_version"),
        (Client { origin: "", ..fitting.clone() }, "regions"),
        (Client { ip: Some([11, 1, 2, 3].into()), ..fitting.clone() }, "cidrs"),
        (Client { ip: None, ..fitting.clone() }, "cidrs"),
        (Client { device_id: "d-2", ..fitting.clone() }, "devices"),
    ];
    for (client, key) in cases {
        assert_eq!(matcher.mismatch(&client), Some(key), "{client:?}");
    }
    assert_eq!(Matcher::default().mismatch(&Client::default()), None, "no condition asks nothing");
}

#[test]
fn pre_releases_are_taken_for_their_releases() {
    let fits = |required: &str, version: &str| {
        let version = app_version(version).expect("a version");
        fits(&required.parse().expect("a requirement"), &version)
    };
    for version in ["7.4.0-beta.1", "7.3.0-beta", "7.9.9-rc.1+build.5"] {
        assert!(fits(">=7.3.0, <8", version), "{version}");
    }
    for version in ["8.0.0-beta.1", "7.2.9-rc.1"] {
        assert!(!fits(">=7.3.0, <8", version), "{version}");
    }
    assert!(fits(">=7.3.0-beta.2", "7.3.0-beta.2"), "by itself");
    assert!(fits("=7.4.0-beta.1", "7.4.0-beta.1") && !fits("=7.4.0-beta.1", "7.4.0-beta.2"));
}

#[test]
fn a_percentage_is_whole_buckets() {
    let takes = |percent: &str| {
        let text = format!("version = 1\n[[gray]]\nid = \"a\"\npool = \"b\"\npercent = {percent}");
        parse(&text).expect("a policy").gray[0].takes.clone()
    };
    assert_eq!(
        ["0", "0.07", "1.1", "5.0", "99.99", "100"].map(takes),
        [0.0, 0.07, 1.1, 5.0, 99.99, 100.0].map(Takes::percent)
    );
}

const RAMP: &str = r#"
version = 1
[[gray]]
id = "a"
pool = "b"
percent = 1
ramp = [
  { at = 2026-12-01T10:00:00Z, percent = 5 },
  { at = "2026-12-01T12:00:00+01:00", percent = 25 },
  { at = 2026-12-01 12:00:00.5Z, percent = 5 },
]
[gray.guard]
connect_failures = 0.02
handshake_p99 = 2
"#;

#[test]
fn a_ramp_goes_by_its_steps() {
    let policy = parse(RAMP).expect("times in every form");
    let ten = 1_796_119_200_000;
    let rule = &policy.gray[0];
    let percent =
        [0, ten - 1, ten, ten + 3_599_999, ten + 3_600_000, ten + 7_200_499, ten + 7_200_500, i64::MAX]
            .map(|at_ms| rule.percent_at(at_ms));
    assert_eq!(percent, [1.0, 1.0, 5.0, 5.0, 25.0, 25.0, 5.0, 5.0]);
    assert_eq!(rule.next_step(ten).map(|step| step.percent), Some(25.0));
    assert_eq!(rule.next_step(i64::MAX), None);
    assert_eq!(policy.gray[0].takes, Takes::percent(1.0), "before any step");
    let later = policy.at(ten, &Stops::new()).expect("another share");
    assert_eq!(later.gray[0].takes, Takes::percent(5.0));
    assert!(later.at(ten + 1, &Stops::new()).is_none(), "nothing is another");
    assert_ne!(later.placement, policy.placement);
    let guard = rule.guard.expect("given");
    assert_eq!((guard.abnormal_closes, guard.window_seconds, guard.min_handshakes), (None, 60, 50));
}

#[test]
fn a_stop_is_of_one_definition_of_a_rule() {
    let hash = |text: &str| parse(text).expect("a policy").gray[0].hash.clone();
    let same = ["# a comment\n", ""].map(|comment| hash(&format!("{comment}{RAMP}")));
    assert_eq!(same[0], same[1]);
    let others = [
        ("percent = 1", "percent = 2"),
        ("= 0.02", "= 0.03"),
        ("percent = 25", "percent = 26"),
        ("\"b\"", "\"c\""),
    ];
    for (from, to) in others {
        assert_ne!(hash(&RAMP.replace(from, to)), same[0], "{to}");
    }
    let users =
        |list: &str| hash(&format!("version = 1\n[[gray]]\nid = \"a\"\npool = \"b\"\nusers = {list}"));
    assert_eq!(users("[\"x\", \"y\"]"), users("[\"y\", \"x\"]"));
    assert_ne!(users("[\"x\", \"y\"]"), users("[\"x, y\"]".replace(", ", ".").as_str()));
    let store = PolicyStore::new(parse(RAMP).expect("a policy"));
    let stop = || Some(Stop { reason: "why".to_owned(), by: "guard".to_owned(), at_ms: 5 });
    assert!(
        store.put_stop(&same[0], stop(), 0).is_some() && store.put_stop(&same[0], stop(), 1).is_none(),
        "once"
    );
    assert!(!store.load().gray[0].sends());
    let other = RAMP.replace("= 25", "= 26");
    let mut next = 1;
    let mut sends_in_the_next = |text: &str| {
        next += 1;
        let text = text.replace("version = 1", &format!("version = {next}"));
        let taken = store.offer(&text, Offered::Here, 0).expect("a higher version");
        taken.policy().gray[0].sends()
    };
    assert!(!sends_in_the_next(RAMP), "the same rule in the next version");
    assert!(store.put_stop(&hash(&other), stop(), 0).is_none(), "another definition, which is not in force");
    assert!(!sends_in_the_next(&other), "it was stopped before it came");
    assert!(store.put_stop(&hash(&other), None, 0).is_some());
    assert!(!sends_in_the_next(RAMP), "the first one is stopped as before");
    assert!(sends_in_the_next(&RAMP.replace("= 25", "= 27")), "another one");
    assert!(store.put_stop(&same[0], None, 0).is_none());
}

#[test]
fn a_text_gets_another_version_and_is_else_the_same() {
    let text = "# version = 9\n[load]\nbound = 1\n";
    assert!(with_version(text, 5).is_err());
    let text = format!("# version = 9\nversion   = 3 # three\n{text}");
    assert_eq!(with_version(&text, 12), Ok(text.replace("= 3 #", "= 12 #")));
}

#[test]
fn an_address_alone_is_a_network() {
    let text =
        "version = 1\n[[gray]]\nid = \"a\"\npool = \"b\"\npercent = 1\nmatch.cidrs = [\"::1\", \"10.9.8.7\"]";
    let matcher = &parse(text).expect("both forms").gray[0].matcher;
    let at = |ip: &str| Client { ip: ip.parse().ok(), ..Client::default() };
    assert_eq!(matcher.mismatch(&at("10.9.8.7")), None);
    assert_eq!(matcher.mismatch(&at("::1")), None);
    assert_eq!(matcher.mismatch(&at("10.9.8.8")), Some("cidrs"));
}

#[test]
fn versions_as_apps_write_them() {
    for (text, read) in
        [("7.3.1", Some("7.3.1")), ("7.3", Some("7.3.0")), ("7", Some("7.0.0")), ("", None), ("v7", None)]
    {
        assert_eq!(app_version(text).map(|version| version.to_string()).as_deref(), read, "{text}");
    }
}

#[test]
fn only_a_higher_version_replaces_or_what_was_agreed_on() {
    let store = PolicyStore::new(Policy::default());
    let offer = |text: &str, from| store.offer(text, from, 0).map(|taken| matches!(taken, Taken::New(_)));
    assert_eq!(offer("version = 2000000", Offered::Here), Ok(true), "the first begins where it likes");
    assert_eq!(offer("version = 2000000", Offered::Here), Ok(false));
    assert_eq!(offer("version = 2000000 # changed", Offered::Here), Err(Refused::OtherText(2_000_000)));
    assert_eq!(offer("version = 1", Offered::Agreed), Err(Refused::Older { current: 2_000_000, offered: 1 }));
    assert!(matches!(offer("version = ", Offered::Agreed), Err(Refused::Broken(_))));
    let leap = Refused::Leap { current: 2_000_000, offered: 3_000_001 };
    assert!(leap.to_string().contains("3000001 is more than 1000000 above 2000000"), "{leap}");
    assert_eq!(offer("version = 3000001", Offered::Here), Err(leap));
    assert_eq!(store.load().text, "version = 2000000", "what was refused replaced nothing");
    assert_eq!(offer("version = 2000000 # changed", Offered::Agreed), Ok(true), "all keep this one");
    assert_eq!(offer("version = 3000000", Offered::Here), Ok(true));
    assert_eq!(offer("version = 9000000", Offered::Agreed), Ok(true), "it was down for long");
}

fn arb_time() -> impl Strategy<Value = String> {
    prop_oneof![
        (0..4_000_000_000_000i64).prop_map(rfc3339),
        (0..4_000_000_000_000i64).prop_map(|ms| format!("{:?}", rfc3339(ms))),
        "[0-9]{1,4}-[0-9]{2}-[0-9]{2}(T[0-9]{2}:[0-9]{2}(:[0-9]{2})?([+-][0-9]{2}:[0-9]{2}|Z)?)?",
    ]
}

/// Any value that a key might be given: of the right type or not, in range or far out.
fn arb_value() -> impl Strategy<Value = String> {
    let number = prop_oneof![
        any::<i64>().prop_map(|n| n.to_string()),
        (-200..200i64).prop_map(|n| n.to_string()),
        any::<f64>().prop_map(|n| format!("{n:?}").replace("NaN", "nan")),
        (-1.0..101.0f64).prop_map(|n| format!("{n:?}")),
    ];
    let text = prop_oneof![
        "[ -~]{0,80}",
        "[<>=^~]{0,2}[0-9.]{0,8}(-[a-z.0-9]{0,4})?",
        "[0-9a-f.:]{0,20}/?[0-9]{0,4}",
        prop::sample::select(vec!["ios", "web", "alice", "canary", ""]).prop_map(str::to_owned),
    ];
    let text = text.prop_map(|text| format!("{text:?}"));
    let scalar =
        prop_oneof![4 => number, 4 => text, 1 => Just("true".to_owned()), 1 => Just("1979-05-27".to_owned())];
    prop_oneof![
        3 => scalar.clone(),
        2 => prop::collection::vec(scalar.clone(), 0..4).prop_map(|list| format!("[{}]", list.join(", "))),
        1 => scalar.clone().prop_map(|value| format!("{{ platforms = [\"ios\"], app_version = {value} }}")),
        1 => (arb_time(), scalar).prop_map(|(at, value)| format!("[{{ at = {at}, percent = {value} }}]")),
    ]
}

/// A table of the policy with some of its keys, and perhaps one that it has not.
fn arb_table() -> impl Strategy<Value = String> {
    let tables: Vec<(&str, &[&str])> = vec![
        ("[[home]]", &["region", "users", "buckets", "bogus"]),
        ("[[gray]]", &["id", "pool", "users", "percent", "salt", "match"]),
        ("[[gray]]", &["id", "pool", "percent", "match.platforms", "match.app_version", "match.regions"]),
        ("[[gray]]", &["id", "pool", "percent", "match.cidrs", "match.devices", "match.bogus"]),
        (
            "[[gray]]",
            &["id", "pool", "ramp", "guard.connect_failures", "guard.window_seconds", "guard.bogus"],
        ),
        (
            "[[gray]]",
            &["id", "pool", "ramp", "guard.abnormal_closes", "guard.handshake_p99", "guard.min_handshakes"],
        ),
        ("[proximity]", &["spill_at"]),
        ("[[proximity.place]]", &["region", "countries", "subdivisions", "asns", "cidrs"]),
        ("[[proximity.region]]", &["name", "lat", "lon"]),
        ("[[proximity.distance]]", &["between", "ms", "bogus"]),
        ("[load]", &["bound", "slow_start_seconds"]),
        (
            "[move]",
            &["per_second", "handshake_p99_ms", "connect_failures", "min_handshakes", "lost", "bogus"],
        ),
    ];
    let values = prop::collection::vec((prop::bool::weighted(0.8), arb_value()), 6);
    (prop::sample::select(tables), values).prop_map(|((head, keys), values)| {
        let given = keys.iter().zip(values).filter(|(_, (given, _))| *given);
        let lines: String = given.map(|(key, (_, value))| format!("{key} = {value}\n")).collect();
        format!("{head}\n{lines}")
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn no_text_panics(text in "[a-z0-9=\\[\\]\"., {}\n#-]{0,200}") {
        let _ = parse(&text);
    }

    #[test]
    fn wild_values_are_refused_with_their_place_or_in_range(
        version in prop_oneof![3 => Just("3".to_owned()), 1 => arb_value()],
        tables in prop::collection::vec(arb_table(), 0..4),
    ) {
        let text = format!("version = {version}\n{}", tables.concat());
        match parse(&text) {
            Ok(policy) => {
                prop_assert!(policy.version > 0);
                prop_assert!((0.0..=1.0).contains(&policy.spill_at) && (0.0..=100.0).contains(&policy.bound));
                prop_assert!((0..=86_400_000).contains(&policy.slow_start_ms));
                let MoveLimits { connect_failures, min_handshakes, lost, .. } = policy.move_limits;
                let shares = 0.0..=1.0;
                prop_assert!(shares.contains(&connect_failures) && shares.contains(&lost) && min_handshakes > 0);
                for place in &policy.proximity.places {
                    prop_assert!(!place.region.is_empty() && place.asns.is_sorted());
                }
                for home in &policy.homes {
                    prop_assert!(!home.region.is_empty() && home.buckets.end <= BUCKETS);
                }
                for rule in &policy.gray {
                    prop_assert!(!rule.id.is_empty() && !rule.pool.is_empty() && !rule.salt.is_empty());
                    prop_assert!((0.0..=100.0).contains(&rule.percent) && rule.takes == Takes::percent(rule.percent));
                    prop_assert!(rule.ramp.is_sorted_by(|a, b| a.at_ms < b.at_ms));
                    prop_assert!(rule.ramp.iter().all(|step| (0.0..=100.0).contains(&step.percent)));
                    if let Some(guard) = rule.guard {
                        prop_assert!((1..=MAX_WINDOW).contains(&guard.window_seconds) && guard.min_handshakes > 0);
                    }
                    let _ = rule.matcher.mismatch(&Client::default());
                }
            }
            Err(error) => {
                prop_assert!((1..=text.lines().count() + 1).contains(&error.line), "{}", error);
                prop_assert!(!error.key.is_empty() && !error.reason.is_empty());
                prop_assert!(!error.to_string().contains('\n'), "one line for the log: {}", error);
            }
        }
    }
}

#[test]
fn what_homes_do_when_down_and_how_fast_users_are_moved() {
    let policy = parse("version = 1\n[[home]]\nregion = \"eu\"\nusers = [\"a\"]\nwhen_down = \"wait\"\n[move]\nper_second = 0")
        .expect("valid");
    assert_eq!((policy.homes[0].when_down, policy.moves_per_second), (WhenDown::Wait, 0));
    let policy = parse("version = 1\n[[home]]\nregion = \"eu\"\nusers = [\"a\"]").expect("valid");
    assert_eq!((policy.homes[0].when_down, policy.moves_per_second), (WhenDown::Elsewhere, 100));
    assert_eq!(policy.move_limits, MoveLimits::default());
    let limits = "handshake_p99_ms = 0\nconnect_failures = 1\nmin_handshakes = 9\nlost = 0.25";
    let policy = parse(&format!("version = 1\n[move]\n{limits}")).expect("valid");
    let limits = MoveLimits { handshake_p99_ms: 0, connect_failures: 1.0, min_handshakes: 9, lost: 0.25 };
    assert_eq!((policy.move_limits, policy.moves_per_second), (limits, 100));
    for (text, line, key, reason) in [
        (
            "version = 1\n[[home]]\nregion = \"eu\"\nusers = [\"a\"]\nwhen_down = \"never\"",
            5,
            "home[0].when_down",
            "\"never\" is neither elsewhere nor wait",
        ),
        ("version = 1\n[move]\nper_second = -1", 3, "move.per_second", "-1 is not between 0 and 10000"),
        ("version = 1\n[move]\nrate = 1", 3, "move.rate", "unknown field"),
    ] {
        let error = parse(text).expect_err(text);
        assert_eq!((error.line, error.key.as_str()), (line, key), "{error}");
        assert!(error.reason.contains(reason), "{error}");
    }
}
