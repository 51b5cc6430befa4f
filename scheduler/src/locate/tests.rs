//! Where clients are found, and how far regions are from there: by hint, by address, by policy and by votes.

use std::{error::Error, net::IpAddr};

use berth_proto::metric::Registry;
use metrics_exporter_prometheus::PrometheusBuilder;
use proptest::prelude::*;

use super::{
    mmdb::{self, Field},
    *,
};
use crate::{fleet::Table, metrics::Proximity, policy::parse, testing::report};

const POLICY: &str = r#"
version = 1
[[proximity.place]]
region = "office"
cidrs = ["198.51.100.0/24"]
[[proximity.place]]
region = "cn-east"
countries = ["CN"]
subdivisions = ["CN-SH", "CN-ZJ"]
[[proximity.place]]
region = "cn-north"
countries = ["CN"]
[[proximity.place]]
region = "eu"
asns = [3320]
[[proximity.region]]
name = "cn-east"
lat = 31.2
lon = 121.5
[[proximity.region]]
name = "cn-north"
lat = 39.9
lon = 116.4
[[proximity.region]]
name = "eu"
lat = 50.1
lon = 8.7
[[proximity.distance]]
between = ["cn-east", "us"]
ms = 30
"#;

fn fleet() -> Fleet {
    let mut table = Table::default();
    for region in ["", "cn-east", "cn-north", "eu", "us"] {
        for pool in ["canary", "stable"] {
            let mut report = report(&format!("{pool}-{region}1"));
            (report.region, report.pool) = (region.to_owned(), pool.to_owned());
            table.take(1, &report, 0).expect("a valid report");
        }
    }
    table.snapshot(0, 0)
}

fn bytes() -> Vec<u8> {
    let networks = [
        ("203.0.113.0/24", Field::city("CN", "", 0)),
        ("203.0.113.128/25", Field::city("CN", "SH", 4134)),
        ("192.0.2.0/24", Field::Map(vec![("country_code", Field::Text("FR"))])),
        ("2001:db8::/32", Field::city("DE", "", 3320)),
    ];
    mmdb::database(&networks, 1_700_000_000)
}

