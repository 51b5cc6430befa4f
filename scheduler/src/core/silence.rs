//! Telling an operator, once, that most of the fleet fell silent together, and once that it is over.

use crate::fleet::{DEAD_AFTER_MS, Fleet};

/// Tells once when most of the fleet has been silent for as long as it takes a gateway to be dead, and once when that
/// ends. A shorter silence is a slow moment of this machine.
#[derive(Default)]
pub(crate) struct Silence {
    since_ms: Option<i64>,
    told: bool,
}

impl Silence {
    pub(crate) fn tell(&mut self, fleet: &Fleet) {
        if !fleet.distrusted {
            if self.told {
                tracing::info!(
                    "the gateways that fell silent together are heard again, or believed to be gone"
                );
            }
            *self = Self::default();
            return;
        }
        let since_ms = *self.since_ms.get_or_insert(fleet.built_at_ms);
        if !self.told && fleet.built_at_ms - since_ms >= DEAD_AFTER_MS {
            self.told = true;
            let gateways = fleet.gateways.iter().filter(|gateway| gateway.old_load).count();
            tracing::warn!(
                gateways,
                "most of the fleet fell silent at once: assigning on its last known load; check this machine's network"
            );
        }
    }
}
