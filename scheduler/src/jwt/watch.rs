//! Follows the JWKS file, so that whoever signs users' tokens can change keys: new ones are taken up without a restart, and a file
//! that is broken is refused and the keys in force stay.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use berth_proto::metric::Registry;
use metrics::Counter;
use tracing::{info, warn};

use super::{JwtKeys, JwtKeysError};
use crate::{
    core::Core,
    follow::{Seen, next_look},
};

/// Largest JWKS file, in bytes: far more than [`super::MAX_KEYS`] RSA keys need.
const MAX_JWKS: u64 = 1024 * 1024;

/// What became of a changed file.
#[derive(Debug, Clone, Copy)]
enum Load {
    /// Its keys are in force.
    Taken,
    /// It cannot be read.
    Unreadable,
    /// It is no JWKS that can be used.
    Broken,
}

/// `berth_scheduler_jwks_loads_total{outcome}`, in the order of [`Load`].
pub(super) struct Loads([Counter; 3]);

impl Loads {
    pub fn register(registry: Registry<'static>) -> Self {
        Self(["taken", "unreadable", "broken"].map(|outcome| {
            let help = "Changed JWKS files, by what became of them.";
            registry.counter("berth_scheduler_jwks_loads_total", help, &[("outcome", outcome)])
        }))
    }

    fn count(&self, load: Load) {
        self.0[load as usize].increment(1);
    }
}

/// A JWKS file whose keys are in force.
pub struct JwksFile {
    path: PathBuf,
    seen: Seen<String>,
}

impl JwksFile {
    /// Reads the first keys.
    ///
    /// # Errors
    /// When the file cannot be read or holds no key that can be used.
    pub fn load(path: PathBuf) -> Result<(JwtKeys, Self), JwtKeysError> {
        let unreadable = |source| JwtKeysError::Unreadable { path: path.display().to_string(), source };
        let text = read(&path).map_err(unreadable)?;
        let keys = keys_of(&text)?;
        Ok((keys, Self { path, seen: Seen::offered(Ok(text)) }))
    }
}

/// Reads at most a byte more than a file may have, so that a larger one is refused with its reason.
fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MAX_JWKS + 1).read_to_string(&mut text)?;
    Ok(text)
}

fn keys_of(text: &str) -> Result<JwtKeys, JwtKeysError> {
    if text.len() as u64 > MAX_JWKS {
        return Err(JwtKeysError::Jwks(format!("it has more than {MAX_JWKS} bytes")));
    }
    JwtKeys::from_jwks(text)
}

/// Runs until dropped.
pub(crate) async fn watch(core: Arc<Core>, file: JwksFile) {
    let JwksFile { path, mut seen } = file;
    loop {
        let asked = next_look(&core.jwt.reload).await;
        let to_read = path.clone();
        // The disk may be slow, and others are served on this thread.
        let text = match tokio::task::spawn_blocking(move || read(&to_read)).await {
            Ok(read) => read.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if seen.due(text.clone(), asked) {
            core.jwt.loads.count(take_up(&core, &path, text));
        }
    }
}

fn take_up(core: &Core, path: &Path, text: Result<String, String>) -> Load {
    let path = path.display();
    let refused = |error: String, load| {
        warn!(%path, error, "the JWKS file is refused; the keys in force stay");
        load
    };
    match text.map(|text| keys_of(&text)) {
        Ok(Ok(keys)) => {
            info!(%path, keys = keys.keys.len(), "the keys of users' tokens taken up");
            core.jwt.keys.store(Arc::new(keys));
            Load::Taken
        }
        Ok(Err(error)) => refused(error.to_string(), Load::Broken),
        Err(error) => refused(error, Load::Unreadable),
    }
}
