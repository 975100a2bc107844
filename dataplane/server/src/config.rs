//! The pod's configuration: a YAML file, overridden by environment variables, resolved once into checked values.
//!
//! Owns every key, its default and its bounds. Never reads anything after start. A value that cannot work is refused with its
//! path and what would be valid. Secrets come from the environment only and are never printed.

mod file;
mod values;

use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use certeus_ledger::field::{Encryption, Fields, Keyring};
use certeus_ledger::{Anchor, AnchorError, ArchiveConfig, Database, KeyError, SigningKeys, SpoolConfig};
use tracing_subscriber::filter::LevelFilter;

use file::{File, LedgerSection, LogSection, ProofsSection, RetentionSection, SpoolSection, read};

/// Connections that a pod needs beside the writers': one for reads, one for the health check.
const READ_CONNECTIONS_MIN: usize = 2;

/// Every environment variable that is read.
const VARIABLES: &[&str] = &[
    "CERTEUS_DB_URL",
    "CERTEUS_DB_CA",
    "CERTEUS_API_KEY",
    "CERTEUS_DECRYPT_API_KEY",
    "CERTEUS_ENCRYPTION_KEY",
    "CERTEUS_API_LISTEN",
    "CERTEUS_ADMIN_LISTEN",
    "CERTEUS_METRICS_PORT",
    "CERTEUS_POOL_SIZE",
    "CERTEUS_LOG_LEVEL",
    "CERTEUS_SIGNING_KEY",
    "CERTEUS_SIGNING_KEY_FILE",
    "CERTEUS_LOG_ORIGIN",
    "CERTEUS_LOG_ANCHOR",
    "CERTEUS_LOG_ANCHOR_SHARED",
    "STRICT_PROOF_ONLY",
    "PUBLIC_BASE_URL",
];

/// Why the configuration is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not YAML.
    #[error("{}: not valid YAML: {reason}", path.display())]
    Yaml {
        /// The file.
        path: PathBuf,
        /// Where and why.
        reason: String,
    },
    /// A key is unknown, or a value has the wrong type or is out of bounds.
    #[error("{origin}: {reason}")]
    Value {
        /// The key's path, or the variable's name.
        origin: String,
        /// What is wrong and what would be valid.
        reason: String,
    },
}

fn invalid(origin: impl Into<String>, reason: impl Into<String>) -> Error {
    Error::Value { origin: origin.into(), reason: reason.into() }
}

/// How bundles are made and published.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Proofs {
    /// Refuse what is not proven. Default: no.
    pub(crate) strict: bool,
    /// What stands before the path of a published bundle, without a slash at its end. Default: nothing.
    pub(crate) public_base_url: String,
}

/// Where a server takes connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Listen {
    /// A socket of its own.
    Address(SocketAddr),
    /// File descriptor 0 is a listening socket that the parent process shares among its pods.
    Inherited,
}

impl FromStr for Listen {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "fd:0" {
            return Ok(Self::Inherited);
        }
        text.parse()
            .map(Self::Address)
            .map_err(|_| "must be an address and port such as 127.0.0.1:8000, or fd:0")
    }
}

/// A secret; its value never shows in debug output.
#[derive(Clone)]
pub(crate) struct Secret(String);

