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

/// A policy, and the line, key and a part of the reason it is refused with.
const BROKEN: &[(&str, usize, &str, &str)] = &[
    ("", 1, "policy", "missing field `version`"),
    ("version = 0", 1, "version", "0 is not above 0"),
    ("\nversion = -3", 2, "version", "-3 is not above 0"),
    ("version = \"3\"", 1, "version", "invalid type: string"),
    ("version = 1.5", 1, "version", "invalid type: floating point"),
    ("version = 1\nversion = 2", 2, "policy", "duplicate key"),
    ("version = 1\nbogus", 2, "policy", "key with no value"),
    ("version = 1\n[loads]", 2, "loads", "unknown field `loads`"),
    ("version = 1\n[load]\nbond = 1", 3, "load.bond", "unknown field `bond`"),
    ("version = 1\n[load]\nbound = -0.1", 3, "load.bound", "-0.1 is not between 0 and 100"),
    ("version = 1\n[load]\nbound = nan", 3, "load.bound", "NaN is not between"),
    (
        "version = 1\n[load]\nslow_start_seconds = 1e9",
        3,
        "load.slow_start_seconds",
        "is not between 0 and 86400",
    ),
    ("version = 1\n[proximity]\nspill_at = 1.01", 3, "proximity.spill_at", "1.01 is not between 0 and 1"),
    ("version = 1\n[proximity]\nplaces = 1", 3, "proximity.places", "unknown field `places`"),
    ("version = 1\n[[proximity.place]]\nregion = \"eu\"", 2, "proximity.place[0]", "is of nobody"),
    (
        "version = 1\n[[proximity.place]]\nregion = \"eu\"\ncountries = [\"DE\", \"de\"]",
        4,
        "proximity.place[0].countries[1]",
        "\"de\" is no country code",
    ),
    (
        "version = 1\n[[proximity.place]]\nregion = \"eu\"\nsubdivisions = [\"HE\"]",
        4,
        "proximity.place[0].subdivisions[0]",
        "\"HE\" is no code of a subdivision",
    ),
    (
        "version = 1\n[[proximity.place]]\nregion = \"eu\"\nasns = [0]",
        4,
        "proximity.place[0].asns[0]",
        "0 is not between 1 and 4294967295",
    ),
    (
        "version = 1\n[[proximity.place]]\nregion = \"eu\"\ncidrs = [\"10.0.0.0/33\"]",
        4,
        "proximity.place[0].cidrs[0]",
        "is no network",
    ),
    (
        "version = 1\n[[proximity.region]]\nname = \"eu\"\nlat = 91\nlon = 0",
        4,
        "proximity.region[0].lat",
        "91 is not between -90 and 90",
    ),
    (
        "version = 1\n[[proximity.region]]\nname = \"eu\"\nlat = 1\nlon = 2\n[[proximity.region]]\nname = \"eu\"\nlat = 3\nlon = 4",
        6,
        "proximity.region[1]",
        "says again",
    ),
    (
        "version = 1\n[[proximity.distance]]\nbetween = [\"eu\", \"eu\"]\nms = 5",
        3,
        "proximity.distance[0].between",
        "\"eu\" is one region",
    ),
    (
        "version = 1\n[[proximity.distance]]\nbetween = [\"eu\", \"us\"]\nms = 5\n[[proximity.distance]]\nbetween = [\"us\", \"eu\"]\nms = 6",
        5,
        "proximity.distance[1]",
        "says again",
    ),
    (
        "version = 1\n[[proximity.distance]]\nbetween = [\"eu\", \"us\"]\nms = 0",
        4,
        "proximity.distance[0].ms",
        "0 is not between 1 and 2000",
    ),
    ("version = 1\n[[home]]\nusers = []", 2, "home[0]", "missing field `region`"),
    ("version = 1\n[[home]]\nregion = \"eu\"", 2, "home[0]", "names nobody"),
    ("version = 1\n[[home]]\nregion = \"\"\nusers = []", 3, "home[0].region", "has 0 bytes"),
    (
        "version = 1\n[[home]]\nregion = \"eu\"\nbuckets = [5, 5]",
        4,
        "home[0].buckets",
        "[5, 5] is no half-open",
    ),
    (
        "version = 1\n[[home]]\nregion = \"eu\"\nbuckets = [-1, 5]",
        4,
        "home[0].buckets",
        "[-1, 5] is no half-open",
    ),
    (
        "version = 1\n[[home]]\nregion = \"eu\"\nbuckets = [0, 10001]",
        4,
        "home[0].buckets",
        "within [0, 10000]",
    ),
    ("version = 1\n[[home]]\nregion = \"eu\"\nbuckets = [0]", 4, "home[0].buckets", "invalid length 1"),
    ("version = 1\n[[gray]]\nid = \"a\"", 2, "gray[0]", "missing field `pool`"),
    ("version = 1\n[[gray]]\nid = \"a\"\npool = \"b\"", 2, "gray[0]", "percent is missing"),
    ("version = 1\n[[gray]]\nid = \"a b\"\npool = \"b\"\npercent = 1", 3, "gray[0].id", "contains ' '"),
    ("version = 1\n[[gray]]\nid = \"a\"\npool = \"\"\npercent = 1", 4, "gray[0].pool", "is empty"),
    (
        "version = 1\n[[gray]]\nid = \"a\"\npool = \"b\"\npercent = 101",
        5,
        "gray[0].percent",
        "101 is not between 0 and 100",
    ),
    (
        "version = 1\n[[gray]]\nid = \"a\"\npool = \"b\"\nusers = [\"x\", \"\"]",
        5,
        "gray[0].users[1]",
        "is empty",
    ),
    (
        "version = 1\n[[gray]]\nid = \"a\"\npool = \"b\"\npercent = \"5%\"",
        5,
        "gray[0].percent",
        "invalid type: string",
    ),
    (
        "version = 1\n[[gray]]\nid = \"a\"\npool = \"b\"\nusers = [\"x\"]\nmatch = { platforms = [\"ios\"] }",
        2,
        "gray[0]",
        "percent is missing",
    ),
    (
        "version = 1\n[[gray]]\nid = \"a\"\npool = \"b\"\npercent = 1\n[[gray]]\nid = \"a\"\npool = \"c\"\npercent = 1",
        7,
        "gray[1].id",
        "\"a\" is the id of an earlier rule too",
    ),
    (
        "version = 1\n[[gray]]\nid = \"a\"\npool = \"b\"\npercent = 1\n[gray.match]\nplatforms = [\"ios\", \"iOS\"]",
        7,
        "gray[0].match.platforms[1]",
        "\"iOS\" is none of ios, android, web, desktop, server",
    ),
    (
        "version = 1\n[[gray]]\nid = \"a\"\npool = \"b\"\npercent = 1\nmatch.app_version = \"seven\"",
        6,
        "gray[0].match.app_version",
        "\"seven\"",
    ),
    (
        "version = 1\n[[gray]]\nid = \"a\"\npool = \"b\"\npercent = 1\nmatch.cidrs = [\"10.0.0.0/33\"]",
        6,
        "gray[0].match.cidrs[0]",
        "\"10.0.0.0/33\" is no network",
    ),
    (
        "version = 1\n[[gray]]\nid = \"a\"\npool = \"b\"\npercent = 1\nmatch.versions = \">7\"",
        6,
        "gray[0].match.versions",
        "unknown field `versions`",
    ),
];

