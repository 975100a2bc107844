//! An API server that holds AlertRules in memory, and pods that hold rules.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use certeus_autoscale::PodPhase;
use certeus_operator::rules::imported_name;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use kube::Client;
use kube::client::Body;
use kube::runtime::events::{Recorder, Reporter};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::super::round::{Again, Memory, Round, Tools, round};
use super::super::seen::RuleSeen;
use crate::run::pods::{ObjectKey, PodSeen};
use crate::run::telemetry::Metrics;

/// What the API server knows.
#[derive(Default)]
struct Server {
    objects: BTreeMap<String, Value>,
    has_cluster: bool,
    version: u64,
    /// Method and path of each, in order.
    writes: Vec<String>,
    events: Vec<String>,
    failing: BTreeMap<String, u16>,
}

/// One cluster, its rules and its pods.
pub(super) struct World {
    server: Arc<Mutex<Server>>,
    pub(super) tools: Arc<Tools>,
    pub(super) pods: Option<Vec<PodSeen>>,
    /// Whether all PrometheusRules are known.
    pub(super) with_imports: bool,
    seen: BTreeMap<ObjectKey, Arc<RuleSeen>>,
    memory: Memory,
    uids: u64,
}

impl World {
    pub(super) fn new() -> Self {
        let server = Arc::new(Mutex::new(Server { has_cluster: true, ..Server::default() }));
        let tools = Arc::new(tools(&server));
        Self {
            server,
            tools,
            with_imports: true,
            pods: Some(Vec::new()),
            seen: BTreeMap::new(),
            memory: Memory::default(),
            uids: 0,
        }
    }

    pub(super) fn create(&mut self, name: &str, expr: &str) {
        self.uids += 1;
        let object = json!({
            "apiVersion": "certeus.io/v1alpha1", "kind": "AlertRule",
            "metadata": { "name": name, "namespace": "ns", "uid": format!("u-{}", self.uids), "generation": 1 },
            "spec": { "clusterRef": { "name": "demo" },
                "groups": [{ "name": "g", "interval": "15s", "rules": [{ "alert": "Down", "expr": expr }] }] }
        });
        self.store(name, object);
    }

    /// Makes or edits a PrometheusRule of one group.
    pub(super) fn import(&mut self, name: &str, rules: &Value) {
        let key = imported_name(name);
        let before = self.find(&key).map(|object| object["metadata"].clone());
        let generation = before.as_ref().and_then(|before| before["generation"].as_i64()).unwrap_or_default();
        self.uids += 1;
        let uid = before.map_or(json!(format!("u-{}", self.uids)), |before| before["uid"].clone());
        let object = json!({
            "apiVersion": "monitoring.coreos.com/v1", "kind": "PrometheusRule",
            "metadata": { "name": name, "namespace": "ns", "uid": uid, "generation": generation + 1,
                "labels": { "certeus.io/cluster": "demo" } },
            "spec": { "groups": [{ "name": "g", "rules": rules }] }
        });
        self.store(&key, object);
    }

    /// A new process knows what the API server and the pods know.
    pub(super) fn restart(&mut self) {
        self.tools = Arc::new(tools(&self.server));
        self.memory = Memory::default();
        self.seen.clear();
    }

    fn store(&self, name: &str, mut object: Value) {
        let mut server = self.server.lock().unwrap();
        server.version += 1;
        object["metadata"]["resourceVersion"] = json!(server.version.to_string());
        server.objects.insert(name.to_owned(), object);
    }

    pub(super) fn edit(&self, name: &str, expr: &str) {
        let mut object = self.object(name);
        object["spec"]["groups"][0]["rules"][0]["expr"] = json!(expr);
        object["metadata"]["generation"] = json!(object["metadata"]["generation"].as_i64().unwrap() + 1);
        self.store(name, object);
    }

