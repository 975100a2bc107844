//! An API server in memory, as far as a reconcile talks to one: objects by path, server-side apply as a deep merge with atomic selectors, versions,
//! and failures on demand. It shows what requests are made; how a real API server answers is tested against a real one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, Response};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tower::{BoxError, service_fn};

use crate::run::owned::{OwnedKey, Seen, Workload, kind_name};

/// Method and path of a request that is to fail, by their parts, and the status.
type Failure = (Method, &'static str, u16);
/// Path of an object, and what somebody else does to it.
type Overtaking = (&'static str, fn(&mut Value));

#[derive(Clone, Default)]
pub(super) struct FakeApi {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Value>,
    version: u64,
    writes: Vec<String>,
    reads: usize,
    failures: Vec<Failure>,
    keep_lists: bool,
    /// Just before the next write to that object.
    overtaking: Option<Overtaking>,
}

impl FakeApi {
    pub(super) fn client(&self) -> Client {
        let state = Arc::clone(&self.state);
        let service = service_fn(move |request: Request<Body>| {
            let state = Arc::clone(&state);
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await?.to_bytes();
                let path = head.uri.path().to_owned();
                let apply = head
                    .headers
                    .get("content-type")
                    .is_some_and(|kind| kind == "application/apply-patch+yaml");
                let (status, value) = state.lock().unwrap().answer(&head.method, &path, &body, apply);
                let body = Full::new(Bytes::from(value.to_string()));
                Response::builder().status(status).body(body).map_err(BoxError::from)
            }
        });
        Client::new(service, "ns")
    }

    /// The writes since the last call, as `VERB kind-in-plural/name`.
    pub(super) fn writes(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().writes)
    }

    pub(super) fn reads(&self) -> usize {
        std::mem::take(&mut self.state.lock().unwrap().reads)
    }

    /// Requests of this method whose path contains the text get this status.
    pub(super) fn fail(&self, failures: Vec<Failure>) {
        self.state.lock().unwrap().failures = failures;
    }

    /// From now on an apply leaves lists as they are, as if each entry were somebody else's.
    pub(super) fn keep_lists(&self) {
        self.state.lock().unwrap().keep_lists = true;
    }

    /// Somebody else is faster than the next write to this object.
    pub(super) fn overtake(&self, path: &'static str, edit: fn(&mut Value)) {
        self.state.lock().unwrap().overtaking = Some((path, edit));
    }

    /// Changes an object as somebody else would.
    pub(super) fn edit(&self, path: &str, edit: impl FnOnce(&mut Value)) {
        let mut state = self.state.lock().unwrap();
        let mut object = state.objects.get(path).unwrap_or(&json!({ "metadata": {} })).clone();
        edit(&mut object);
        state.store(path, object);
    }

    pub(super) fn remove(&self, path: &str) {
        self.state.lock().unwrap().objects.remove(path).unwrap();
    }

    pub(super) fn get(&self, path: &str) -> Option<Value> {
        self.state.lock().unwrap().objects.get(path).cloned()
    }

    /// What a watch would show of the objects with our label.
    pub(super) fn owned(&self) -> BTreeMap<OwnedKey, Seen> {
        let state = self.state.lock().unwrap();
        let ours = |object: &&Value| {
            object["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "certeus-operator"
                && object["kind"] != "Secret"
        };
        let seen = |object: &Value| {
            let metadata = serde_json::from_value(object["metadata"].clone()).unwrap();
            let kind = kind_name(object["kind"].as_str().unwrap());
            let workload = (kind == "StatefulSet")
                .then(|| Box::new(Workload::read(&serde_json::from_value(object.clone()).unwrap())));
            let name = object["metadata"]["name"].as_str().unwrap().to_owned();
            ((kind, name), Seen { workload, ..Seen::read(&metadata) })
        };
        state.objects.values().filter(ours).map(seen).collect()
    }
}

impl State {
    fn answer(&mut self, method: &Method, path: &str, body: &[u8], apply: bool) -> (u16, Value) {
        let status = |code: u16, message: &str| {
            let reason = if code == 404 { "NotFound" } else { "" };
            (code, json!({ "code": code, "message": message, "reason": reason, "status": "Failure" }))
        };
        if *method == Method::GET {
            self.reads += 1;
        } else {
            let name = path.rsplit('/').take(2).collect::<Vec<_>>();
            let verb = if *method == Method::PATCH && !apply { "MERGE" } else { method.as_str() };
            self.writes.push(format!("{verb} {}/{}", name[1], name[0]));
        }
        let failure = self.failures.iter().find(|(verb, part, _)| verb == method && path.contains(part));
        if let Some((_, _, code)) = failure {
            return status(*code, "as asked");
        }
        let value: Value = serde_json::from_slice(body).unwrap_or_default();
        match *method {
            Method::GET => {
                self.objects.get(path).map_or_else(|| status(404, "not found"), |o| (200, o.clone()))
            }
            Method::POST => {
                let named = format!("{path}/{}", value["metadata"]["name"].as_str().unwrap_or_default());
                if self.objects.contains_key(&named) {
                    return status(409, "exists");
                }
                (201, self.store(&named, value))
            }
            Method::PATCH => {
                if let Some((_, edit)) = self.overtaking.take_if(|(overtaken, _)| *overtaken == path) {
                    let mut object = self.objects[path].clone();
                    edit(&mut object);
                    self.store(path, object);
                }
                let (wanted, there) = (&value["metadata"], self.objects.get(path).map(|o| &o["metadata"]));
                let is_other = |field: &str| {
                    there.is_some_and(|there| !wanted[field].is_null() && wanted[field] != there[field])
                };
                if is_other("resourceVersion") || is_other("uid") {
                    return status(409, "the object has been modified");
                }
                let mut object = self.objects.get(path).cloned().unwrap_or_else(|| json!({}));
                let before = object.clone();
                merge(&mut object, &value, self.keep_lists && apply);
                // An apply that changes nothing is not stored.
                if object == before { (200, before) } else { (200, self.store(path, object)) }
            }
            Method::DELETE => match self.objects.remove(path) {
                Some(object) => (200, object),
                None => status(404, "not found"),
            },
            _ => status(405, "not here"),
        }
    }

    fn store(&mut self, path: &str, mut object: Value) -> Value {
        self.version += 1;
        let before = self.objects.get(path);
        let generation = before.map_or(0, |before| before["metadata"]["generation"].as_i64().unwrap_or(0));
        let changed = before.is_none_or(|before| before["spec"] != object["spec"]);
        let metadata = object["metadata"].as_object_mut().unwrap();
        metadata.insert("resourceVersion".to_owned(), json!(self.version.to_string()));
        metadata.entry("uid").or_insert(json!(format!("uid-{}", self.version)));
        // Kinds without a specification have no generation.
        if object.get("spec").is_some() {
            object["metadata"]["generation"] = json!(generation + i64::from(changed));
        }
        self.objects.insert(path.to_owned(), object.clone());
        object
    }
}

fn merge(into: &mut Value, from: &Value, keep_lists: bool) {
    match (into, from) {
        (Value::Array(_), Value::Array(_)) if keep_lists => {}
        (Value::Object(into), Value::Object(from)) => {
            for (name, value) in from {
                if matches!(name.as_str(), "selector" | "podSelector" | "namespaceSelector" | "labelSelector")
                {
                    into.insert(name.clone(), value.clone());
                    continue;
                }
                merge(into.entry(name).or_insert(Value::Null), value, keep_lists);
            }
        }
        (into, from) => into.clone_from(from),
    }
}