#[test]
fn broken_policies_are_refused_with_line_key_and_reason() {
    for (text, line, key, reason) in BROKEN {
        let error = parse(text).expect_err(text);
        assert_eq!((error.line, error.key.as_str()), (*line, *key), "{text:?}: {error}");
        assert!(error.reason.contains(reason), "{text:?}: {error}");
        assert!(!error.to_string().contains('\n'), "{text:?}: one line for the log: {error}");
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
        region: "cn-east",
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
        (Client { region: "", ..fitting.clone() }, "regions"),
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
    let buckets = |percent: &str| {
        let text = format!("version = 1\n[[gray]]\nid = \"a\"\npool = \"b\"\npercent = {percent}");
        parse(&text).expect("a policy").gray[0].buckets
    };
    assert_eq!(["0", "0.07", "1.1", "5.0", "99.99", "100"].map(buckets), [0, 7, 110, 500, 9_999, 10_000]);
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
fn only_a_higher_version_replaces() {
    let store = PolicyStore::new(Policy::default());
    assert_eq!(store.offer("version = 2"), Ok(Taken::New));
    assert_eq!(store.offer("version = 2"), Ok(Taken::Same));
    assert_eq!(store.offer("version = 2 # changed"), Err(Refused::OtherText(2)));
    assert_eq!(store.offer("version = 1"), Err(Refused::Older { current: 2, offered: 1 }));
    assert!(matches!(store.offer("version = "), Err(Refused::Broken(_))));
    assert_eq!(store.load().text, "version = 2", "what was refused replaced nothing");
    assert_eq!(store.offer("version = 9"), Ok(Taken::New));
    assert_eq!(store.load().version, 9);
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
        1 => scalar.prop_map(|value| format!("{{ platforms = [\"ios\"], app_version = {value} }}")),
    ]
}

/// A table of the policy with some of its keys, and perhaps one that it has not.
fn arb_table() -> impl Strategy<Value = String> {
    let tables: Vec<(&str, &[&str])> = vec![
        ("[[home]]", &["region", "users", "buckets", "bogus"]),
        ("[[gray]]", &["id", "pool", "users", "percent", "salt", "match"]),
        ("[[gray]]", &["id", "pool", "percent", "match.platforms", "match.app_version", "match.regions"]),
        ("[[gray]]", &["id", "pool", "percent", "match.cidrs", "match.devices", "match.bogus"]),
        ("[proximity]", &["spill_at"]),
        ("[[proximity.place]]", &["region", "countries", "subdivisions", "asns", "cidrs"]),
        ("[[proximity.region]]", &["name", "lat", "lon"]),
        ("[[proximity.distance]]", &["between", "ms", "bogus"]),
        ("[load]", &["bound", "slow_start_seconds"]),
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
                for place in &policy.proximity.places {
                    prop_assert!(!place.region.is_empty() && place.asns.is_sorted());
                }
                for home in &policy.homes {
                    prop_assert!(!home.region.is_empty() && home.buckets.end <= BUCKETS);
                }
                for rule in &policy.gray {
                    prop_assert!(!rule.id.is_empty() && !rule.pool.is_empty() && !rule.salt.is_empty());
                    prop_assert!((0.0..=100.0).contains(&rule.percent) && rule.buckets <= BUCKETS);
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
