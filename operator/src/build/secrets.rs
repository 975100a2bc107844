//! What is secret: which Secrets pods refer to, which of them are generated, and a hash that changes when their values do.
//! Promises: no value is shown; a generated Secret is made from given randomness, once, and outlives the cluster, since the
//! log continues under its own key alone and the database's volume holds its password.

use certeus_crds::SecretKeyRef;
use certeus_tlog::note::{Algorithm, KeyError, SignerKey};
use hmac::{Hmac, KeyInit, Mac};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use sha2::Sha256;

use super::config::hex;
use super::database::{DATABASE_PORT, database_name};
use super::metadata;
use crate::validate::{Cluster, DatabaseSource};

/// Key of the generated signing key in its Secret.
const SIGNING_KEY: &str = "signing-key";
/// Key of the generated API key in its Secret.
const API_KEY: &str = "api-key";
/// Key of the embedded database's URL; as CloudNativePG calls it.
const DATABASE_URI: &str = "uri";
/// Key of the embedded database's password, for its own container.
pub(super) const DATABASE_PASSWORD: &str = "password";
/// User, and name of the database.
pub(super) const DATABASE_USER: &str = "certeus";

/// One value of a Secret that the pods get as an environment variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretUse {
    /// Name of the variable.
    pub variable: &'static str,
    /// Which value.
    pub reference: SecretKeyRef,
    /// Whether pods start without it.
    pub optional: bool,
}

/// All Secrets that the pods of `cluster` refer to: what has to be there before they can start, and what
/// [`secrets_hash`] is to cover.
#[must_use]
pub fn secret_uses(cluster: &Cluster) -> Vec<SecretUse> {
    let security = &cluster.security;
    let (database_url, database_ca) = match cluster.database.clone() {
        DatabaseSource::Secret { url, ca } => (url, ca),
        DatabaseSource::Embedded { .. } => {
            (SecretKeyRef { name: database_secret_name(cluster), key: DATABASE_URI.to_owned() }, None)
        }
    };
    let required = [
        ("CERTEUS_DB_URL", Some(database_url)),
        ("CERTEUS_DB_CA", database_ca),
        ("CERTEUS_API_KEY", security.api_key_secret_ref.clone()),
        ("CERTEUS_DECRYPT_API_KEY", security.decrypt_api_key_secret_ref.clone()),
        ("CERTEUS_ENCRYPTION_KEY", security.encryption_key_secret_ref.clone()),
        ("CERTEUS_SIGNING_KEY", Some(signing_key_secret_key(cluster))),
    ];
    let required = required.into_iter().filter_map(|(variable, reference)| {
        Some(SecretUse { variable, reference: reference?, optional: false })
    });
    let object_store = [
        ("AWS_ACCESS_KEY_ID", false),
        ("AWS_SECRET_ACCESS_KEY", false),
        ("AWS_SESSION_TOKEN", true),
        ("AWS_REGION", true),
        ("AWS_ENDPOINT", true),
        ("AWS_ALLOW_HTTP", true),
    ];
    let object_store = security.object_store_secret_ref.iter().flat_map(|secret| {
        object_store.map(|(variable, optional)| SecretUse {
            variable,
            reference: SecretKeyRef { name: secret.name.clone(), key: variable.to_owned() },
            optional,
        })
    });
    required.chain(object_store).collect()
}

/// A Secret that is made once if it is not there, and never overwritten or removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GeneratedSecret {
    /// The key that signs the log.
    SigningKey {
        /// Name of the Secret.
        name: String,
    },
    /// The key that callers show the pods.
    ApiKey {
        /// Name of the Secret.
        name: String,
    },
    /// User, password and URL of the embedded database.
    Database {
        /// Name of the Secret.
        name: String,
    },
}

impl GeneratedSecret {
    /// Name of the Secret.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::SigningKey { name } | Self::ApiKey { name } | Self::Database { name } => name,
        }
    }

    /// The Secret. `random` must come from a cryptographic random source.
    ///
    /// # Errors
    /// When the cluster's name or namespace cannot be part of a key's name.
    pub fn make(&self, cluster: &Cluster, random: [u8; 32]) -> Result<Secret, KeyError> {
        match self {
            Self::SigningKey { .. } => {
                let origin = signing_key_origin(cluster);
                let key = SignerKey::from_seed(&origin, Algorithm::Ed25519, random)?;
                Ok(signing_key_secret(cluster, &key.to_secret_text()))
            }
            Self::ApiKey { name } => Ok(secret(cluster, name.clone(), &[(API_KEY, &hex(&random))])),
            Self::Database { .. } => Ok(database_secret(cluster, &hex(&random))),
        }
    }
}

