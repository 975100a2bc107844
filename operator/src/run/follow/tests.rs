use std::sync::Mutex;

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Response};
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::time::timeout;
use tower::{BoxError, service_fn};

use super::*;

/// What a watch tells.
#[derive(Debug, PartialEq)]
enum Told {
    Pod(String, bool),
    List(bool),
}

/// An API server that answers lists in turn as said, and watches with silence or a status.
fn server(lists: Vec<(u16, Value)>, watches: Vec<u16>) -> Client {
    let script = Arc::new(Mutex::new((lists.into_iter(), watches.into_iter())));
    let service = service_fn(move |request: Request<Body>| {
        let script = Arc::clone(&script);
        async move {
            let is_watch = request.uri().query().is_some_and(|query| query.contains("watch=true"));
            let answer = {
                let mut script = script.lock().unwrap();
                if is_watch {
                    script.1.next().filter(|code| *code != 200).map(|code| (code, status(code)))
                } else {
                    script.0.next()
                }
            };
            // Who has no more to say keeps the connection open.
            let Some((code, value)) = answer else { return std::future::pending().await };
            let body = Full::new(Bytes::from(value.to_string()));
            Response::builder().status(code).body(body).map_err(BoxError::from)
        }
    });
    Client::new(service, "ns")
}

fn status(code: u16) -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "as asked", "reason": "", "code": code })
}

fn pods(names: &[&str]) -> (u16, Value) {
    let pod = |name: &&str| json!({ "metadata": { "name": name, "namespace": "ns" } });
    let items: Vec<Value> = names.iter().map(pod).collect();
    (200, json!({ "metadata": { "resourceVersion": "1" }, "items": items }))
}

struct Watch {
    told: mpsc::Receiver<Told>,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    task: tokio::task::JoinHandle<()>,
}

impl Watch {
    fn start(client: Client) -> Self {
        let (sender, told) = mpsc::channel(16);
        let (metrics, health) = (Arc::new(Metrics::new().unwrap()), Arc::new(Health::new()));
        health.wait_for(None);
        let listing = |listing: Listing| Told::List(listing.complete);
        let outlet = Outlet::new(&sender, &metrics, &health, (0, Some("ns")), listing);
        let change = |key: ObjectKey, pod: Option<()>| Told::Pod(key.name.to_string(), pod.is_some());
        let api: Api<Pod> = Api::namespaced(client, "ns");
        let task = tokio::spawn(follow(
            "pods",
            Need::Required,
            api,
            watcher::Config::default(),
            |_| Some(()),
            change,
            outlet,
        ));
        Self { told, metrics, health, task }
    }

    async fn next(&mut self) -> Told {
        timeout(Duration::from_secs(20), self.told.recv()).await.unwrap().unwrap()
    }

    fn refused(&self) -> i64 {
        self.metrics.watch_refused.with_label_values(&["pods"]).get()
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_list_is_told_and_had_later() {
    let mut watch = Watch::start(server(vec![(403, status(403)), (404, status(404)), pods(&["a"])], vec![]));
    assert_eq!(watch.next().await, Told::List(false));
    assert_eq!(watch.refused(), 1);
    assert_eq!(watch.health.live(clock::now() + Duration::from_secs(3600)), Ok(()));
    assert!(watch.health.refusals()[0].contains("pods in namespace ns is refused"));
    assert_eq!(watch.next().await, Told::Pod("a".to_owned(), true), "told once, however often it is refused");
    assert_eq!(watch.next().await, Told::List(true));
    assert_eq!((watch.refused(), watch.health.refusals().len()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_right_that_is_taken_away_and_given_back_is_told_with_a_new_list() {
    let mut watch = Watch::start(server(vec![pods(&["a", "b"]), pods(&["b"])], vec![403]));
    for name in ["a", "b"] {
        assert_eq!(watch.next().await, Told::Pod(name.to_owned(), true));
    }
    assert_eq!(watch.next().await, Told::List(true));
    assert_eq!(watch.next().await, Told::List(false));
    assert_eq!(watch.next().await, Told::Pod("b".to_owned(), true));
    assert_eq!(watch.next().await, Told::Pod("a".to_owned(), false), "gone meanwhile");
    assert_eq!(watch.next().await, Told::List(true));
}

#[tokio::test(start_paused = true)]
async fn a_list_that_fails_is_no_refusal_and_no_progress() {
    let failures = vec![(500, status(500)); 6];
    let mut watch = Watch::start(server([failures, vec![pods(&[])]].concat(), vec![]));
    assert_eq!(timeout(Duration::from_secs(100), watch.told.recv()).await.unwrap(), Some(Told::List(true)));
    assert_eq!((watch.refused(), watch.metrics.watch_errors.with_label_values(&["pods"]).get()), (0, 6));
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_is_given_up_is_not_refused_any_more() {
    let mut watch = Watch::start(server(vec![pods(&[]), (404, status(404))], vec![404]));
    assert_eq!((watch.next().await, watch.next().await), (Told::List(true), Told::List(false)));
    assert_eq!(watch.refused(), 1);
    watch.task.abort();
    assert_eq!(timeout(Duration::from_secs(20), watch.told.recv()).await, Ok(None));
    assert_eq!(watch.refused(), 0);
}
