//! The cluster key: what a gateway shows a scheduler or logic.

use ring::digest::{SHA256, digest};
use tonic::{
    Status,
    metadata::{Ascii, MetadataMap, MetadataValue},
};

/// The secret every role of a deployment shares. Never printed.
#[derive(Clone)]
pub struct ClusterKey {
    header: MetadataValue<Ascii>,
    /// Accepted as well.
    previous: Option<MetadataValue<Ascii>>,
}

impl ClusterKey {
    /// From `auth.cluster_key`.
    ///
    /// # Errors
    /// When it holds characters that a header cannot.
    pub fn new(key: &str) -> Result<Self, String> {
        Ok(Self { header: header("auth.cluster_key", key)?, previous: None })
    }

    /// The same key while it is changed: who shows the one before (`auth.cluster_key_previous`; empty: none) is accepted as well.
    ///
    /// # Errors
    /// As [`ClusterKey::new`].
    pub fn after(self, previous: &str) -> Result<Self, String> {
        let previous = match previous {
            "" => None,
            key => Some(header("auth.cluster_key_previous", key)?),
        };
        Ok(Self { previous, ..self })
    }

    pub(crate) fn show(&self, metadata: &mut MetadataMap) {
        metadata.insert("authorization", self.header.clone());
    }

    /// Digests are compared, so that the time taken tells nothing about the key.
    pub(crate) fn check(&self, metadata: &MetadataMap) -> Result<(), Status> {
        let shown = metadata.get("authorization").map(MetadataValue::as_bytes).unwrap_or_default();
        let shown = digest(&SHA256, shown);
        let is = |key: &MetadataValue<Ascii>| digest(&SHA256, key.as_bytes()).as_ref() == shown.as_ref();
        if is(&self.header) || self.previous.as_ref().is_some_and(is) {
            Ok(())
        } else {
            Err(Status::unauthenticated("the cluster key is wrong or missing: compare auth.cluster_key"))
        }
    }
}

fn header(name: &str, key: &str) -> Result<MetadataValue<Ascii>, String> {
    let mut header: MetadataValue<Ascii> = format!("Bearer {key}")
        .parse()
        .map_err(|_| format!("{name} has characters that a header cannot hold; use printable ASCII"))?;
    header.set_sensitive(true);
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn while_it_is_changed_the_key_before_is_good_too() {
        let key = |text: &str| ClusterKey::new(text).expect("ASCII");
        let (old, new) = (key("old"), key("new"));
        let changing = key("new").after("old").expect("ASCII");
        let accepts = |server: &ClusterKey, shown: &ClusterKey| {
            let mut metadata = MetadataMap::new();
            shown.show(&mut metadata);
            server.check(&metadata).is_ok()
        };
        assert!(accepts(&changing, &old) && accepts(&changing, &new) && accepts(&old, &old));
        assert!(!accepts(&new, &old) && !accepts(&changing, &key("other")));
        assert!(accepts(&new, &changing), "it shows the new one");
        assert!(!accepts(&key("new").after("").expect("none"), &key("")), "none is none");
        assert!(changing.check(&MetadataMap::new()).is_err());
        assert!(key("new").after("ö\n").is_err_and(|problem| problem.contains("cluster_key_previous")));
    }
}