/// The Secrets that are generated for `cluster`: one for each that the user does not name.
#[must_use]
pub fn generated_secrets(cluster: &Cluster) -> Vec<GeneratedSecret> {
    let signing_key = cluster.security.signing_key_secret_ref.is_none();
    let signing_key = signing_key.then(|| GeneratedSecret::SigningKey { name: signing_key_name(cluster) });
    let api_key =
        has_generated_api_key(cluster).then(|| GeneratedSecret::ApiKey { name: api_key_name(cluster) });
    let embedded = matches!(cluster.database, DatabaseSource::Embedded { .. });
    let database = embedded.then(|| GeneratedSecret::Database { name: database_secret_name(cluster) });
    signing_key.into_iter().chain(api_key).chain(database).collect()
}

/// The cluster as it runs on Kubernetes: without an API key pods would listen on the loopback address alone, where neither
/// clients nor probes reach them, so one is generated unless the user names it.
#[must_use]
pub fn with_api_key(mut cluster: Cluster) -> Cluster {
    if cluster.security.api_key_secret_ref.is_none() {
        cluster.security.api_key_secret_ref = Some(generated_api_key(&cluster));
    }
    cluster
}

/// Whether the API key is the generated one.
#[must_use]
pub fn has_generated_api_key(cluster: &Cluster) -> bool {
    cluster.security.api_key_secret_ref.as_ref() == Some(&generated_api_key(cluster))
}

fn generated_api_key(cluster: &Cluster) -> SecretKeyRef {
    SecretKeyRef { name: api_key_name(cluster), key: API_KEY.to_owned() }
}

/// Name of the Secret with the generated API key.
#[must_use]
pub fn api_key_name(cluster: &Cluster) -> String {
    format!("{}-api-key", cluster.name)
}

/// Name of the Secret with the generated signing key.
#[must_use]
pub fn signing_key_name(cluster: &Cluster) -> String {
    format!("{}-signing-key", cluster.name)
}

/// The signing key of the pods: the one that the user names, or the generated one.
#[must_use]
pub fn signing_key_secret_key(cluster: &Cluster) -> SecretKeyRef {
    let generated = || SecretKeyRef { name: signing_key_name(cluster), key: SIGNING_KEY.to_owned() };
    cluster.security.signing_key_secret_ref.clone().unwrap_or_else(generated)
}

/// The name of a generated signing key, which is the log's origin: unique in one Kubernetes cluster. Who publishes logs of
/// several names a key of their own.
#[must_use]
pub fn signing_key_origin(cluster: &Cluster) -> String {
    format!("certeus.io/{}/{}", cluster.namespace, cluster.name)
}

/// The Secret of a signing key in its text form.
#[must_use]
pub fn signing_key_secret(cluster: &Cluster, signer_key: &str) -> Secret {
    secret(cluster, signing_key_name(cluster), &[(SIGNING_KEY, signer_key)])
}

/// Name of the Secret with the embedded database's password.
#[must_use]
pub fn database_secret_name(cluster: &Cluster) -> String {
    database_name(cluster)
}

/// The Secret of the embedded database. `password` must need no escaping in a URL.
#[must_use]
pub fn database_secret(cluster: &Cluster, password: &str) -> Secret {
    let host = format!("{}.{}.svc", database_name(cluster), cluster.namespace);
    let uri = format!("postgres://{DATABASE_USER}:{password}@{host}:{DATABASE_PORT}/{DATABASE_USER}");
    let data = [("username", DATABASE_USER), (DATABASE_PASSWORD, password), (DATABASE_URI, uri.as_str())];
    secret(cluster, database_secret_name(cluster), &data)
}

/// Without owner: it stays when the cluster is deleted, like the volumes.
fn secret(cluster: &Cluster, name: String, data: &[(&str, &str)]) -> Secret {
    let data = data.iter().map(|(key, value)| ((*key).to_owned(), ByteString(value.as_bytes().to_vec())));
    Secret {
        metadata: ObjectMeta { owner_references: None, ..metadata(cluster, name) },
        type_: Some("Opaque".to_owned()),
        data: Some(data.collect()),
        ..Secret::default()
    }
}

/// A hash of secret values, by the name of the variable that each becomes; equal for equal values in whatever order. It is
/// keyed (HMAC-SHA256), so that nobody who reads it can try passwords; `key` is the signing key as its Secret has it.
#[must_use]
pub fn secrets_hash<'a>(key: &[u8], values: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> String {
    #[expect(clippy::expect_used, reason = "HMAC takes keys of any length")]
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("a key of any length");
    let mut values: Vec<(&str, &[u8])> = values.into_iter().collect();
    values.sort_unstable();
    for part in values.iter().flat_map(|(name, value)| [name.as_bytes(), value]) {
        // With their lengths, no two lists of parts run together to the same text.
        mac.update(&(part.len() as u64).to_be_bytes());
        mac.update(part);
    }
    hex(&mac.finalize().into_bytes())
}
