//! How the process ends: 0 ok, 1 bad configuration, 2 failed to start, 3 a check failed.

use std::process::ExitCode;

use clap::error::ErrorKind;

/// Why a command did not do what it was asked to.
#[derive(Debug)]
pub enum Failure {
    /// What the person gave cannot be: a flag, a key, a file. Exit code 1.
    Configuration(anyhow::Error),
    /// The configuration is good, yet the command could not do its work. Exit code 2.
    Start(anyhow::Error),
    /// A check found something; it was already printed. Exit code 3.
    Check,
}

impl Failure {
    /// Tells the person on stderr, and gives the process its exit code.
    pub fn report(self) -> ExitCode {
        match self {
            Self::Configuration(error) => {
                eprintln!("berth: {error:#}");
                ExitCode::from(1)
            }
            Self::Start(error) => {
                eprintln!("berth: {error:#}");
                ExitCode::from(2)
            }
            Self::Check => ExitCode::from(3),
        }
    }
}

/// Prints help, version or a usage error. Flags are configuration: a wrong one exits with 1.
pub fn usage(error: &clap::Error) -> ExitCode {
    // A closed pipe is the only way this fails, and then nobody reads the reason.
    let _ = error.print();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
        _ => ExitCode::from(1),
    }
}
