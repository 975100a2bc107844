use super::*;

#[tokio::test]
async fn a_new_secret_rolls_the_pods_once_and_shows_nothing_of_its_value() {
    let mut world = settled().await;
    let hash = |world: &World| {
        let workload = world.api.get(WORKLOAD).unwrap();
        workload["spec"]["template"]["metadata"]["annotations"][build::SECRETS_HASH].clone()
    };
    let before = hash(&world);
    world.secret("postgres://two");
    world.record.forget_secrets();
    world.reconcile().await.unwrap();
    assert_eq!(world.api.writes(), ["PATCH statefulsets/demo"]);
    assert_ne!(hash(&world), before);
    assert!(!world.api.get(WORKLOAD).unwrap().to_string().contains("postgres://two"));
}

#[tokio::test]
async fn secrets_that_change_together_are_read_together_whatever_else_happens() {
    let mut world = settled().await;
    let later = crate::run::clock::now() + Duration::from_secs(60);
    world.secret("postgres://two");
    world.record.secrets_changed(later);
    world.reconcile().await.unwrap();
    assert_eq!(world.api.writes(), Vec::<String>::new());
    // With the specification at once, and then not again.
    world.edit_spec(|spec| spec["resources"] = json!({ "requests": { "cpu": "2" } }));
    world.reconcile().await.unwrap();
    assert_eq!(world.api.writes(), ["PATCH statefulsets/demo", "PATCH demo/status"]);
    let hash = |world: &World| {
        let workload = world.api.get(WORKLOAD).unwrap();
        workload["spec"]["template"]["metadata"]["annotations"][build::SECRETS_HASH].clone()
    };
    let before = hash(&world);
    world.record.forget_secrets();
    world.reconcile().await.unwrap();
    assert_eq!(hash(&world), before);
}

#[tokio::test]
async fn a_signing_key_is_made_once_and_belongs_to_nobody() {
    let mut world = settled().await;
    let key = world.api.get(SIGNING_KEY).unwrap();
    assert_eq!(key["metadata"].get("ownerReferences"), None);
    assert!(key["metadata"]["labels"]["app.kubernetes.io/instance"] == "demo");
    world.record = Record::default();
    world.reconcile().await.unwrap();
    assert_eq!(world.api.get(SIGNING_KEY), Some(key));
}

#[tokio::test]
async fn without_its_secret_a_new_cluster_waits_and_a_running_one_goes_on() {
    let mut world = World::new();
    world.api.remove("/api/v1/namespaces/ns/secrets/db");
    let error = world.reconcile().await.unwrap_err();
    assert_eq!((error.class(), error.reason()), (Class::Missing, "SecretMissing"));
    assert!(world.api.get(WORKLOAD).is_none());
    let degraded = world.condition("Degraded");
    assert_eq!((degraded.0.as_str(), degraded.1.as_str()), ("True", "SecretMissing"));
    assert!(degraded.2.contains("db"), "{degraded:?}");

    let mut world = settled().await;
    world.api.remove("/api/v1/namespaces/ns/secrets/db");
    world.record.forget_secrets();
    let template = world.api.get(WORKLOAD).unwrap()["spec"]["template"].clone();
    world.edit_spec(|spec| {
        spec["replicas"] = json!(5);
        spec["database"]["secretRef"]["name"] = json!("mistyped");
    });
    assert_eq!(world.reconcile().await.unwrap_err().reason(), "SecretMissing");
    // It is scaled, and nothing replaces pods that have what they need.
    let workload = world.api.get(WORKLOAD).unwrap();
    assert_eq!((&workload["spec"]["replicas"], &workload["spec"]["template"]), (&json!(5), &template));
    assert_eq!(world.condition("SigningKey").1, "Generated", "another one is missing");
    // What was generated once is not made anew with another value.
    world.api.remove(SIGNING_KEY);
    world.record.forget_secrets();
    assert_eq!(world.reconcile().await.unwrap_err().reason(), "SecretMissing");
    assert!(world.api.get(SIGNING_KEY).is_none());
    assert_eq!(world.condition("SigningKey").1, "Unusable");

    let mut world = World::new();
    world.api.fail(vec![(Method::GET, "demo-signing-key", 403)]);
    assert_eq!(world.reconcile().await.unwrap_err().reason(), "Forbidden");
    assert_eq!(world.condition("SigningKey").0, "Unknown");
}

#[tokio::test]
async fn a_value_that_pods_would_refuse_never_reaches_them() {
    let mut world = settled().await;
    let template = world.api.get(WORKLOAD).unwrap()["spec"]["template"].clone();
    world.secret("not a url");
    world.record.forget_secrets();
    world.edit_spec(|spec| spec["replicas"] = json!(5));
    let error = world.reconcile().await.unwrap_err();
    assert_eq!((error.class(), error.reason()), (Class::Missing, "SecretInvalid"));
    let workload = world.api.get(WORKLOAD).unwrap();
    assert_eq!((&workload["spec"]["replicas"], &workload["spec"]["template"]), (&json!(5), &template));
    let (status, reason, message) = world.condition("Degraded");
    assert_eq!((&*status, &*reason), ("True", "SecretInvalid"));
    assert!(message.contains("\"url\" of Secret db") && !message.contains("not a url"), "{message}");
    assert_eq!(world.condition("SigningKey").1, "Generated");
    assert_eq!(world.api.writes(), ["MERGE statefulsets/demo", "POST ns/events", "PATCH demo/status"]);

    world.secret("postgres://two");
    world.record.forget_secrets();
    world.reconcile().await.unwrap();
    assert_ne!(world.api.get(WORKLOAD).unwrap()["spec"]["template"], template);
    assert_eq!(world.condition("Degraded").0, "False");
}
