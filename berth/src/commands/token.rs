//! `berth token alice`: a user's token for tests and scripts, signed with auth.jwt_secret.

use std::{path::PathBuf, time::Duration};

use anyhow::anyhow;

use super::duration::duration;
use crate::{compose, config::Layers, exit::Failure, output};

/// Arguments of `berth token`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The user the token is for.
    user: String,
    /// How long it is good for: 90s, 15m, 1h, 7d.
    #[arg(long, default_value = "1h", value_parser = duration)]
    ttl: Duration,
    /// Configuration file with auth.jwt_secret (or set BERTH_AUTH__JWT_SECRET).
    #[arg(long)]
    config: Option<PathBuf>,
}

/// Prints the token on stdout.
pub fn run(args: Args) -> Result<(), Failure> {
    let effective = Layers::defaults()
        .file(args.config.as_deref())
        .environment(std::env::vars_os())
        .finish()
        .map_err(|problem| Failure::Configuration(problem.into()))?;
    let auth = &effective.config.auth;
    let secret = &auth.jwt_secret;
    if secret.is_empty() {
        return Err(Failure::Configuration(anyhow!(
            "auth.jwt_secret is not set: give --config FILE or BERTH_AUTH__JWT_SECRET. A running `berth dev` gives tokens \
             at POST http://127.0.0.1:7700/v1/dev/token"
        )));
    }
    if let Err(problem) = berth_proto::id::check(&args.user) {
        return Err(Failure::Configuration(anyhow!("the user id {:?} {problem}", args.user)));
    }
    let token = compose::sign_expected_token(secret, &auth.expected(), &args.user, args.ttl);
    output::written(output::print(format_args!("{token}")))
}
