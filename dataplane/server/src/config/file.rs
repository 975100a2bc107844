//! The configuration file as written: its sections and keys, and how it is read. Nothing is checked but names and types.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::values::{Bytes, Days, Millis};
use super::{Error, invalid};

/// The file as written; every key is optional.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct File {
    pub(super) api: ListenSection,
    pub(super) admin: ListenSection,
    pub(super) database: DatabaseSection,
    pub(super) ledger: LedgerSection,
    pub(super) spool: SpoolSection,
    pub(super) encryption: EncryptionSection,
    pub(super) retention: RetentionSection,
    pub(super) log: LogSection,
    pub(super) proofs: ProofsSection,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct ListenSection {
    pub(super) listen: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct DatabaseSection {
    pub(super) pool_size: Option<usize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct LedgerSection {
    pub(super) batch_size: Option<usize>,
    pub(super) batch_timeout: Option<Millis>,
    pub(super) queue_events: Option<usize>,
    pub(super) queue_bytes: Option<Bytes>,
    pub(super) writers: Option<usize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct RetentionSection {
    pub(super) events: Option<Days>,
    pub(super) archive: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct SpoolSection {
    pub(super) path: Option<PathBuf>,
    pub(super) max_bytes: Option<Bytes>,
    pub(super) persistent: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct EncryptionSection {
    pub(super) fields: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct LogSection {
    pub(super) level: Option<String>,
    pub(super) key_file: Option<PathBuf>,
    pub(super) origin: Option<String>,
    pub(super) anchor: Option<String>,
    pub(super) anchor_shared: Option<bool>,
    pub(super) checkpoint_interval: Option<Millis>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct ProofsSection {
    pub(super) strict: Option<bool>,
    pub(super) public_base_url: Option<String>,
}

pub(super) fn read(path: &Path) -> Result<File, Error> {
    let text =
        std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    parse(&text, path)
}

pub(super) fn parse(text: &str, path: &Path) -> Result<File, Error> {
    let yaml = |error: serde_saphyr::Error| Error::Yaml { path: path.to_owned(), reason: error.to_string() };
    let value: serde_json::Value = serde_saphyr::from_str(text).map_err(yaml)?;
    if value.is_null() {
        return Ok(File::default());
    }
    serde_path_to_error::deserialize(value).map_err(|error| {
        let key = error.path().to_string();
        let key = if key == "." { path.display().to_string() } else { format!("{}: {key}", path.display()) };
        invalid(key, error.into_inner().to_string())
    })
}