fn database() -> Database {
    Database::read(bytes()).expect("a database")
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

#[test]
fn addresses_are_looked_up() {
    let database = database();
    assert_eq!(database.built_at_s(), 1_700_000_000);
    let found = |address| database.find(ip(address)).map(|found| found.to_string());
    assert_eq!(found("203.0.113.1").as_deref(), Some("CN"));
    assert_eq!(found("203.0.113.200").as_deref(), Some("AS4134 CN-SH"));
    assert_eq!(found("192.0.2.1").as_deref(), Some("FR"));
    assert_eq!(found("2001:db8:5::1").as_deref(), Some("AS3320 DE"));
    assert_eq!((found("203.0.114.1"), found("2001:db9::1")), (None, None));
}

#[test]
fn a_field_of_another_type_is_no_damage() {
    let fields = vec![
        ("country", Field::Text("China")),
        ("country_code", Field::Text("CN")),
        ("autonomous_system_number", Field::U16(4134)),
        ("subdivisions", Field::U64(3)),
    ];
    let database =
        Database::read(mmdb::database(&[("0.0.0.0/0", Field::Map(fields))], 1)).expect("a database");
    assert_eq!(database.find(ip("203.0.113.1")).map(|found| found.to_string()).as_deref(), Some("AS4134 CN"));
}

#[test]
fn what_is_no_database_is_refused_with_its_reason() {
    let refused = |bytes: Vec<u8>| {
        let error = Database::read(bytes).err().expect("refused");
        format!("{error}: {}", error.source().map(ToString::to_string).unwrap_or_default())
    };
    let cut = bytes()[..bytes().len() / 2].to_vec();
    for broken in [Vec::new(), b"version = 1".to_vec(), cut] {
        assert!(refused(broken).contains("could not find MaxMind DB metadata"));
    }
    let tags = Field::Map(vec![("tag", Field::Text("x"))]);
    assert!(refused(mmdb::database(&[("0.0.0.0/0", tags)], 1)).starts_with("has no country"));
    // Every end of the tree is visited, so a record that leads out of the file is found at once, whoever it is of.
    let mut outside = bytes();
    let empty =
        outside.windows(4).position(|four| four == [0, 0, 0, 1]).expect("the first node leads to the second");
    outside[empty..empty + 4].copy_from_slice(&[0x7f, 0, 0, 0]);
    assert!(refused(outside).contains("pointer"), "it is damaged");
    // A chain of nodes whose sides both lead to the next has 2^100 ends.
    let node = |next: u32| [next.to_be_bytes(), next.to_be_bytes()].concat();
    let mut chain: Vec<u8> = (1..=100).flat_map(node).collect();
    let tail = mmdb::database(&[("0.0.0.0/0", Field::city("CN", "", 0))], 1);
    let nodes = 96;
    chain.truncate(nodes * 8);
    chain[(nodes - 1) * 8..].copy_from_slice(&node(u32::try_from(nodes).expect("small")));
    chain.extend_from_slice(&tail[nodes * 8..]);
    assert!(refused(chain).contains("circles"));
}

/// A client as the tests below locate it.
fn located(
    hint: &str,
    address: Option<&str>,
    rtt_ms: &[(&str, u32)],
) -> (String, RegionBy, Vec<(String, u32)>) {
    let (fleet, policy, votes) = (fleet(), parse(POLICY).expect("a policy"), Votes::default());
    let rtt_ms = rtt_ms.iter().map(|(id, ms)| ((*id).to_owned(), *ms)).collect();
    let claim = Claim { hint, came_to: "", ip: address.map(ip), rtt_ms: &rtt_ms };
    let located = locate(&fleet, &policy, Some(&database()), &votes, &claim, 0);
    let near = located.near.as_slice().iter().map(|near| (near.region.to_owned(), near.ms));
    (located.region.to_owned(), located.by, near.collect())
}

#[test]
fn a_hint_of_a_known_region_stands_before_the_address_and_another_after_it() {
    let region = |hint, address| {
        let (region, by, _) = located(hint, address, &[]);
        (region, by)
    };
    let shanghai = Some("203.0.113.200");
    assert_eq!(region("eu", shanghai), ("eu".to_owned(), RegionBy::Hint));
    assert_eq!(region("mars", shanghai), ("cn-east".to_owned(), RegionBy::Place(1)));
    assert_eq!(region("mars", Some("8.8.8.8")), ("mars".to_owned(), RegionBy::Hint));
    assert_eq!(region("", Some("203.0.113.1")), ("cn-north".to_owned(), RegionBy::Place(2)), "by country");
    assert_eq!(region("", Some("2001:db8::1")), ("eu".to_owned(), RegionBy::Place(3)), "by system");
    assert_eq!(region("", Some("198.51.100.9")), ("office".to_owned(), RegionBy::Place(0)), "by network");
    assert_eq!(region("", Some("192.0.2.1")), (String::new(), RegionBy::Nothing), "no place is France");
    assert_eq!(region("", None), (String::new(), RegionBy::Nothing));
}

#[test]
fn regions_come_by_their_distance() {
    let near = |address, rtt_ms: &[(&str, u32)]| located("", Some(address), rtt_ms).2;
    let named = |near: Vec<(String, u32)>| near.into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    let from_shanghai = near("203.0.113.200", &[]);
    assert_eq!(from_shanghai[..2], [("cn-north".to_owned(), 18), ("us".to_owned(), 30)], "1,070 km; said");
    assert_eq!(named(from_shanghai), ["cn-north", "us", "eu"]);
    let measured =
        [("stable-eu1", 25), ("canary-eu1", 20), ("stable-us1", 500), ("nobody", 1), ("stable-1", 1)];
    let measuring = near("203.0.113.200", &measured);
    assert_eq!(measuring[1], ("eu".to_owned(), 20), "the lowest of the region, whatever the pool");
    assert_eq!(named(measuring), ["cn-north", "eu", "us"], "measured stands before what the policy says");
    assert_eq!(named(near("192.0.2.1", &measured)), ["eu", "us"], "somewhere, with what it measured");
}

#[test]
fn few_votes_leave_it_to_geography_and_many_rule_alone() {
    let geography = Some(Geography { ms: 100, by: DistanceBy::Distance });
    let votes = |fresh: u64| Some(Tally { ms: 20, votes: 15, weight: fresh * u64::from(LIFETIME_S) });
    let mixed = [0, 2, 3, 6, 9, 12, 15].map(|fresh| distance(geography, votes(fresh)));
    assert_eq!(mixed.map(|found| found.expect("known").0), [100, 100, 100, 73, 46, 20, 20]);
    assert_eq!(
        mixed.map(|found| found.expect("known").1 == DistanceBy::Votes),
        [false, false, true, true, true, true, true]
    );
    assert_eq!(distance(None, votes(2)), None, "two do not decide where nothing else is known");
    assert_eq!(distance(None, votes(3)), Some((20, DistanceBy::Votes)));
}

#[test]
fn clients_of_a_network_tell_each_other_through_the_scheduler() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let metrics = recorder.handle();
    let locator =
        Locator::new(Some(database()), Proximity::register(Registry::new(Box::leak(Box::new(recorder)))));
    let (fleet, policy) = (fleet(), parse(POLICY).expect("a policy"));
    let measured = [("stable-us1".to_owned(), 7)].into();
    let nothing = BTreeMap::new();
    let claim = |address, rtt_ms| Claim { hint: "", came_to: "", ip: Some(ip(address)), rtt_ms };
    for user in ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"] {
        let _ = locator.ask(&fleet, &policy, &claim("203.0.113.200", &measured), user, 1_000);
    }
    // A load balancer's inside: nobody knows where its clients are.
    let _ = locator.ask(&fleet, &policy, &claim("10.0.0.1", &measured), "a", 1_000);
    let first = |address| {
        let (located, seen) = locator.explain(&fleet, &policy, &claim(address, &nothing), 1_000);
        (located.near.as_slice()[0].region, serde_json::to_value(seen).expect("text and numbers"))
    };
    let (region, seen) = first("203.0.113.201");
    assert_eq!(region, "us", "another address of AS4134 in Shanghai, and nearer than Beijing");
    assert_eq!(seen["network"], "AS4134 CN-SH");
    let votes = serde_json::json!({ "count": 12, "weight": 12.0, "medianMs": 7 });
    let us = serde_json::json!({ "region": "us", "ms": 7, "by": "votes", "votes": votes });
    assert_eq!(seen["distances"][0], us, "{seen}");
    assert_eq!(
        (&seen["region"], &seen["regionBy"], &seen["place"]),
        (&"cn-east".into(), &"place".into(), &1.into())
    );
    let expected = [
        ("rtt_votes_total{outcome=\"taken\"}", 12),
        ("rtt_votes_total{outcome=\"unplaced\"}", 1),
        ("rtt_networks", 1),
        ("geoip_lookups_total{outcome=\"found\"}", 12),
        ("geoip_lookups_total{outcome=\"not_found\"}", 1),
        ("located_total{by=\"place\"}", 12),
        ("located_total{by=\"nothing\"}", 1),
        ("geoip_build_time_seconds", 1_700_000_000),
    ];
    let text = metrics.render();
    for (series, value) in expected {
        assert!(
            text.contains(&format!("berth_scheduler_{series} {value}\n")),
            "{series} is not {value}:\n{text}"
        );
    }
}