impl Secret {
    /// The value.
    #[must_use]
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// Where the keys come from that sign the log.
#[derive(Debug, Clone)]
pub(crate) enum SigningKey {
    /// Nowhere: the log is not signed.
    None,
    /// The environment.
    Given(Arc<SigningKeys>),
    /// A file, made on first use.
    File {
        /// Its path.
        path: PathBuf,
        /// The name of a new key; that of an existing one must be the same, if given.
        origin: Option<String>,
    },
}

impl SigningKey {
    /// The keys; makes the file if there is none.
    ///
    /// # Errors
    /// When the file cannot be used.
    pub(crate) fn load(&self) -> Result<Option<Arc<SigningKeys>>, Error> {
        match self {
            Self::None => Ok(None),
            Self::Given(keys) => Ok(Some(Arc::clone(keys))),
            Self::File { path, origin } => {
                let keys = SigningKeys::load_or_create(path, origin.as_deref());
                keys.map(|keys| Some(Arc::new(keys))).map_err(|error| invalid("log.keyFile", chain(&error)))
            }
        }
    }
}

/// The checked configuration.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// Where the API listens. Default: 127.0.0.1:8000.
    pub(crate) api: Listen,
    /// Where metrics, health and drain listen. Default: 127.0.0.1:9090.
    pub(crate) admin: SocketAddr,
    /// PostgreSQL, from the URL in `CERTEUS_DB_URL`; trusted by the certificates in `CERTEUS_DB_CA`, if there are any.
    pub(crate) database: Database,
    /// Connections of this pod to PostgreSQL, writers' included. Default: 8.
    pub(crate) pool_size: usize,
    /// A batch takes no further request once it has this many events. Default: 10,000.
    pub(crate) batch_events: usize,
    /// Longest wait of a request for its batch to fill. Default: 100 ms.
    pub(crate) batch_timeout: Duration,
    /// Events that may wait. Default: 100,000.
    pub(crate) queue_events: usize,
    /// Bytes that may wait. Default: 64 MiB.
    pub(crate) queue_bytes: usize,
    /// Commits under way at the same time. Default: 2.
    pub(crate) writers: usize,
    /// Where old events go, and when. Default: nowhere, never.
    pub(crate) archive: Option<ArchiveConfig>,
    /// Where requests are kept while the database is away: `spool.path` or `--spool`, at most `spool.maxBytes` (default:
    /// 900Mi), if `spool.persistent` says that the volume outlives the pod. Default: nowhere.
    pub(crate) spool: Option<SpoolConfig>,
    /// Where delivered rules are kept: a folder beside the spool's files, if that volume outlives the pod. Default: nowhere.
    pub(crate) rules: Option<PathBuf>,
    /// Log level. Default: info.
    pub(crate) log_level: LevelFilter,
    /// What signs the log. Default: nothing.
    pub(crate) signing_key: SigningKey,
    /// Where the newest checkpoint is kept outside of the database. Default: nowhere.
    pub(crate) anchor: Option<Anchor>,
    /// All pods have this anchor: a bucket's always, a file if the configuration says so. Default: no.
    pub(crate) anchor_shared: bool,
    /// Longest time between growing and being signed. Default: 1 s.
    pub(crate) checkpoint_interval: Duration,
    /// The keys that callers must show one of. Without them only loopback addresses are served.
    pub(crate) api_keys: Option<ApiKeys>,
    /// What is encrypted, from `encryption.fields` and `CERTEUS_ENCRYPTION_KEY`. Default: nothing.
    pub(crate) encryption: Option<Arc<Encryption>>,
    /// How bundles are made and published.
    pub(crate) proofs: Proofs,
}

/// What callers show.
#[derive(Debug, Clone)]
pub(crate) struct ApiKeys {
    /// Opens everything, and shows encrypted fields as they are stored: `CERTEUS_API_KEY`.
    pub(crate) ordinary: Secret,
    /// Opens everything, and shows encrypted fields decrypted: `CERTEUS_DECRYPT_API_KEY`.
    pub(crate) decrypting: Option<Secret>,
}

