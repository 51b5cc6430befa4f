//! The policy file at the start of a scheduler: it is in force, so that nobody is assigned by anything else, but it is carried only
//! once the disk and the gateways could say what the schedulers agreed on, and if it may replace that. So a restart puts nothing in
//! force that the running scheduler would have refused.

use std::sync::Arc;

use berth_proto::wire::{CarriedRecord, PolicyText};
use tracing::{info, warn};

use super::{Source, not_taken, record};
use crate::{
    core::{Core, lock},
    policy::{Offered, Policy, Refused, Replaced, parse, replaces},
};

impl Core {
    /// At the start, with the file's policy in force: what the disk has is taken up.
    pub fn begin(&self, records: Vec<CarriedRecord>) {
        let file = self.policy.load_full();
        self.carry(records);
        if file.version > 0 && self.policy.load().hash == file.hash {
            self.remember(&Replaced { before: Arc::default(), policy: file }, "", "", Source::File);
        }
        self.look_after_rules();
    }

    /// The gateways have had time to say what they carry, and carry no policy: the file's goes to all of them.
    pub fn agree_on_file(&self) {
        if self.policy.agreed() || !self.caught_up() {
            return;
        }
        let first = {
            let _turn = lock(&self.agreeing);
            self.policy.agree()
        };
        if first {
            self.carry(vec![record(&self.policy.load(), "", "", self.clock.wall_ms())]);
        }
    }

    /// What the schedulers agreed on is heard of for the first time: the file stays in force if it may replace that, and is to be
    /// carried then.
    pub(super) fn compare_file(&self, told: &PolicyText) -> Option<CarriedRecord> {
        let file = self.policy.load_full();
        let agreed = match parse(&told.text) {
            Ok(agreed) => agreed,
            Err(error) => {
                not_taken(told, &file, &error.into());
                return None;
            }
        };
        match replaces(&file, &agreed, Offered::Here) {
            Ok(newer) => {
                self.policy.agree();
                if !newer {
                    return None;
                }
                let record = record(&file, "", "", self.clock.wall_ms());
                self.remember(&Replaced { before: Arc::new(agreed), policy: file }, "", "", Source::File);
                Some(record)
            }
            Err(refused) => {
                self.refuse_file(told, &file, &refused);
                None
            }
        }
    }

    fn refuse_file(&self, told: &PolicyText, file: &Policy, refused: &Refused) {
        // It was parsed already.
        let Ok(adopted) = self.policy.adopt(&told.text, file, self.clock.wall_ms()) else { return };
        self.policy.agree();
        // The file was changed in this moment.
        let Some(policy) = adopted else { return self.take_up(told) };
        self.metrics.policy.load(refused.into());
        self.metrics.policy.file_refused.set(1.0);
        if matches!(refused, Refused::Older { .. }) {
            info!(%file, in_force = %policy, "the policy file is older than what the schedulers agreed on, which is in force; write that into the file");
        } else {
            warn!(%file, in_force = %policy, error = %refused, "the policy file is not what the schedulers agreed on, which is in force; raise the file's version, by one");
        }
        let replaced = Replaced { before: Arc::default(), policy };
        self.remember(&replaced, &told.by, &told.note, Source::Carried);
        self.remember_stops(&replaced, "");
        self.policy_changed();
    }
}