    pub(super) fn add_finalizer(&self, name: &str, finalizer: &str) {
        let mut object = self.object(name);
        let mut finalizers = object["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
        if !finalizers.contains(&json!(finalizer)) {
            finalizers.push(json!(finalizer));
        }
        object["metadata"]["finalizers"] = json!(finalizers);
        self.store(name, object);
    }

    /// Marks an object as deleted so many seconds ago.
    pub(super) fn delete(&self, name: &str, seconds: i64) {
        let mut object = self.object(name);
        let at = Timestamp::now() - jiff::SignedDuration::from_secs(seconds);
        object["metadata"]["deletionTimestamp"] =
            json!(Timestamp::from_second(at.as_second()).unwrap().to_string());
        self.store(name, object);
    }

    pub(super) fn delete_at_once(&self, name: &str) {
        self.server.lock().unwrap().objects.remove(name);
    }

    pub(super) fn find(&self, name: &str) -> Option<Value> {
        self.server.lock().unwrap().objects.get(name).cloned()
    }

    pub(super) fn object(&self, name: &str) -> Value {
        self.find(name).unwrap()
    }

    pub(super) fn uid(&self, name: &str) -> String {
        self.object(name)["metadata"]["uid"].as_str().unwrap().to_owned()
    }

    pub(super) fn fail_writes_of(&self, name: &str, status: Option<u16>) {
        let mut server = self.server.lock().unwrap();
        match status {
            Some(status) => server.failing.insert(name.to_owned(), status),
            None => server.failing.remove(name),
        };
    }

    pub(super) fn remove_cluster(&mut self) {
        self.server.lock().unwrap().has_cluster = false;
        self.pods = None;
    }

    /// As before the operator has read what there is.
    pub(super) fn forget_pods(&mut self) {
        self.pods = None;
    }

    pub(super) fn take_writes(&self) -> Vec<String> {
        std::mem::take(&mut self.server.lock().unwrap().writes)
    }

    /// Type, reason and object of each.
    pub(super) fn events(&self) -> Vec<String> {
        self.server.lock().unwrap().events.clone()
    }

    fn add_pod(&mut self, ordinal: u32, ip: IpAddr) {
        let at = Duration::from_secs(1);
        self.pods.get_or_insert_default().push(PodSeen {
            name: format!("demo-{ordinal}"),
            uid: format!("pod-{ordinal}"),
            ordinal,
            ip: Some(ip),
            // Not ready: its database may be away.
            phase: PodPhase::Running { ready: false, started_at: at, ready_changed_at: at },
            gone_by: None,
            has_run: true,
            trouble: None,
            revision: None,
            key: None,
        });
    }

    pub(super) async fn pod(&mut self, ordinal: u32) -> FakePod {
        let pod = FakePod::start().await;
        self.add_pod(ordinal, pod.ip);
        pod
    }

    /// A pod at whose address nobody listens; its name.
    pub(super) fn dead_pod(&mut self, ordinal: u32) -> String {
        self.add_pod(ordinal, loopback());
        format!("demo-{ordinal}")
    }

    pub(super) fn remove_pod(&mut self, name: &str) {
        self.pods.get_or_insert_default().retain(|pod| pod.name != name);
    }

    /// Takes in what the watch would have brought, and goes over it once.
    pub(super) async fn round(&mut self) -> Again {
        let objects = self.server.lock().unwrap().objects.clone();
        let mut seen = BTreeMap::new();
        for (name, object) in objects {
            let key = ObjectKey::new("ns", &name);
            let before = self.seen.get(&key).map(AsRef::as_ref);
            let read = RuleSeen::read(&key, serde_json::from_value(object).unwrap(), before);
            seen.insert(key, Arc::new(read));
        }
        self.seen = seen;
        let work = Round {
            cluster: ObjectKey::new("ns", "demo"),
            rules: self.seen.clone(),
            with_imports: self.with_imports,
            pods: self.pods.clone().map(Arc::from),
            memory: std::mem::take(&mut self.memory),
        };
        let (memory, again) = round(&self.tools, work).await;
        self.memory = memory;
        again
    }
}

fn tools(server: &Arc<Mutex<Server>>) -> Tools {
    let answering = Arc::clone(server);
    let service = tower::service_fn(move |request: Request<Body>| {
        let server = Arc::clone(&answering);
        async move { Ok::<_, std::convert::Infallible>(answer(&server, request).await) }
    });
    let client = Client::new(service, "ns");
    let reporter = Reporter { controller: "test".to_owned(), instance: Some("test".to_owned()) };
    let recorder = Recorder::new(client.clone(), reporter);
    let metrics = Arc::new(Metrics::new().unwrap());
    Tools::new(client, recorder, metrics).unwrap()
}

fn reply(status: u16, body: &Value) -> Response<Body> {
    Response::builder()
        .status(status)
        .header("content-type", "application/json")
        .body(Body::from(body.to_string().into_bytes()))
        .unwrap()
}

fn failure(status: u16, message: &str) -> Response<Body> {
    let body = json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
        "reason": if status == 404 { "NotFound" } else { "Test" }, "code": status });
    reply(status, &body)
}

async fn answer(server: &Mutex<Server>, request: Request<Body>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let path = head.uri.path().to_owned();
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let mut server = server.lock().unwrap();
    if head.method != Method::GET {
        server.writes.push(format!("{} {path}", head.method));
    }
    match (&head.method, &parts[..]) {
        (&Method::GET, [.., "ledgerclusters", name]) if server.has_cluster => {
            let metadata = json!({ "name": name, "namespace": "ns" });
            reply(
                200,
                &json!({ "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": metadata }),
            )
        }
        (&Method::GET, [.., "ledgerclusters", _]) => failure(404, "not found"),
        (&Method::POST, [.., "events"]) => {
            let event: Value = serde_json::from_slice(&body).unwrap();
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let told = format!(
                "{} {} {}",
                text(&event["type"]),
                text(&event["reason"]),
                text(&event["regarding"]["name"])
            );
            server.events.push(told);
            reply(201, &event)
        }
        (&Method::PATCH, [.., "alertrules", name]) => server.patch(name, &body, false),
        (&Method::PATCH, [.., "alertrules", name, "status"]) => server.patch(name, &body, true),
        (method, _) => panic!("{method} {path}"),
    }
}

