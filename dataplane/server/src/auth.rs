//! Access control: one API key for everything but health.
//!
//! Owns the comparison, which takes the same time wherever a wrong key differs. Never logs what a caller sent.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::config::Secret;
use crate::problem::{Code, Error};

/// The digest of the key that callers must show; `None` when the pod serves loopback only and asks for none.
#[derive(Clone)]
pub(crate) struct ApiKey(Option<Arc<[u8; 32]>>);

impl ApiKey {
    /// From the configured key.
    #[must_use]
    pub(crate) fn new(key: Option<&Secret>) -> Self {
        Self(key.map(|key| Arc::new(Sha256::digest(key.expose().as_bytes()).into())))
    }

    /// Whether the headers show the key, as `Authorization: Bearer KEY` or `X-API-Key: KEY`.
    fn admits(&self, headers: &HeaderMap) -> bool {
        let Some(expected) = &self.0 else { return true };
        let bearer = headers.get(header::AUTHORIZATION).and_then(|value| {
            let (scheme, key) = value.as_bytes().split_at_checked(7)?;
            scheme.eq_ignore_ascii_case(b"bearer ").then_some(key)
        });
        let shown = bearer.or_else(|| headers.get("x-api-key").map(|value| value.as_bytes()));
        // Digests have one length, so that not even the key's length shows in the time taken.
        shown.is_some_and(|key| bool::from(Sha256::digest(key)[..].ct_eq(&expected[..])))
    }
}

/// Lets a request pass only with the key.
pub(crate) async fn require_key(State(key): State<ApiKey>, request: Request, next: Next) -> Response {
    if key.admits(request.headers()) {
        next.run(request).await
    } else {
        let detail = "send the header 'Authorization: Bearer KEY' or 'X-API-Key: KEY'";
        Error::new(Code::Unauthorized, detail).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn admits(name: &'static str, value: &'static str) -> bool {
        let config = Config::load(None, |name| match name {
            "CERTEUS_DB_URL" => Some("postgres://localhost/x".to_owned()),
            "CERTEUS_API_KEY" => Some("0123456789abcdef".to_owned()),
            _ => None,
        });
        let key = ApiKey::new(config.unwrap().api_key.as_ref());
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().unwrap());
        key.admits(&headers)
    }

    #[test]
    fn only_the_whole_key_is_admitted() {
        assert!(admits("authorization", "Bearer 0123456789abcdef"));
        assert!(admits("authorization", "bearer 0123456789abcdef"));
        assert!(admits("x-api-key", "0123456789abcdef"));
        for wrong in [
            "",
            "Bearer",
            "Bearer ",
            "Bearer 0123456789abcde",
            "Bearer 0123456789abcdef ",
            "Basic 0123456789abcdef",
        ] {
            assert!(!admits("authorization", wrong), "{wrong}");
        }
        assert!(!admits("x-api-key", "0123456789abcdeF"));
        assert!(!admits("cookie", "0123456789abcdef"));
        assert!(ApiKey::new(None).admits(&HeaderMap::new()));
    }
}