proptest! {
    #[test]
    fn each_region_once_in_order(measured in prop::collection::vec(("(stable|canary)-(eu|us|cn-east|cn-north)1", 0..40u32), 0..8), hint in "(eu|cn-east|mars|)") {
        let rtt_ms: Vec<_> = measured.iter().map(|(id, ms)| (id.as_str(), *ms)).collect();
        let near = located(&hint, Some("203.0.113.1"), &rtt_ms).2;
        prop_assert!(near.is_sorted_by_key(|(name, ms)| (*ms, name.clone())), "{:?}", near);
        let names: std::collections::HashSet<_> = near.iter().map(|(name, _)| name).collect();
        prop_assert_eq!(names.len(), near.len());
    }

    #[test]
    fn more_regions_than_fit_leave_the_nearest(ms in prop::collection::vec(0..500u32, 1..100)) {
        let names: Vec<_> = (0..ms.len()).map(|n| format!("r{n:03}")).collect();
        let mut near = Surroundings::unknown();
        for (name, ms) in names.iter().zip(&ms) {
            near.measured(name, *ms);
        }
        let mut sorted = ms.clone();
        sorted.sort_unstable();
        sorted.truncate(MAX_NEAR);
        let kept: Vec<_> = near.as_slice().iter().map(|near| near.ms).collect();
        prop_assert_eq!(kept, sorted);
    }
}

#[test]
fn what_gray_rules_ask_does_not_depend_on_which_gateways_are_known() {
    let (policy, nobody, votes) =
        (parse(POLICY).expect("the tests' own"), Fleet::default(), Votes::default());
    let known = fleet();
    let cases = [
        ("eu", "198.51.100.7", "eu"),
        ("mars", "198.51.100.7", "mars"),
        ("", "198.51.100.7", "office"),
        ("", "192.0.2.1", ""),
    ];
    for (hint, address, origin) in cases {
        let rtt_ms = BTreeMap::new();
        let claim = Claim { hint, came_to: "", ip: Some(ip(address)), rtt_ms: &rtt_ms };
        for fleet in [&known, &nobody] {
            let located = locate(fleet, &policy, Some(&database()), &votes, &claim, 0);
            assert_eq!(located.origin, origin, "{hint:?} from {address}");
        }
    }
}
