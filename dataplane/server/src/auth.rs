//! Access control: one API key for everything but health, and a second one that may also read decrypted fields.
//!
//! Owns the comparison, which takes the same time wherever a wrong key differs. Never logs what a caller sent.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::config::{ApiKeys, Secret};
use crate::problem::{Code, Error};

/// The digests of the keys of which callers must show one; `None` when the pod serves loopback only and asks for none.
#[derive(Clone)]
pub(crate) struct ApiKey(Option<Arc<Digests>>);

struct Digests {
    ordinary: [u8; 32],
    decrypting: Option<[u8; 32]>,
}

/// What a caller that was let in may do beside everything else. Handlers find it in the request's extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Access {
    /// Read encrypted fields decrypted.
    pub(crate) decrypt: bool,
}

impl ApiKey {
    /// From the configured keys.
    #[must_use]
    pub(crate) fn new(keys: Option<&ApiKeys>) -> Self {
        let digest = |key: &Secret| Sha256::digest(key.expose().as_bytes()).into();
        Self(keys.map(|ApiKeys { ordinary, decrypting }| {
            Arc::new(Digests { ordinary: digest(ordinary), decrypting: decrypting.as_ref().map(digest) })
        }))
    }

    /// What the headers give access to, by `Authorization: Bearer KEY` or `X-API-Key: KEY`; `None` without a right key.
    fn access(&self, headers: &HeaderMap) -> Option<Access> {
        let Some(expected) = &self.0 else { return Some(Access { decrypt: true }) };
        let bearer = headers.get(header::AUTHORIZATION).and_then(|value| {
            let (scheme, key) = value.as_bytes().split_at_checked(7)?;
            scheme.eq_ignore_ascii_case(b"bearer ").then_some(key)
        });
        let shown = bearer.or_else(|| headers.get("x-api-key").map(|value| value.as_bytes()))?;
        // Digests have one length, so that not even the key's length shows in the time taken.
        let shown = Sha256::digest(shown);
        let ordinary = bool::from(shown[..].ct_eq(&expected.ordinary[..]));
        let decrypt = expected.decrypting.is_some_and(|key| bool::from(shown[..].ct_eq(&key[..])));
        (ordinary || decrypt).then_some(Access { decrypt })
    }
}

/// Whether a pod that asks for no key may answer: only what names this machine itself.
///
/// Loopback keeps other machines out, but not the pages in a browser on this one: a page may send requests here (then
/// its `Origin` is elsewhere), or have its own name resolved to 127.0.0.1 (then `Host` is that name).
fn is_local(headers: &HeaderMap) -> bool {
    let local = |authority: &str| {
        let host =
            authority.rsplit_once(':').filter(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()));
        let host = host.map_or(authority, |(host, _)| host).trim_start_matches('[').trim_end_matches(']');
        host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    };
    let all_local = |name: HeaderName, strip: fn(&str) -> &str| {
        headers.get_all(name).iter().all(|value| value.to_str().is_ok_and(|text| local(strip(text))))
    };
    all_local(header::HOST, |host| host)
        && all_local(header::ORIGIN, |origin| {
            origin.split_once("://").map_or(origin, |(_, authority)| authority)
        })
}

/// Lets a request pass only with the key, or from this machine where there is none.
pub(crate) async fn require_key(State(key): State<ApiKey>, mut request: Request, next: Next) -> Response {
    if key.0.is_none() && !is_local(request.headers()) {
        let detail = "without an API key only requests to and from localhost are answered";
        Error::new(Code::Forbidden, detail).into_response()
    } else if let Some(access) = key.access(request.headers()) {
        request.extensions_mut().insert(access);
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

    fn access(name: &'static str, value: &'static str) -> Option<Access> {
        let config = Config::load(None, None, |name| match name {
            "CERTEUS_DB_URL" => Some("postgres://localhost/x".into()),
            "CERTEUS_API_KEY" => Some("0123456789abcdef".into()),
            "CERTEUS_DECRYPT_API_KEY" => Some("decrypting-0123456789".into()),
            _ => None,
        });
        let key = ApiKey::new(config.unwrap().api_keys.as_ref());
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().unwrap());
        key.access(&headers)
    }

    fn admits(name: &'static str, value: &'static str) -> bool {
        access(name, value).is_some()
    }

    #[test]
    fn without_a_key_pages_from_elsewhere_are_refused() {
        let headers = |pairs: &[(HeaderName, &str)]| -> HeaderMap {
            pairs.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect()
        };
        let (host, origin) = (header::HOST, header::ORIGIN);
        for ok in ["localhost", "LOCALHOST:8000", "127.0.0.1:8000", "127.8.8.8", "[::1]:8000"] {
            assert!(is_local(&headers(&[(host.clone(), ok)])), "{ok}");
        }
        for bad in ["evil.example", "evil.example:8000", "10.0.0.1:8000", "localhost.evil.example", ""] {
            assert!(!is_local(&headers(&[(host.clone(), bad)])), "{bad}");
        }
        let from = |page| is_local(&headers(&[(host.clone(), "127.0.0.1:9090"), (origin.clone(), page)]));
        assert!(from("http://localhost:3000"));
        assert!(!from("http://evil.example") && !from("null") && !from("http://127.0.0.1.evil.example"));
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
        assert_eq!(ApiKey::new(None).access(&HeaderMap::new()), Some(Access { decrypt: true }));
    }

    #[test]
    fn the_second_key_may_do_the_same_and_decrypt() {
        assert_eq!(access("x-api-key", "0123456789abcdef"), Some(Access { decrypt: false }));
        assert_eq!(access("x-api-key", "decrypting-0123456789"), Some(Access { decrypt: true }));
        assert_eq!(access("authorization", "Bearer decrypting-0123456789"), Some(Access { decrypt: true }));
        assert_eq!(access("x-api-key", "decrypting-012345678"), None);
    }
}
