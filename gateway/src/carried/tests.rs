//! What is carried between schedulers by a gateway, and what a full link misses.

use std::sync::{Arc, mpsc};

use berth_proto::{
    carry::kind,
    link::{Link, Refused},
    wire::Drain,
};

use super::*;
use crate::{supervisor::Supervisor, testing::Site};

/// A scheduler's link that keeps the records it is told.
struct Told(mpsc::SyncSender<Carried>);

impl Link<ToScheduler> for Told {
    fn send(&self, batch: Vec<ToScheduler>) -> Result<(), Refused<ToScheduler>> {
        for message in batch {
            if let Some(to_scheduler::Message::Carried(carried)) = message.message {
                self.0.try_send(carried).expect("room");
            }
        }
        Ok(())
    }
}

fn drain(gateway: &str) -> CarriedRecord {
    Record::Drain(Drain { gateway_id: gateway.to_owned(), active: true, ..Default::default() }).carried(1, 0)
}

/// A gateway with two schedulers, and what each was told.
fn site() -> (Site, [mpsc::Receiver<Carried>; 2]) {
    let site = Site::new(1);
    let told = [(); 2].map(|()| {
        let (tell, told) = mpsc::sync_channel(10);
        site.shared.change(|rare| Arc::make_mut(&mut rare.schedulers).push(Arc::new(Told(tell)) as _));
        told
    });
    (site, told)
}

fn records_of(told: &mpsc::Receiver<Carried>) -> Vec<CarriedRecord> {
    told.try_iter().flat_map(|carried| carried.records).collect()
}

#[test]
fn news_of_one_scheduler_are_told_to_the_others_once() {
    let (site, [first, second]) = site();
    for _ in 0..2 {
        heard(&site.shared, 0, Carried { records: vec![drain("gw-1")], ..Default::default() });
    }
    assert_eq!((records_of(&first), records_of(&second)), (vec![], vec![drain("gw-1")]));
}

#[test]
fn who_says_all_that_he_has_is_told_what_he_lacks() {
    let (site, [first, second]) = site();
    heard(&site.shared, 1, Carried { records: vec![drain("gw-1")], ..Default::default() });
    assert_eq!(records_of(&first), [drain("gw-1")]);
    heard(
        &site.shared,
        0,
        Carried { records: vec![drain("gw-2")], whole: 1 << kind::DRAIN, ..Default::default() },
    );
    assert_eq!((records_of(&first), records_of(&second)), (vec![drain("gw-1")], vec![drain("gw-2")]));
    assert_ne!(digests(&site.shared), berth_proto::carry::Store::default().digests());
}

#[test]
fn a_logic_has_a_say_in_revocations_only() {
    let (site, [first, _second]) = site();
    let revocation = |user: &str| {
        let revoked = berth_proto::wire::Revocation {
            user_id: user.to_owned(),
            not_before_ms: 9,
            ..Default::default()
        };
        Record::Revocation(revoked).carried(1, 0)
    };
    let records = vec![drain("gw-1"), revocation("alice")];
    revoked(&site.shared, Carried { records, ..Default::default() });
    assert_eq!(records_of(&first), [revocation("alice")]);
    assert_eq!(lock(&site.shared.carried).count(kind::DRAIN), 0);
    // Who asks at a hello does not wait for whoever holds the records.
    let _merging = lock(&site.shared.carried);
    assert!(site.shared.revoked.find("alice", "phone", 8).is_some());
}

#[test]
fn a_scheduler_whose_link_is_down_is_told_nothing() {
    let (site, [first, second]) = site();
    struct Down;
    impl Link<ToScheduler> for Down {
        fn send(&self, _: Vec<ToScheduler>) -> Result<(), Refused<ToScheduler>> {
            panic!("it is down");
        }

        fn connected(&self) -> bool {
            false
        }
    }
    site.shared.change(|rare| Arc::make_mut(&mut rare.schedulers).push(Arc::new(Down) as _));
    heard(&site.shared, 0, Carried { records: vec![drain("gw-1")], ..Default::default() });
    assert_eq!((records_of(&first), records_of(&second)), (vec![], vec![drain("gw-1")]));
}

#[test]
fn what_waits_for_the_supervisor_is_bounded() {
    let (site, [_first, second]) = site();
    for n in 0..2 * crate::supervisor::CARRIED_WAITING {
        site.shared
            .mailbox
            .carried(0, Carried { records: vec![drain(&format!("gw-{n}"))], ..Default::default() });
    }
    drop(second);
    site.shared.change(|rare| rare.schedulers = Arc::default());
    Supervisor::new(Arc::clone(&site.shared)).come_around();
    assert_eq!(lock(&site.shared.carried).count(kind::DRAIN), crate::supervisor::CARRIED_WAITING);
}
