//! The rules that were delivered to this pod. They are stored and shown; nothing evaluates them yet, and nothing here pretends to.

use std::collections::BTreeMap;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use certeus_monitor::rules::{
    DOCUMENT_BYTES_MAX, Document, Error as RulesError, Group, Key, Period, Rule, Stored,
};
use serde::Serialize;
use utoipa::ToSchema;

use super::App;
use crate::body::{self, receive};
use crate::problem::{Code, Error};

/// What the pod has: the acknowledgement that whoever delivers rules looks for.
#[derive(Debug, Serialize)]
pub(crate) struct LoadedReply {
    rules: Vec<Loaded>,
}

/// The rules of one object.
#[derive(Debug, Serialize)]
pub(crate) struct Loaded {
    namespace: String,
    name: String,
    uid: String,
    generation: i64,
}

impl From<&Stored> for Loaded {
    fn from(Stored { key, document }: &Stored) -> Self {
        Self {
            namespace: key.namespace().to_owned(),
            name: key.name().to_owned(),
            uid: document.uid.clone(),
            generation: document.generation,
        }
    }
}

/// Whose rules are loaded, and which generation of them.
pub(crate) async fn loaded(State(app): State<App>) -> Json<LoadedReply> {
    Json(LoadedReply { rules: app.rules.list().iter().map(Loaded::from).collect() })
}

/// Takes the rules of one object in place of those it had.
pub(crate) async fn put(
    State(app): State<App>,
    Path((namespace, name)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Loaded>, Error> {
    let key =
        Key::new(&namespace, &name).map_err(|error| Error::new(Code::InvalidRules, error.to_string()))?;
    let body = receive(&headers, body, DOCUMENT_BYTES_MAX, &app.budget).await?;
    let document =
        Document::parse(&body.bytes).map_err(|error| Error::new(Code::InvalidRules, error.to_string()))?;
    let loaded = Loaded { namespace, name, uid: document.uid.clone(), generation: document.generation };
    blocking(move || app.rules.put(&key, document)).await?;
    Ok(Json(loaded))
}

/// Removes the rules of one object.
pub(crate) async fn delete(
    State(app): State<App>,
    Path((namespace, name)): Path<(String, String)>,
) -> Result<StatusCode, Error> {
    let absent = || Error::new(Code::NotFound, format!("no rules of {namespace}/{name} are loaded"));
    // What is no name has no rules either.
    let key = Key::new(&namespace, &name).map_err(|_| absent())?;
    if blocking(move || app.rules.delete(&key)).await? { Ok(StatusCode::NO_CONTENT) } else { Err(absent()) }
}

/// Runs what waits for the disk where waiting holds nobody up. Once begun it is carried out, whether or not the client waits.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RulesError> + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Error::new(Code::Internal, format!("the rules were not changed: {error}")))?
        .map_err(Error::from)
}

/// The rules in the form of Prometheus' own API.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RulesReply<'a> {
    /// `success`.
    status: &'static str,
    /// The rules.
    data: RulesData<'a>,
}

/// All groups.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RulesData<'a> {
    /// In order of their objects.
    groups: Vec<RuleGroup<'a>>,
}

/// Rules that belong together.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RuleGroup<'a> {
    /// Name of the group.
    name: &'a str,
    /// Namespace and name of the object that it comes from.
    file: String,
    /// Seconds between evaluations.
    interval: f64,
    /// The rules.
    rules: Vec<RuleEntry<'a>>,
}

/// One rule. As nothing evaluates it, it has no alerts and no times.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RuleEntry<'a> {
    /// `alerting` or `recording`.
    #[serde(rename = "type")]
    kind: &'static str,
    /// Name of the alert or the series.
    name: &'a str,
    /// The expression.
    query: &'a str,
    /// Labels that are added.
    labels: &'a BTreeMap<String, String>,
    /// `unknown`: the rule was not evaluated.
    health: &'static str,
    /// What only alerting rules have.
    #[serde(flatten)]
    alerting: Option<AlertingEntry<'a>>,
}

/// What only alerting rules have.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AlertingEntry<'a> {
    /// `unknown`: the rule was not evaluated.
    state: &'static str,
    /// Seconds for which the expression must hold.
    duration: f64,
    /// Seconds for which the alert fires on.
    keep_firing_for: f64,
    /// Texts for people, with their templates.
    annotations: &'a BTreeMap<String, String>,
}

const UNKNOWN: &str = "unknown";

/// The rules that were delivered to this pod, in the form of Prometheus' API. They are not evaluated: state and health are
/// `unknown`, and there are no alerts.
#[utoipa::path(get, path = "/api/v1/rules", responses(
    (status = 200, description = "The rules", body = RulesReply),
    (status = 400, description = "Filters are not supported", body = crate::problem::Problem),
    (status = 429, description = "Requests in progress hold all the memory set aside for them",
        body = crate::problem::Problem),
))]
pub(crate) async fn list(State(app): State<App>, RawQuery(query): RawQuery) -> Result<Response, Error> {
    // Who asks for some of the rules must not take all of them for these.
    if query.is_some_and(|query| !query.is_empty()) {
        return Err(Error::new(Code::InvalidRequest, "this list takes no parameters"));
    }
    let stored = app.rules.list();
    let groups = stored.iter().flat_map(|Stored { key, document }| {
        document.groups.iter().map(move |group| RuleGroup::new(key, group))
    });
    let reply = RulesReply { status: "success", data: RulesData { groups: groups.collect() } };
    let mut response =
        body::reply(serde_json::to_vec(&reply).unwrap_or_default(), &app.budget)?.into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

impl<'a> RuleGroup<'a> {
    fn new(key: &Key, Group { name, interval, rules }: &'a Group) -> Self {
        Self {
            name,
            file: key.to_string(),
            interval: interval.as_secs_f64(),
            rules: rules.iter().map(RuleEntry::from).collect(),
        }
    }
}

impl<'a> From<&'a Rule> for RuleEntry<'a> {
    fn from(rule: &'a Rule) -> Self {
        let Rule { alert, record, expr, hold_for, keep_firing_for, labels, annotations } = rule;
        let seconds = |period: &Option<Period>| period.map_or(0.0, Period::as_secs_f64);
        let alerting = alert.as_ref().map(|_| AlertingEntry {
            state: UNKNOWN,
            duration: seconds(hold_for),
            keep_firing_for: seconds(keep_firing_for),
            annotations,
        });
        Self {
            kind: if alerting.is_some() { "alerting" } else { "recording" },
            name: alert.as_deref().or(record.as_deref()).unwrap_or_default(),
            query: expr,
            labels,
            health: UNKNOWN,
            alerting,
        }
    }
}