impl Config {
    /// Reads the file, if there is one, and the environment; `spool` goes before the file's `spool.path`.
    ///
    /// # Errors
    /// When something cannot be used.
    pub(crate) fn load(
        path: Option<&Path>,
        spool: Option<PathBuf>,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, Error> {
        let mut file = path.map(read).transpose()?.unwrap_or_default();
        file.spool.path = spool.or(file.spool.path);
        for name in VARIABLES {
            if variable(name).is_some_and(|value| value.to_str().is_none()) {
                return Err(invalid(*name, "is not UTF-8"));
            }
        }
        resolve(file, |name| variable(name).and_then(|value| value.into_string().ok()))
    }
}

/// Takes a number from the environment or the file, and checks its bounds.
fn number(
    key: &str,
    value: Option<usize>,
    default: usize,
    bounds: std::ops::RangeInclusive<usize>,
) -> Result<usize, Error> {
    let value = value.unwrap_or(default);
    if bounds.contains(&value) {
        return Ok(value);
    }
    Err(invalid(key, format!("is {value}, and must be from {} to {}", bounds.start(), bounds.end())))
}

fn resolve(file: File, variable: impl Fn(&str) -> Option<String>) -> Result<Config, Error> {
    let File { api, admin, database: pool, ledger, spool, encryption, retention, log, proofs } = file;
    let LedgerSection { batch_size, batch_timeout, queue_events, queue_bytes, writers } = ledger;
    let api_keys = api_keys(&variable)?;
    let encryption = encryption_of(encryption.fields, variable("CERTEUS_ENCRYPTION_KEY").map(Secret))?;
    let database = database(&variable)?;

    let listen = variable("CERTEUS_API_LISTEN").map(|value| ("CERTEUS_API_LISTEN", value));
    let api = address(listen, "api.listen", api.listen, Listen::Address(loopback(8000)))?;
    let listen = variable("CERTEUS_ADMIN_LISTEN").map(|value| ("CERTEUS_ADMIN_LISTEN", value));
    let mut admin: SocketAddr = address(listen, "admin.listen", admin.listen, loopback(9090))?;
    if let Some(port) = variable("CERTEUS_METRICS_PORT") {
        admin.set_port(parsed("CERTEUS_METRICS_PORT", &port, "a port from 1 to 65535")?);
    }
    let writers = number("ledger.writers", writers, 2, 1..=64)?;
    let (pool_key, pool_size) = match variable("CERTEUS_POOL_SIZE") {
        Some(size) => ("CERTEUS_POOL_SIZE", Some(parsed("CERTEUS_POOL_SIZE", &size, "a number")?)),
        None => ("database.poolSize", pool.pool_size),
    };
    let LogSection { level, key_file, origin, anchor, anchor_shared, checkpoint_interval } = log;
    let signing_key = signing_key(key_file, origin, &variable)?;
    let anchor = match variable("CERTEUS_LOG_ANCHOR") {
        Some(anchor) => Some(("CERTEUS_LOG_ANCHOR", anchor)),
        None => anchor.map(|anchor| ("log.anchor", anchor)),
    };
    let anchor = anchor.map(|(key, text)| parse_anchor(key, &text)).transpose()?;
    let anchor_shared = match variable("CERTEUS_LOG_ANCHOR_SHARED") {
        Some(shared) => boolean("CERTEUS_LOG_ANCHOR_SHARED", &shared)?,
        None => anchor_shared.unwrap_or(false),
    };
    let level = match variable("CERTEUS_LOG_LEVEL") {
        Some(level) => ("CERTEUS_LOG_LEVEL", level),
        None => ("log.level", level.unwrap_or_else(|| "info".to_owned())),
    };
    let config = Config {
        api,
        admin,
        database,
        pool_size: number(
            pool_key,
            pool_size,
            8.max(writers + READ_CONNECTIONS_MIN),
            writers + READ_CONNECTIONS_MIN..=500,
        )?,
        batch_events: number("ledger.batchSize", batch_size, 10_000, 1..=1_000_000)?,
        batch_timeout: batch_timeout.map_or(Duration::from_millis(100), |timeout| timeout.0),
        queue_events: number("ledger.queueEvents", queue_events, 100_000, 1..=10_000_000)?,
        queue_bytes: number(
            "ledger.queueBytes",
            queue_bytes.map(|bytes| bytes.0),
            64 << 20,
            1 << 20..=16 << 30,
        )?,
        writers,
        archive: archive(retention)?,
        rules: rules_folder(&spool),
        spool: spool_of(spool, encryption.as_deref())?,
        log_level: parsed(level.0, &level.1, "one of off, error, warn, info, debug, trace")?,
        signing_key,
        anchor_shared: match anchor {
            None => false,
            Some(Anchor::File(_)) => anchor_shared,
            Some(Anchor::Object(_)) => true,
        },
        anchor,
        checkpoint_interval: checkpoint_interval.map_or(Duration::from_secs(1), |interval| interval.0),
        api_keys,
        encryption,
        proofs: proofs_of(proofs, &variable)?,
    };
    if config.anchor.is_some() && matches!(config.signing_key, SigningKey::None) {
        return Err(invalid("log.anchor", "needs a signing key: set CERTEUS_SIGNING_KEY or log.keyFile"));
    }
    if !(Duration::from_millis(100)..=Duration::from_secs(60)).contains(&config.checkpoint_interval) {
        return Err(invalid("log.checkpointInterval", "must be from 100ms to 60s"));
    }
    if config.batch_timeout > Duration::from_secs(5) {
        return Err(invalid("ledger.batchTimeout", "must be at most 5s"));
    }
    check_exposure(&config)?;
    Ok(config)
}

fn database(variable: &impl Fn(&str) -> Option<String>) -> Result<Database, Error> {
    let (url_key, ca_key) = ("CERTEUS_DB_URL", "CERTEUS_DB_CA");
    let missing = "is required: a PostgreSQL URL such as postgres://user:password@host:5432/database";
    let url = variable(url_key).ok_or_else(|| invalid(url_key, missing))?;
    let database = Database::from_url(&url).map_err(|error| invalid(url_key, error.to_string()))?;
    match variable(ca_key) {
        Some(ca) => database.trusting(&ca).map_err(|error| invalid(ca_key, error.to_string())),
        None => Ok(database),
    }
}

/// Rules hold nothing that would have to be encrypted, so they are kept where the spool itself may not be used.
fn rules_folder(SpoolSection { path, max_bytes: _, persistent }: &SpoolSection) -> Option<PathBuf> {
    path.as_ref().filter(|_| *persistent == Some(true)).map(|path| path.join("rules"))
}

/// A request acknowledged from a volume that goes with the pod would be lost with it: such a volume is never used.
fn spool_of(section: SpoolSection, encryption: Option<&Encryption>) -> Result<Option<SpoolConfig>, Error> {
    let SpoolSection { path, max_bytes, persistent } = section;
    let bounds = 1 << 20..=1 << 50;
    let bytes_max = number("spool.maxBytes", max_bytes.map(|bytes| bytes.0), 900 << 20, bounds)?;
    if path.is_none() && persistent == Some(true) {
        return Err(invalid("spool.path", "is required with spool.persistent: the folder on that volume"));
    }
    // What is to be encrypted is encrypted with the batch that it is stored in: the spool would hold it as it came.
    let in_clear = encryption.is_some_and(|encryption| !encryption.fields.is_empty());
    let usable = persistent == Some(true) && !in_clear;
    Ok(path.filter(|_| usable).map(|path| SpoolConfig { path, bytes_max: bytes_max as u64 }))
}

fn api_keys(variable: impl Fn(&str) -> Option<String>) -> Result<Option<ApiKeys>, Error> {
    let read = |name: &str| match variable(name) {
        // No header could carry anything else, such as the line feed at the end of a mounted file.
        Some(key) if key.len() < 16 || !key.bytes().all(|byte| byte.is_ascii_graphic()) => {
            let reason = "must have at least 16 characters, all of them visible ASCII without white space";
            Err(invalid(name, reason))
        }
        key => Ok(key.map(Secret)),
    };
    let decrypting = "CERTEUS_DECRYPT_API_KEY";
    match (read("CERTEUS_API_KEY")?, read(decrypting)?) {
        (None, None) => Ok(None),
        (None, Some(_)) => {
            let reason = "needs CERTEUS_API_KEY: without that one every caller may read what is decrypted";
            Err(invalid(decrypting, reason))
        }
        (Some(ordinary), Some(same)) if ordinary.0 == same.0 => {
            Err(invalid(decrypting, "must differ from CERTEUS_API_KEY"))
        }
        (Some(ordinary), decrypting) => Ok(Some(ApiKeys { ordinary, decrypting })),
    }
}

/// Taking a key and storing plain text, or the other way round, would be the worst answer: one without the other is refused.
fn encryption_of(
    fields: Option<Vec<String>>,
    keys: Option<Secret>,
) -> Result<Option<Arc<Encryption>>, Error> {
    let (fields_key, keys_key) = ("encryption.fields", "CERTEUS_ENCRYPTION_KEY");
    let (fields, keys) = match (fields, keys) {
        (None, None) => return Ok(None),
        (None, Some(_)) => {
            let reason = "is set, but encryption.fields is not: list the members to encrypt, or write an empty list \
                          to encrypt nothing and still decrypt what is stored";
            return Err(invalid(keys_key, reason));
        }
        (Some(fields), None) if fields.is_empty() => return Ok(None),
        (Some(_), None) => return Err(invalid(fields_key, "needs a key in CERTEUS_ENCRYPTION_KEY")),
        (Some(fields), Some(keys)) => (fields, keys),
    };
    let fields = Fields::new(&fields).map_err(|error| invalid(fields_key, error.to_string()))?;
    let keyring = Keyring::parse(keys.expose()).map_err(|error| invalid(keys_key, error.to_string()))?;
    Ok(Some(Arc::new(Encryption { fields, keyring })))
}

fn proofs_of(file: ProofsSection, variable: &impl Fn(&str) -> Option<String>) -> Result<Proofs, Error> {
    const STRICT: &str = "STRICT_PROOF_ONLY";
    let ProofsSection { strict, public_base_url } = file;
    let strict = match variable(STRICT) {
        Some(strict) => boolean(STRICT, &strict)?,
        None => strict.unwrap_or(false),
    };
    let (key, url) = match variable("PUBLIC_BASE_URL") {
        Some(url) => ("PUBLIC_BASE_URL", url),
        None => ("proofs.publicBaseUrl", public_base_url.unwrap_or_default()),
    };
    let valid = url.is_empty() || is_base_url(&url);
    if !valid {
        let reason = "must be an address such as https://proofs.example.com, without query and fragment";
        return Err(invalid(key, format!("is {url:?}, and {reason}")));
    }
    Ok(Proofs { strict, public_base_url: url.trim_end_matches('/').to_owned() })
}

fn is_base_url(url: &str) -> bool {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    rest.is_some_and(|rest| {
        let visible = rest.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#\"<>\\@".contains(&byte));
        visible && !rest.is_empty() && !rest.starts_with(['/', ':'])
    })
}

/// The environment goes before the file, as everywhere.
fn signing_key(
    file: Option<PathBuf>,
    origin: Option<String>,
    variable: &impl Fn(&str) -> Option<String>,
) -> Result<SigningKey, Error> {
    const KEY: &str = "CERTEUS_SIGNING_KEY";
    let path = variable("CERTEUS_SIGNING_KEY_FILE");
    let Some(text) = variable(KEY) else {
        let origin = variable("CERTEUS_LOG_ORIGIN").or(origin);
        let path = path.map(PathBuf::from).or(file);
        return Ok(path.map_or(SigningKey::None, |path| SigningKey::File { path, origin }));
    };
    if path.is_some() {
        return Err(invalid("CERTEUS_SIGNING_KEY_FILE", format!("{KEY} is set as well: set one of them")));
    }
    let keys = text.parse().map_err(|error: KeyError| invalid(KEY, chain(&error)));
    Ok(SigningKey::Given(Arc::new(keys?)))
}

fn parse_anchor(key: &str, text: &str) -> Result<Anchor, Error> {
    text.parse().map_err(|error: AnchorError| invalid(key, format!("is {text:?}, and {error}")))
}

/// An error and its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Where old events go; dropping them without a copy is not offered.
fn archive(section: RetentionSection) -> Result<Option<ArchiveConfig>, Error> {
    let RetentionSection { events, archive } = section;
    let Some(location) = archive else {
        return match events {
            None => Ok(None),
            Some(_) => Err(invalid("retention.archive", "is required with retention.events")),
        };
    };
    let location = location
        .parse()
        .map_err(|error: certeus_ledger::LocationError| invalid("retention.archive", error.to_string()))?;
    Ok(Some(ArchiveConfig { location, keep: events.map(|days| days.0) }))
}

fn loopback(port: u16) -> SocketAddr {
    (IpAddr::from(Ipv4Addr::LOCALHOST), port).into()
}

fn parsed<T: FromStr>(key: &str, text: &str, valid: &str) -> Result<T, Error> {
    // The parser's own words would not say more than what is valid.
    text.parse().map_err(|_| invalid(key, format!("is {text:?}, and must be {valid}")))
}

/// A switch from the environment. A word that is not understood is never taken for "no": less would be done than was asked for.
fn boolean(key: &str, text: &str) -> Result<bool, Error> {
    match text {
        "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        other => Err(invalid(key, format!("is {other:?}, and must be true, false, 1 or 0"))),
    }
}

/// An address from the environment, else from the file, else the default.
fn address<T: FromStr>(
    variable: Option<(&str, String)>,
    key: &str,
    value: Option<String>,
    default: T,
) -> Result<T, Error> {
    match variable.or_else(|| value.map(|value| (key, value))) {
        Some((key, text)) => parsed(key, &text, "an address and port such as 127.0.0.1:8000"),
        None => Ok(default),
    }
}

/// Without a key nothing beyond this machine may reach the pod.
fn check_exposure(config: &Config) -> Result<(), Error> {
    let Config { api, admin, api_keys, .. } = config;
    let exposed = |address: &SocketAddr| api_keys.is_none() && !address.ip().is_loopback();
    let reason = "without CERTEUS_API_KEY only loopback addresses such as 127.0.0.1 may be served";
    match api {
        Listen::Address(address) if exposed(address) => {
            Err(invalid("api.listen", format!("is {address}: {reason}")))
        }
        // An inherited socket is checked when it is taken over.
        Listen::Address(_) | Listen::Inherited if exposed(admin) => {
            Err(invalid("admin.listen", format!("is {admin}: {reason}")))
        }
        Listen::Address(_) | Listen::Inherited => Ok(()),
    }
}

#[cfg(test)]
mod tests;
