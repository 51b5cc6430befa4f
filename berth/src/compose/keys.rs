//! The keys `berth dev` makes for itself and keeps in its data directory.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use anyhow::Context;
use rand::{Rng, distr::Alphanumeric};
use serde::{Deserialize, Serialize};

use crate::config::Auth;

const FILE: &str = "keys.toml";

/// As many characters as a key has; 62^43 is above 2^256.
const CHARACTERS: usize = 43;

#[derive(Serialize, Deserialize)]
struct KeyFile {
    auth: Auth,
}

/// Fills the keys that the configuration leaves empty from the data directory's key file, which is made first if it is not
/// there, so that tokens and tickets outlive a restart.
///
/// # Errors
/// When the file cannot be read, understood or written.
pub fn complete(configured: &Auth, data_dir: &Path) -> anyhow::Result<Auth> {
    let path = data_dir.join(FILE);
    let kept = match fs::read_to_string(&path) {
        Ok(text) => {
            toml::from_str::<KeyFile>(&text).with_context(|| format!("{} is damaged", path.display()))?.auth
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => make(&path)?,
        Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
    };
    let or_kept =
        |configured: &String, kept: String| if configured.is_empty() { kept } else { configured.clone() };
    Ok(Auth {
        jwt_secret: or_kept(&configured.jwt_secret, kept.jwt_secret),
        jwks_file: configured.jwks_file.clone(),
        ticket_key: or_kept(&configured.ticket_key, kept.ticket_key),
        service_key: or_kept(&configured.service_key, kept.service_key),
        admin_key: or_kept(&configured.admin_key, kept.admin_key),
    })
}

/// Writes a new key file whole or not at all, readable by its owner only.
fn make(path: &Path) -> anyhow::Result<Auth> {
    let auth = Auth {
        jwt_secret: random(),
        jwks_file: String::new(),
        ticket_key: random(),
        service_key: random(),
        admin_key: random(),
    };
    let text = toml::to_string(&KeyFile { auth: auth.clone() })?;
    let unfinished = path.with_extension("new");
    let write = || -> io::Result<()> {
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&unfinished, path)?;
        // The name must outlive a power cut like the content, or the next start would make other keys.
        path.parent().map_or(Ok(()), |directory| fs::File::open(directory)?.sync_all())
    };
    write().with_context(|| format!("writing {}", path.display()))?;
    Ok(auth)
}

fn random() -> String {
    rand::rng().sample_iter(Alphanumeric).take(CHARACTERS).map(char::from).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn keys_are_made_once_and_kept_and_the_configuration_wins() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let first = complete(&Auth::default(), dir.path()).expect("made");
        assert_eq!(complete(&Auth::default(), dir.path()).expect("kept"), first);
        assert!(first.jwt_secret.len() >= crate::config::KEY_BYTES);
        assert_ne!(first.jwt_secret, first.ticket_key);

        let configured = Auth { admin_key: "a".repeat(40), ..Auth::default() };
        let second = complete(&configured, dir.path()).expect("kept");
        assert_eq!((second.admin_key, second.jwt_secret), (configured.admin_key, first.jwt_secret));

        let mode = fs::metadata(dir.path().join(FILE)).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_file_is_named() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::write(dir.path().join(FILE), "auth = 5").expect("written");
        let error = complete(&Auth::default(), dir.path()).expect_err("damaged");
        assert!(format!("{error:#}").contains("keys.toml is damaged"), "{error:#}");
    }
}
