//! Where an archive is: `file:///absolute/path` or `s3://bucket/prefix`.
//!
//! Owns the reading of locations and the opening of stores. Credentials for S3 come from the usual `AWS_` variables, never
//! from the location, which is shown in logs and stored in the database.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use futures_util::TryStreamExt;
use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

use crate::Error;

/// Why a location cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LocationError {
    /// Neither of the two forms.
    #[error("must be file:///absolute/path or s3://bucket/prefix")]
    Form,
    /// The folder cannot be made or opened.
    #[error("cannot open the folder")]
    Folder(#[source] std::io::Error),
    /// The store refused its settings.
    #[error("cannot open the store")]
    Store(#[from] object_store::Error),
}

/// A location that has been read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// A folder of this machine, or one that is mounted here.
    Folder(PathBuf),
    /// A bucket, and what its objects' names begin with.
    S3 {
        /// The bucket.
        bucket: String,
        /// The prefix, without slashes around it; may be empty.
        prefix: Path,
    },
}

impl FromStr for Location {
    type Err = LocationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(path) = text.strip_prefix("file://") {
            let path = PathBuf::from(path);
            let plain = path.components().all(|part| !matches!(part, std::path::Component::ParentDir));
            return if path.is_absolute() && plain {
                Ok(Self::Folder(path))
            } else {
                Err(LocationError::Form)
            };
        }
        let rest = text.strip_prefix("s3://").ok_or(LocationError::Form)?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        // The rules for buckets, so that no name can change the request's host or path.
        let named = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-".contains(&byte);
        if !(3..=63).contains(&bucket.len()) || !bucket.bytes().all(named) || prefix.starts_with('/') {
            return Err(LocationError::Form);
        }
        let prefix = Path::parse(prefix.trim_end_matches('/')).map_err(|_| LocationError::Form)?;
        Ok(Self::S3 { bucket: bucket.to_owned(), prefix })
    }
}

impl std::fmt::Display for Location {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Folder(path) => write!(f, "file://{}", path.display()),
            Self::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
        }
    }
}

/// An open archive; cheap to clone.
#[derive(Debug, Clone)]
pub struct Archive {
    pub(crate) store: Arc<dyn ObjectStore>,
    prefix: Path,
}

impl Archive {
    /// Opens an archive; a folder is made if it is missing. A bucket is not asked for before the first use.
    ///
    /// # Errors
    /// When the folder cannot be made, or settings for S3 are wrong.
    pub fn open(location: &Location) -> Result<Self, LocationError> {
        if let Location::Folder(path) = location {
            std::fs::create_dir_all(path).map_err(LocationError::Folder)?;
        }
        Self::open_present(location)
    }

    /// Opens an archive to read it; a folder that is missing is an error.
    ///
    /// # Errors
    /// When there is no such folder, or settings for S3 are wrong.
    pub fn open_present(location: &Location) -> Result<Self, LocationError> {
        match location {
            Location::Folder(path) => {
                let store = LocalFileSystem::new_with_prefix(path)?.with_fsync(true);
                Ok(Self { store: Arc::new(store), prefix: Path::default() })
            }
            Location::S3 { bucket, prefix } => {
                // The HTTP client takes the process-wide implementation of TLS. If there is one already, it is that one.
                let _present = rustls::crypto::ring::default_provider().install_default();
                let store = AmazonS3Builder::from_env().with_bucket_name(bucket).build()?;
                Ok(Self { store: Arc::new(store), prefix: prefix.clone() })
            }
        }
    }

    /// An archive in a store that is there already.
    #[must_use]
    pub fn in_store(store: Arc<dyn ObjectStore>) -> Self {
        Self { store, prefix: Path::default() }
    }

    /// The object of a name.
    pub(crate) fn path(&self, name: &str) -> Path {
        name.split('/').fold(self.prefix.clone(), |path, part| path.join(part))
    }

    /// Deletes a file; one that is not there is deleted already.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn delete(&self, name: &str) -> Result<(), Error> {
        match self.store.delete(&self.path(name)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Names of the files in a folder of the archive.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn list(&self, folder: &str) -> Result<Vec<String>, Error> {
        let under = self.path(folder);
        let objects: Vec<_> = self.store.list(Some(&under)).try_collect().await?;
        let names = objects.iter().filter_map(|object| {
            let name = object.location.prefix_match(&self.prefix)?;
            Some(name.map(|part| part.as_ref().to_owned()).collect::<Vec<_>>().join("/"))
        });
        Ok(names.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_forms_of_location_and_no_other() {
        assert_eq!("file:///var/a".parse::<Location>().unwrap(), Location::Folder("/var/a".into()));
        for (text, prefix) in [("s3://a-bucket", ""), ("s3://a-bucket/", ""), ("s3://a-bucket/x/y/", "x/y")] {
            let Location::S3 { bucket, prefix: found } = text.parse().unwrap() else { panic!("{text}") };
            assert_eq!((&bucket[..], found.as_ref()), ("a-bucket", prefix), "{text}");
            let shown = text.parse::<Location>().unwrap().to_string();
            assert_eq!(shown, format!("s3://a-bucket/{prefix}"));
        }
        for text in [
            "",
            "/var/a",
            "file://a",
            "file:///a/../b",
            "s3://",
            "s3://ab",
            "s3://A-bucket",
            "s3://user@host/x",
            "s3://a-bucket//x",
            "https://a-bucket/x",
            "s3://a-bucket/../x",
        ] {
            assert!(text.parse::<Location>().is_err(), "{text}");
        }
    }

    /// Only that the settings fit together: nothing is sent.
    #[tokio::test]
    async fn a_bucket_is_opened_without_being_asked_for() {
        let archive = Archive::open(&"s3://a-bucket/of/events".parse().unwrap()).unwrap();
        assert_eq!(
            archive.path("default/20260131/x.parquet").as_ref(),
            "of/events/default/20260131/x.parquet"
        );
    }
}
