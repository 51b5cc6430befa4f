//! The suite of [`Routes`]: opens, closes and announcements in any order leave the newest session of each device.

use std::collections::HashMap;

use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};

use super::{
    NOW, Place,
    routes::{gateway, live, open, opening},
};
use crate::routes::{Opened, Opening};

#[derive(Debug, Clone)]
enum Step {
    Open {
        device: usize,
        gateway: usize,
    },
    /// Closes a session opened earlier: by its place in the history.
    Close {
        session: usize,
    },
    Announce {
        session: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..3usize, 0..2usize).prop_map(|(device, gateway)| Step::Open { device, gateway }),
        2 => (0..40usize).prop_map(|session| Step::Close { session }),
        1 => (0..40usize).prop_map(|session| Step::Announce { session }),
    ]
}

pub(super) async fn check_against_a_model(place: &dyn Place) {
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let routes = place.routes(NOW);
    let gateways = [gateway("g1", 1), gateway("g2", 1)];
    for history in 0..32 {
        let user = format!("h{history}");
        let steps = prop::collection::vec(step(), 1..60).new_tree(&mut runner).expect("a history").current();
        let mut sessions: Vec<(usize, usize, u64)> = Vec::new();
        // The live epoch by device.
        let mut model: HashMap<usize, u64> = HashMap::new();
        for (handle, step) in (0..).zip(&steps) {
            match *step {
                Step::Open { device, gateway } => {
                    let asked = opening(&user, &device.to_string(), &gateways[gateway], handle);
                    let Opened::Registered { epoch, replaced } = open(&routes, asked, NOW).await else {
                        panic!("a new session is always registered")
                    };
                    assert!(sessions.iter().all(|(_, _, earlier)| epoch > *earlier));
                    assert_eq!(replaced.map(|old| old.epoch), model.insert(device, epoch));
                    sessions.push((device, gateway, epoch));
                }
                Step::Close { session } => {
                    let Some((device, _, epoch)) = sessions.get(session) else { continue };
                    let there = model.get(device) == Some(epoch);
                    assert_eq!(
                        routes.close(&user, &device.to_string(), *epoch).await.expect("closes"),
                        there
                    );
                    if there {
                        model.remove(device);
                    }
                }
                Step::Announce { session } => {
                    let Some((device, gateway, epoch)) = sessions.get(session) else { continue };
                    let asked =
                        opening(&user, &device.to_string(), &gateways[*gateway], 1000 + session as u64);
                    let opened = open(&routes, Opening { announced: *epoch, ..asked }, NOW).await;
                    if model.get(device).is_some_and(|newest| newest > epoch) {
                        assert_eq!(opened, Opened::Stale);
                    } else {
                        assert_eq!(opened, Opened::Registered { epoch: *epoch, replaced: None });
                        model.insert(*device, *epoch);
                    }
                }
            }
            let found: HashMap<usize, u64> = live(&routes, &user)
                .await
                .into_iter()
                .map(|route| (route.device.parse().expect("a number"), route.epoch))
                .collect();
            assert_eq!(found, model, "{steps:?}");
        }
    }
}
