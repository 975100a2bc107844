//! The anchor in an object store: a conditional put is its compare-and-set.

use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, RetryConfig, UpdateVersion};

use super::{ANCHOR_BYTES_MAX, AnchorError, Swap};

/// The sealer begins anew rather than wait for longer.
const RETRY_MAX: Duration = Duration::from_secs(3);

/// One object.
#[derive(Debug, Clone)]
pub struct ObjectAnchor {
    store: Arc<dyn ObjectStore>,
    path: Path,
    /// For messages.
    url: Arc<str>,
}

impl ObjectAnchor {
    /// From `s3://bucket/key`; credentials, region and endpoint come from the usual `AWS_` variables.
    pub(super) fn s3(url: &str, rest: &str) -> Result<Self, AnchorError> {
        let (bucket, key) = rest.split_once('/').ok_or(AnchorError::Address)?;
        // The rules for buckets, so that no name can change the request's host or path.
        let named = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-".contains(&byte);
        let path = Path::parse(key).map_err(|_| AnchorError::Address)?;
        if !(3..=63).contains(&bucket.len()) || !bucket.bytes().all(named) || path.as_ref().is_empty() {
            return Err(AnchorError::Address);
        }
        // The HTTP client takes the process-wide implementation of TLS. If there is one already, it is that one.
        let _present = rustls::crypto::ring::default_provider().install_default();
        let retry = RetryConfig { max_retries: 2, retry_timeout: RETRY_MAX, ..RetryConfig::default() };
        let store = AmazonS3Builder::from_env().with_bucket_name(bucket).with_retry(retry).build();
        let store = store.map_err(|source| AnchorError::Store { url: url.into(), source })?;
        Ok(Self { store: Arc::new(store), path, url: url.into() })
    }

    #[cfg(test)]
    pub(super) fn in_store(store: Arc<dyn ObjectStore>) -> Self {
        Self { store, path: Path::from("log/anchor"), url: "memory".into() }
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    fn failed(&self, source: object_store::Error) -> AnchorError {
        AnchorError::Store { url: Arc::clone(&self.url), source }
    }

    pub(super) async fn read(&self) -> Result<Option<String>, AnchorError> {
        Ok(self.read_version().await?.map(|(text, _)| text))
    }

    async fn read_version(&self) -> Result<Option<(String, UpdateVersion)>, AnchorError> {
        let found = match self.store.get(&self.path).await {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(self.failed(error)),
        };
        if found.meta.size > ANCHOR_BYTES_MAX {
            return Err(AnchorError::Content(self.url.to_string()));
        }
        let version = UpdateVersion { e_tag: found.meta.e_tag.clone(), version: found.meta.version.clone() };
        let bytes = found.bytes().await.map_err(|error| self.failed(error))?;
        let text = String::from_utf8(bytes.into()).ok().filter(|text| !text.is_empty());
        Ok(Some((text.ok_or_else(|| AnchorError::Content(self.url.to_string()))?, version)))
    }

    pub(super) async fn swap(&self, expected: Option<&str>, new: String) -> Result<Swap, AnchorError> {
        let found = self.read_version().await?;
        if found.as_ref().map(|(text, _)| text.as_str()) != expected {
            return Ok(Swap::Conflict(found.map(|(text, _)| text)));
        }
        let mode = found.map_or(PutMode::Create, |(_, version)| PutMode::Update(version));
        let put = self.store.put_opts(&self.path, new.clone().into(), PutOptions::from(mode)).await;
        match put {
            Ok(_) => Ok(Swap::Done),
            Err(object_store::Error::Precondition { .. } | object_store::Error::AlreadyExists { .. }) => {
                // A put that was sent again after a lost reply meets what it put there itself.
                let found = self.read().await?;
                Ok(if found.as_ref() == Some(&new) { Swap::Done } else { Swap::Conflict(found) })
            }
            Err(error) => Err(self.failed(error)),
        }
    }
}
