//! The HTTP API: its routes, who may call them, and its OpenAPI description.
//!
//! Owns the table of routes. Handlers sit in the modules below; none of them knows SQL or sockets.

mod admin;
mod decrypt;
pub(crate) mod erasure;
mod events;
mod health;
mod identity;
mod log;
mod pco;
mod proof;
mod rules;
mod status;

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::middleware;
use axum::routing::{get, post, put};
use certeus_ledger::Ledger;
use certeus_monitor::rules::Store as RuleStore;
use prometheus::{IntGauge, Registry};
use utoipa::openapi::security::{ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityScheme};
use utoipa::{Modify, OpenApi};
use utoipa_swagger_ui::SwaggerUi;

use crate::auth::{self, require_key};
use crate::body::MemoryBudget;
use crate::config::Proofs;
use crate::lifecycle::Lifecycle;
use crate::problem::{Code, Error};
use crate::process::Process;

/// What handlers share.
#[derive(Clone)]
pub(crate) struct App(Arc<Parts>);

/// The parts of [`App`].
pub(crate) struct Parts {
    /// The ledger.
    pub(crate) ledger: Ledger,
    /// The pod's phase.
    pub(crate) lifecycle: Arc<Lifecycle>,
    /// The pod's use of the machine.
    pub(crate) process: Process,
    /// Shows in the metrics whether the pod is draining.
    pub(crate) draining: IntGauge,
    /// All metrics.
    pub(crate) registry: Registry,
    /// Memory for requests.
    pub(crate) budget: MemoryBudget,
    /// Memory for large replies that need no key: whoever reads them slowly must not take the place of events.
    pub(crate) public_budget: MemoryBudget,
    /// Bytes of a request body, before and after decompression.
    pub(crate) body_bytes_max: usize,
    /// Size of the whole connection pool, writers included.
    pub(crate) pool_size: usize,
    /// How bundles are made and published.
    pub(crate) proofs: Proofs,
    /// The rules that were delivered to this pod.
    pub(crate) rules: RuleStore,
}

impl App {
    /// Shares the parts.
    #[must_use]
    pub(crate) fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }
}

impl std::ops::Deref for App {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

/// The API's description.
#[derive(OpenApi)]
#[openapi(
    modifiers(&Keys),
    // The empty one: a pod without a key asks for none.
    security((), ("bearer" = []), ("header" = [])),
    info(title = "Certeus data plane", description = "A verifiable event ledger on PostgreSQL."),
    paths(
        events::append,
        events::get_one,
        events::list,
        erasure::erase,
        proof::of_event,
        proof::consistency,
        proof::of_case,
        pco::bundle,
        pco::publish,
        pco::published,
        log::checkpoint,
        log::tile,
        log::keys,
        log::key_set,
        status::metrics,
        status::ledger_health,
        status::diagnostics,
        rules::list,
        health::overview,
        health::live,
        health::ready,
        health::detailed,
        health::system,
    )
)]
struct Description;

/// The two ways of showing the API key.
struct Keys;

impl Modify for Keys {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let components = openapi.components.get_or_insert_default();
        components.add_security_scheme("bearer", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
        let header = ApiKey::Header(ApiKeyValue::new("X-API-Key"));
        components.add_security_scheme("header", SecurityScheme::ApiKey(header));
    }
}

fn health_routes() -> Router<App> {
    Router::new()
        .route("/health", get(health::overview))
        .route("/health/live", get(health::live))
        .route("/health/ready", get(health::ready))
        .route("/health/detailed", get(health::detailed))
        .route("/health/system", get(health::system))
        .method_not_allowed_fallback(no_such_method)
}

/// What the API port serves.
pub(crate) fn api_router(app: App, key: auth::ApiKey) -> Router {
    let guarded = Router::new()
        .route("/v1/ledger/events", post(events::append).get(events::list))
        .route("/v1/ledger/events/{id}", get(events::get_one))
        .route("/v1/ledger/events/{id}/erasure", post(erasure::erase))
        .route("/v1/ledger/events/{id}/proof", get(proof::of_event))
        .route("/v1/ledger/log/consistency", get(proof::consistency))
        .route("/v1/ledger/{case_id}", get(proof::of_case))
        .route("/v1/pco/bundle", post(pco::bundle))
        .route("/v1/proofgate/publish", post(pco::publish))
        .route("/v1/ledger/metrics", get(status::metrics))
        .route("/v1/ledger/health", get(status::ledger_health))
        .route("/v1/ledger/diagnostics", get(status::diagnostics))
        .route("/api/v1/rules", get(rules::list))
        .merge(SwaggerUi::new("/docs").url("/openapi.json", Description::openapi()))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(middleware::from_fn_with_state(key, require_key));
    guarded.merge(health_routes()).merge(public_routes()).with_state(app)
}

/// The log itself is public: it shows how many events there are, and of each nothing but a salted hash. So is what was published.
fn public_routes() -> Router<App> {
    Router::new()
        .route("/log/{ledger}/checkpoint", get(log::checkpoint))
        .route("/log/{ledger}/tile/{*path}", get(log::tile))
        .route("/log/{ledger}/keys", get(log::keys))
        .route("/.well-known/jwks.json", get(log::key_set))
        .route("/v1/pco/public/{rid}", get(pco::published))
        .method_not_allowed_fallback(no_such_method)
}

/// What the admin port serves.
pub(crate) fn admin_router(app: App, key: auth::ApiKey) -> Router {
    let guarded = Router::new()
        .route("/metrics", get(admin::metrics))
        .route("/admin/drain", post(admin::drain).get(admin::drain_state).delete(admin::cancel_drain))
        .route("/rules", get(rules::loaded))
        .route("/rules/{namespace}/{name}", put(rules::put).delete(rules::delete))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(middleware::from_fn_with_state(key, require_key));
    guarded.merge(health_routes()).with_state(app)
}

async fn no_such_path(request: Request) -> Error {
    Error::new(Code::NotFound, format!("there is no {}; the API is described at /docs", request.uri().path()))
}

async fn no_such_method(request: Request) -> Error {
    Error::new(Code::MethodNotAllowed, format!("{} does not take {}", request.uri().path(), request.method()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every parameter in a path is in its template, and every other one is in the query or a header.
    #[test]
    fn parameters_are_where_the_description_says() {
        let description = serde_json::to_value(Description::openapi()).unwrap();
        let mut found = 0;
        for (path, operations) in description["paths"].as_object().unwrap() {
            for operation in operations.as_object().unwrap().values() {
                for parameter in operation["parameters"].as_array().into_iter().flatten() {
                    let in_template = path.contains(&format!("{{{}}}", parameter["name"].as_str().unwrap()));
                    let elsewhere = ["query", "header"].contains(&parameter["in"].as_str().unwrap());
                    assert!(
                        if in_template { parameter["in"] == "path" } else { elsewhere },
                        "{path} {parameter}"
                    );
                    assert_eq!(
                        parameter["required"].as_bool().unwrap_or(false),
                        in_template,
                        "{path} {parameter}"
                    );
                    found += 1;
                }
            }
        }
        assert!(found >= 8, "{found} parameters");
    }

    /// The published description changes only on purpose; `UPDATE_GOLDEN=1` rewrites it.
    #[test]
    fn the_published_description_is_the_one_served() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");
        let served = Description::openapi().to_pretty_json().unwrap() + "\n";
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(path, &served).unwrap();
        }
        let published = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            published == served,
            "docs/openapi.json differs: run the test with UPDATE_GOLDEN=1 and read the diff"
        );
    }
}
