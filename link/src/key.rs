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
}

impl ClusterKey {
    /// From `auth.cluster_key`.
    ///
    /// # Errors
    /// When it holds characters that a header cannot.
    pub fn new(key: &str) -> Result<Self, String> {
        let mut header: MetadataValue<Ascii> = format!("Bearer {key}").parse().map_err(|_| {
            "auth.cluster_key has characters that a header cannot hold; use printable ASCII".to_owned()
        })?;
        header.set_sensitive(true);
        Ok(Self { header })
    }

    pub(crate) fn show(&self, metadata: &mut MetadataMap) {
        metadata.insert("authorization", self.header.clone());
    }

    /// Digests are compared, so that the time taken tells nothing about the key.
    pub(crate) fn check(&self, metadata: &MetadataMap) -> Result<(), Status> {
        let shown = metadata.get("authorization").map(MetadataValue::as_bytes).unwrap_or_default();
        let same = digest(&SHA256, shown).as_ref() == digest(&SHA256, self.header.as_bytes()).as_ref();
        if same {
            Ok(())
        } else {
            Err(Status::unauthenticated("the cluster key is wrong or missing: compare auth.cluster_key"))
        }
    }
}
