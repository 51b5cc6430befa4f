//! The gateway's limits on one peer, from the texts and numbers of the configuration.

use super::Gateway;

impl Gateway {
    /// What one peer may cost. Texts that [`Gateway::limit_problems`] finds fault with stand for their defaults.
    pub fn limits(&self) -> berth_gateway::Limits {
        berth_gateway::Limits {
            connections_per_address: self.connections_per_address,
            handshakes_per_second_per_address: self.handshakes_per_second_per_address,
            exempt_addresses: self.exempt_addresses.parse().unwrap_or_default(),
            pending_handshakes: self.pending_handshakes,
            frames_per_second: self.frames_per_second,
            requests_per_second_per_user: self.requests_per_second_per_user,
            origins: self.origins.parse().unwrap_or_default(),
        }
    }

    /// What is no network or no origin in the lists.
    pub(super) fn limit_problems(&self) -> Vec<String> {
        let networks = self.exempt_addresses.parse::<berth_gateway::Networks>().err();
        let origins = self.origins.parse::<berth_gateway::Origins>().err();
        let named =
            |key: &str, problem: Option<String>| problem.map(|problem| format!("gateway.{key}: {problem}"));
        [named("exempt_addresses", networks), named("origins", origins)].into_iter().flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_the_gateways_own() {
        let (ours, theirs) = (Gateway::default().limits(), berth_gateway::Limits::default());
        assert_eq!(format!("{ours:?}"), format!("{theirs:?}"));
    }

    #[test]
    fn what_is_no_network_and_no_origin_is_told() {
        let gateway = Gateway {
            exempt_addresses: "10.0.0.0/99".to_owned(),
            origins: "https://a.example, b.example".to_owned(),
            ..Gateway::default()
        };
        let problems = gateway.limit_problems();
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems[0].starts_with("gateway.exempt_addresses: \"10.0.0.0/99\""), "{problems:?}");
        assert!(problems[1].starts_with("gateway.origins: \"b.example\""), "{problems:?}");
    }
}
