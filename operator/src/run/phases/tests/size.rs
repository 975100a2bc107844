use super::*;

#[tokio::test]
async fn a_number_of_pods_that_another_autoscaler_sets_is_left_to_it() {
    let mut world = settled().await;
    world.autoscaler = Some("other".to_owned());
    world.reconcile().await.unwrap();
    assert_eq!(world.api.writes(), ["PATCH demo/status"]);
    world.api.edit(WORKLOAD, |set| set["spec"]["replicas"] = json!(7));
    world.reconcile().await.unwrap();
    assert_eq!(world.api.writes(), ["PATCH demo/status"]);
    world.edit_spec(|spec| spec["ledger"] = json!({ "batchSize": 777 }));
    world.reconcile().await.unwrap();
    let workload = world.api.get(WORKLOAD).unwrap();
    assert_eq!(workload["spec"]["replicas"], 7);
    let expected = ["PATCH configmaps/demo-config", "PATCH statefulsets/demo", "PATCH demo/status"];
    assert_eq!(world.api.writes(), expected);
}

/// As a write does that was under way when the lease went to another operator.
#[tokio::test]
async fn a_late_write_removes_no_pod_that_another_operator_added() {
    let replicas = |world: &World| world.api.get(WORKLOAD).unwrap()["spec"]["replicas"].clone();
    let grow = |set: &mut Value| set["spec"]["replicas"] = json!(7);
    let mut world = settled().await;
    world.api.overtake(WORKLOAD, grow);
    world.edit_spec(|spec| spec["ledger"] = json!({ "batchSize": 777 }));
    assert_eq!(world.reconcile().await.unwrap_err().class(), Class::Conflict);
    assert_eq!(replicas(&world), 7);
    // Nor one that would change the number alone.
    let mut world = settled().await;
    world.api.remove("/api/v1/namespaces/ns/secrets/db");
    world.record.forget_secrets();
    world.edit_spec(|spec| spec["replicas"] = json!(5));
    world.api.overtake(WORKLOAD, grow);
    world.reconcile().await.unwrap_err();
    assert_eq!(replicas(&world), 7);
    // Decided anew, nothing goes that has not drained.
    world.reconcile().await.unwrap_err();
    assert_eq!(replicas(&world), 7);
}

/// The watch is behind: what it shows has fewer pods than there are.
#[tokio::test]
async fn pods_that_were_not_known_of_are_not_removed() {
    let mut world = settled().await;
    world.edit_spec(|spec| spec["ledger"] = json!({ "batchSize": 777 }));
    let seen = world.api.owned();
    world.api.edit(WORKLOAD, |set| set["spec"]["replicas"] = json!(7));
    world.behind = Some(seen);
    assert_eq!(world.reconcile().await.unwrap_err().reason(), "ApiUnavailable");
    assert_eq!(world.api.get(WORKLOAD).unwrap()["spec"]["replicas"], 7);
}

/// What the watch does not show, as somebody took its label, is not made anew in its smallest size.
#[tokio::test]
async fn a_workload_that_the_watch_does_not_show_keeps_its_size_and_image() {
    let mut world = settled().await;
    world.edit_spec(|spec| spec["autoscaling"] = json!({ "enabled": true, "min": 1, "max": 9 }));
    world.edit_spec(|spec| drop(spec.as_object_mut().unwrap().remove("replicas")));
    world.api.edit(WORKLOAD, |set| {
        set["metadata"]["labels"] = json!({});
        set["spec"]["replicas"] = json!(7);
    });
    world.record = Record::default();
    world.reconcile().await.unwrap();
    assert_eq!(world.api.get(WORKLOAD).unwrap()["spec"]["replicas"], 7);
}
