//! The public log: checkpoint, tiles and entries as C2SP `tlog-tiles` lays them out, and the keys to verify them with.
//!
//! Needs no API key. Tiles never change under their name, so any cache may keep them for ever.

use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use certeus_ledger::LogError;
use certeus_tlog::note::{Algorithm, VerifierKey};
use certeus_tlog::tile::{BundleId, TileId};
use serde::Serialize;
use utoipa::ToSchema;

use super::App;
use crate::problem::{Code, Error, Problem};

/// Without word from the database for longer than this, a reply says how old it may be.
pub(super) const STALE_AFTER: Duration = Duration::from_secs(5);

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const STALE: HeaderName = HeaderName::from_static("certeus-stale");

fn check_ledger(app: &App, ledger: &str) -> Result<(), Error> {
    if ledger == app.ledger.name() {
        return Ok(());
    }
    Err(Error::new(Code::NotFound, format!("there is no ledger {ledger:?}")))
}

/// Seconds since the database last confirmed the newest checkpoint, when that is long ago.
pub(super) fn stale(app: &App) -> Option<(HeaderName, HeaderValue)> {
    let age = app.ledger.checkpoint_confirmed().filter(|age| *age > STALE_AFTER)?;
    Some((STALE, HeaderValue::from(age.as_secs())))
}

/// The newest signed checkpoint of a ledger's log (C2SP `tlog-checkpoint`).
#[utoipa::path(
    get,
    path = "/log/{ledger}/checkpoint",
    params(("ledger" = String, Path, description = "The ledger's name")),
    responses(
        (status = 200, description = "A signed note", content_type = "text/plain", body = String, headers(
            ("Certeus-Stale" = u64, description = "When the database is away: seconds since it was last heard of"),
        )),
        (status = 404, description = "No such ledger", body = Problem),
        (status = 409, description = "Nothing was signed yet", body = Problem),
        (status = 501, description = "The log is not signed here", body = Problem),
    )
)]
pub(crate) async fn checkpoint(
    State(app): State<App>,
    Path(ledger): Path<String>,
) -> Result<Response, Error> {
    check_ledger(&app, &ledger)?;
    let latest = app.ledger.checkpoint()?;
    let mut headers = HeaderMap::from_iter(stale(&app));
    headers.insert(header::CONTENT_TYPE, TEXT);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=1"));
    Ok((headers, latest.signed.note.clone()).into_response())
}

/// A tile of hashes or a bundle of entries of a ledger's log (C2SP `tlog-tiles`).
///
/// The path is `<level>/<index>` or `entries/<index>`, with `.p/<width>` for a partial one. Only what the newest checkpoint covers
/// is there. A bundle has for each entry its length as two bytes, big-endian, and the 32 bytes that commit to the event.
#[utoipa::path(
    get,
    path = "/log/{ledger}/tile/{path}",
    params(
        ("ledger" = String, Path, description = "The ledger's name"),
        ("path" = String, Path, description = "Level and index, such as 0/x001/234 or entries/000.p/5"),
    ),
    responses(
        (status = 200, description = "The tile", content_type = "application/octet-stream", body = Vec<u8>),
        (status = 404, description = "Not a tile of the newest checkpoint", body = Problem),
        (status = 409, description = "Nothing was signed yet", body = Problem),
        (status = 500, description = "What is stored is not what was signed", body = Problem),
        (status = 501, description = "The log is not signed here", body = Problem),
        (status = 503, description = "The database is not available", body = Problem),
    )
)]
pub(crate) async fn tile(
    State(app): State<App>,
    Path((ledger, path)): Path<(String, String)>,
) -> Result<Response, Error> {
    check_ledger(&app, &ledger)?;
    let path = format!("tile/{path}");
    let no_such = |error| Error::new(Code::NotFound, format!("{path:?}: {error}"));
    let bytes = if path.starts_with("tile/entries/") {
        app.ledger.log_entries(BundleId::from_path(&path).map_err(no_such)?).await?
    } else {
        app.ledger.log_tile(TileId::from_path(&path).map_err(no_such)?).await?
    };
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=31536000, immutable")),
    ];
    Ok((headers, bytes).into_response())
}

/// The public keys of a ledger's log, one a line, as signed notes have them: those that sign, then retired ones.
#[utoipa::path(
    get,
    path = "/log/{ledger}/keys",
    params(("ledger" = String, Path, description = "The ledger's name")),
    responses(
        (status = 200, description = "Verifier keys", content_type = "text/plain", body = String),
        (status = 404, description = "No such ledger", body = Problem),
        (status = 501, description = "The log is not signed here", body = Problem),
    )
)]
pub(crate) async fn keys(State(app): State<App>, Path(ledger): Path<String>) -> Result<Response, Error> {
    check_ledger(&app, &ledger)?;
    let keys = app.ledger.log_keys().await.ok_or(LogError::Off)?;
    let text: String = keys.iter().map(|key| format!("{key}\n")).collect();
    Ok(([(header::CONTENT_TYPE, TEXT), (header::CACHE_CONTROL, brief())], text).into_response())
}

fn brief() -> HeaderValue {
    HeaderValue::from_static("public, max-age=60")
}

/// A set of public keys (RFC 7517).
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct KeySet {
    /// The keys.
    keys: Vec<PublicKey>,
}

/// A public key.
#[derive(Debug, Serialize, ToSchema)]
#[serde(tag = "kty")]
enum PublicKey {
    /// Ed25519 (RFC 8037).
    #[serde(rename = "OKP")]
    Okp {
        /// Its id in signed notes, in hexadecimal.
        kid: String,
        /// `Ed25519`.
        crv: &'static str,
        /// `Ed25519`.
        alg: &'static str,
        /// `sig`.
        r#use: &'static str,
        /// The key, base64url.
        x: String,
    },
    /// ML-DSA-44 (FIPS 204).
    #[serde(rename = "AKP")]
    Akp {
        /// Its id in signed notes, in hexadecimal.
        kid: String,
        /// `ML-DSA-44`.
        alg: &'static str,
        /// `sig`.
        r#use: &'static str,
        /// The key, base64url.
        r#pub: String,
    },
}

impl PublicKey {
    fn of(key: &VerifierKey) -> Self {
        let kid = format!("{:08x}", key.id());
        let public = BASE64_URL_SAFE_NO_PAD.encode(key.public_key());
        match key.algorithm() {
            Algorithm::Ed25519 | Algorithm::CosignatureV1 => {
                Self::Okp { kid, crv: "Ed25519", alg: "Ed25519", r#use: "sig", x: public }
            }
            Algorithm::MlDsa44 => Self::Akp { kid, alg: "ML-DSA-44", r#use: "sig", r#pub: public },
        }
    }
}

/// The public keys that sign, and retired ones, as a JSON Web Key Set. Empty when the log is not signed here.
#[utoipa::path(
    get,
    path = "/.well-known/jwks.json",
    responses((status = 200, description = "The keys", body = KeySet))
)]
pub(crate) async fn key_set(State(app): State<App>) -> Response {
    let keys = app.ledger.log_keys().await.unwrap_or_default();
    let set = KeySet { keys: keys.iter().map(PublicKey::of).collect() };
    // Nothing in it can fail to serialise.
    let body = serde_json::to_vec(&set).unwrap_or_default();
    let kind = HeaderValue::from_static("application/jwk-set+json");
    ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, brief())], body).into_response()
}