impl Server {
    fn patch(&mut self, name: &str, body: &[u8], status: bool) -> Response<Body> {
        if let Some(&code) = self.failing.get(name) {
            return failure(code, "as the test asks");
        }
        let patch: Value = serde_json::from_slice(body).unwrap();
        let Some(object) = self.objects.get_mut(name) else { return failure(404, "not found") };
        let stale = |field: &str| {
            patch["metadata"].get(field).is_some_and(|given| *given != object["metadata"][field])
        };
        if stale("uid") || stale("resourceVersion") {
            return failure(409, "conflict");
        }
        if status {
            object["status"] = patch["status"].clone();
        } else {
            object["metadata"]["finalizers"] = patch["metadata"]["finalizers"].clone();
        }
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let after = object.clone();
        let metadata = &after["metadata"];
        if metadata.get("deletionTimestamp").is_some()
            && metadata["finalizers"].as_array().is_none_or(Vec::is_empty)
        {
            self.objects.remove(name);
        }
        reply(200, &after)
    }
}

/// An address of this machine that no other test uses.
fn loopback() -> IpAddr {
    let [a, b, c] = rand::random::<[u8; 3]>();
    Ipv4Addr::new(127, a.max(1), b, c.clamp(1, 254)).into()
}

#[derive(Default)]
struct PodState {
    rules: Mutex<BTreeMap<String, (String, i64)>>,
    refusing: Mutex<BTreeMap<String, (u16, String)>>,
    requests: AtomicU64,
}

/// A pod that keeps rules as the data plane does.
pub(super) struct FakePod {
    pub(super) ip: IpAddr,
    state: Arc<PodState>,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for FakePod {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl FakePod {
    async fn start() -> Self {
        let (ip, listener) = loop {
            let ip = loopback();
            if let Ok(listener) = TcpListener::bind((ip, 9090)).await {
                break (ip, listener);
            }
        };
        let state = Arc::new(PodState::default());
        let serving = Arc::clone(&state);
        let server = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let state = Arc::clone(&serving);
                let service = service_fn(move |request: Request<Incoming>| {
                    let state = Arc::clone(&state);
                    async move { Ok::<_, std::convert::Infallible>(state.answer(request).await) }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Self { ip, state, server }
    }

    /// Names and generations.
    pub(super) fn has(&self) -> BTreeMap<String, i64> {
        let rules = self.state.rules.lock().unwrap();
        rules.iter().map(|(name, (_, generation))| (name.clone(), *generation)).collect()
    }

    pub(super) fn uid(&self, name: &str) -> String {
        self.state.rules.lock().unwrap()[name].0.clone()
    }

    pub(super) fn set(&self, rules: BTreeMap<String, (String, i64)>) {
        *self.state.rules.lock().unwrap() = rules;
    }

    pub(super) fn put(&self, name: &str, uid: &str, generation: i64) {
        self.state.rules.lock().unwrap().insert(name.to_owned(), (uid.to_owned(), generation));
    }

    pub(super) fn refuse(&self, name: &str, status: u16, detail: &str) {
        self.state.refusing.lock().unwrap().insert(name.to_owned(), (status, detail.to_owned()));
    }

    pub(super) fn requests(&self) -> u64 {
        self.state.requests.load(Ordering::Relaxed)
    }
}

impl PodState {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let reply = |status: StatusCode, body: Value| {
            Response::builder().status(status).body(Full::new(body.to_string().into())).unwrap()
        };
        let mut rules = self.rules.lock().unwrap();
        let name = head.uri.path().trim_start_matches("/rules").trim_start_matches("/ns/").to_owned();
        if let Some((status, detail)) = self.refusing.lock().unwrap().get(&name) {
            return reply(StatusCode::from_u16(*status).unwrap(), json!({ "detail": detail }));
        }
        match head.method {
            Method::GET => {
                let entry = |(name, (uid, generation)): (&String, &(String, i64))| json!({ "namespace": "ns", "name": name, "uid": uid, "generation": generation });
                reply(StatusCode::OK, json!({ "rules": rules.iter().map(entry).collect::<Vec<_>>() }))
            }
            Method::PUT => {
                let document: Value = serde_json::from_slice(&body).unwrap();
                let (uid, generation) =
                    (document["uid"].as_str().unwrap(), document["generation"].as_i64().unwrap());
                rules.insert(name, (uid.to_owned(), generation));
                reply(StatusCode::OK, json!({}))
            }
            Method::DELETE if rules.remove(&name).is_some() => reply(StatusCode::NO_CONTENT, json!({})),
            _ => reply(StatusCode::NOT_FOUND, json!({ "detail": "none" })),
        }
    }
}
