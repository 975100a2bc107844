use certeus_crds::FieldError;
use hyper::{Request, Response};
use kube::Client;
use kube::client::Body;
use tower::{BoxError, service_fn};

use super::*;
use crate::run::watch::ClusterSeen;

fn key() -> ObjectKey {
    ObjectKey::new("ns", "demo")
}

/// A controller that has all its lists, on an API server that knows nothing.
fn controller() -> (Controller, Lists) {
    let unknown = service_fn(async |_: Request<Body>| {
        Response::builder().status(404).body(Body::empty()).map_err(BoxError::from)
    });
    let context = Context::on(Client::new(unknown, "ns"));
    let controller = Controller::new(Arc::new(context), Scope::All, Arc::new(Health::new()));
    (controller, Lists::new(&Scope::All, BTreeSet::new()))
}

fn appears(uid: &str) -> Change {
    let cluster = ClusterSeen {
        uid: uid.to_owned(),
        generation: Some(1),
        resource_version: uid.to_owned(),
        deleted: false,
        cluster: Err(vec![FieldError::new("spec", "a mistake")]),
        status: None,
    };
    Change::Cluster(key(), Some(Box::new(cluster)))
}

/// One whose cluster went while the reconcile of it goes on.
fn outlived() -> (Controller, Lists) {
    let (mut controller, lists) = controller();
    controller.change(appears("one"));
    controller.hand_out(&lists);
    controller.change(Change::Cluster(key(), None));
    (controller, lists)
}

/// Takes in the end of a reconcile that runs.
async fn end(controller: &mut Controller) {
    let finished = controller.running.join_next().await.unwrap().unwrap();
    controller.finished(finished);
}

/// What a reconcile knows was so when it began.
#[tokio::test]
async fn a_reconcile_that_outlives_its_cluster_leaves_nothing_of_it() {
    let (mut controller, _lists) = outlived();
    end(&mut controller).await;
    assert_eq!(controller.context.pods.pods(&key()), None);
    assert!(controller.records.is_empty() && controller.stale.is_empty());
    assert_eq!(controller.queue.next_due(), None);
}

#[tokio::test]
async fn a_cluster_made_anew_waits_for_the_reconcile_of_the_one_before() {
    let (mut controller, lists) = outlived();
    controller.change(appears("two"));
    controller.hand_out(&lists);
    assert_eq!(controller.running.len(), 1, "one at a time");
    end(&mut controller).await;
    assert!(controller.records.is_empty(), "what was remembered is of the other one");
    controller.hand_out(&lists);
    assert_eq!(controller.running.len(), 1);
    end(&mut controller).await;
    assert!(controller.records.contains_key(&key()) && controller.context.pods.pods(&key()).is_some());
}
