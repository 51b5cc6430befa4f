//! The limit: what this machine can do at the most, so that a figure of `berth bench` is a ratio and not a number.
//!
//! One thread of epoll that speaks the protocol's frames with the same upgrade and ticket check as a gateway, and nothing
//! behind them: no session, no route, no heartbeat wheel, no store. It also answers `POST /v1/schedule` (with a genuine
//! ticket for itself) and `PUT /v1/groups/{id}`, so that `berth bench ... --scheduler URL --logic URL` runs against it as it
//! is. `POST /live` says how many users are connected and how many heartbeats were answered. It checks no token and no key: it is for measuring on a machine of one's own.
//!
//! `berth-limit [--listen ADDR] [--log FILE] [--rows]` prints `{"scheduler":…,"logic":…}` and serves until it is killed.
//! `--log FILE`: a send is answered when it was appended to FILE and synced, one fdatasync for all that wait (a bare
//! group-commit log). `--rows`: it keeps the newest rows of each inbox in memory, so that receivers can pull.
//!
//! | file | |
//! |---|---|
//! | `server` | the loop: accept, read, write |
//! | `client` | the bytes of one connection: HTTP, WebSocket, TCP |
//! | `city` | who is connected, groups, inbox seqs |
//! | `log` | the group-commit log |

mod city;
mod client;
mod http;
mod log;
mod server;

use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

/// What was asked for.
struct Options {
    listen: SocketAddr,
    log: Option<PathBuf>,
    rows: bool,
}

fn main() -> ExitCode {
    let options = match options(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(problem) => {
            eprintln!("berth-limit: {problem}");
            return ExitCode::from(1);
        }
    };
    match server::run(options.listen, options.log.as_deref(), options.rows) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("berth-limit: {error}");
            ExitCode::from(2)
        }
    }
}

fn options(mut arguments: impl Iterator<Item = String>) -> Result<Options, String> {
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut options = Options { listen, log: None, rows: false };
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} wants a value"));
        match argument.as_str() {
            "--listen" => {
                let text = value()?;
                options.listen = text.parse().map_err(|error| format!("--listen {text}: {error}"))?;
            }
            "--log" => options.log = Some(value()?.into()),
            "--rows" => options.rows = true,
            other => {
                return Err(format!("unknown argument {other}; there are --listen ADDR, --log FILE, --rows"));
            }
        }
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments() {
        let given = |text: &str| options(text.split_whitespace().map(str::to_owned));
        let all = given("--listen 127.0.0.1:7 --log f --rows").expect("good");
        assert!(all.listen.port() == 7 && all.log.is_some() && all.rows);
        assert!(given("--listen x").is_err() && given("--log").is_err() && given("--more").is_err());
    }
}
