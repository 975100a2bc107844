use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::*;
use crate::manifest::{Object, parse};
use crate::validate::validate;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn read(name: &str) -> Cluster {
    let path = golden(&format!("{name}.yaml"));
    let mut manifests = parse(&path, &std::fs::read_to_string(&path).unwrap()).unwrap();
    match manifests.remove(0).object {
        Object::LedgerCluster(cluster) => validate(&cluster).unwrap(),
        other => panic!("{other:?}"),
    }
}

fn inputs(replicas: u32) -> Inputs {
    Inputs { replicas, ..Inputs::default() }
}

/// Compares each object with a file of its own, and what files there are.
#[track_caller]
fn check(name: &str, inputs: &Inputs) {
    let cluster = with_api_key(read(name));
    let folder = golden(name);
    let objects = build(&cluster, inputs).all().into_iter().map(|owned| owned.object);
    let generated = generated_secrets(&cluster);
    let secrets = generated.iter().map(|secret| owned(&secret.make(&cluster, [7; 32]).unwrap()).object);
    let built: BTreeMap<String, String> = objects
        .chain(secrets)
        .map(|object| {
            let kind = &object.types.as_ref().unwrap().kind;
            let file = format!("{kind}.{}.yaml", object.metadata.name.as_ref().unwrap());
            (file, serde_saphyr::to_string(&object).unwrap())
        })
        .collect();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        drop(std::fs::remove_dir_all(&folder));
        std::fs::create_dir_all(&folder).unwrap();
        for (file, text) in &built {
            std::fs::write(folder.join(file), text).unwrap();
        }
    }
    let files = std::fs::read_dir(&folder).unwrap();
    let files: BTreeSet<String> =
        files.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(files, built.keys().cloned().collect(), "{}", folder.display());
    for (file, text) in built {
        let path = folder.join(file);
        assert!(
            std::fs::read_to_string(&path).unwrap() == text,
            "{} differs; run with UPDATE_GOLDEN=1 and read the diff: if it is in a pod template, an upgrade of the \
             operator restarts every pod. Built:\n{text}",
            path.display()
        );
    }
}

#[test]
fn a_minimal_cluster_is_built_as_ever() {
    check("minimal", &inputs(1));
}

#[test]
fn a_cluster_with_everything_is_built_as_ever() {
    let secrets_hash = Some("aa".to_owned());
    check("full", &Inputs { replicas: 3, secrets_hash, service_monitors: true, image: None });
}

fn template_annotation(objects: &Objects, name: &str) -> Option<String> {
    let template = &objects.stateful_set.spec.as_ref().unwrap().template;
    template.metadata.as_ref().unwrap().annotations.as_ref().unwrap().get(name).cloned()
}

#[test]
fn pods_restart_for_configuration_and_secrets_and_nothing_else() {
    let cluster = read("minimal");
    let template = |cluster: &Cluster, inputs: &Inputs| {
        build(cluster, inputs).stateful_set.spec.map(|spec| spec.template).unwrap()
    };
    let before = template(&cluster, &inputs(3));
    assert_eq!(before, template(&cluster, &inputs(4)), "scaling");
    let monitoring =
        certeus_crds::Monitoring { service_monitor: true, dashboard: true, ..cluster.monitoring.clone() };
    let watched = Cluster { monitoring, ..cluster.clone() };
    assert_eq!(before, template(&watched, &Inputs { service_monitors: true, ..inputs(3) }), "monitoring");
    let network = certeus_crds::Network { clients: vec![Default::default()] };
    assert_eq!(before, template(&Cluster { network, ..cluster.clone() }, &inputs(3)), "network");
    let stopped = Cluster { stopped: true, ..cluster.clone() };
    assert_eq!(before, template(&stopped, &inputs(3)), "so that pods start as they were");

    let mut changed = cluster.clone();
    changed.ledger.writers += 1;
    let config_hash = |cluster: &Cluster| template_annotation(&build(cluster, &inputs(3)), CONFIG_HASH);
    assert_ne!(config_hash(&cluster), config_hash(&changed));
    let rotated = Inputs { secrets_hash: Some("b".to_owned()), ..inputs(3) };
    assert_eq!(template_annotation(&build(&cluster, &rotated), SECRETS_HASH), Some("b".to_owned()));
}

#[test]
fn an_upgrade_of_the_operator_leaves_the_image_as_it_is() {
    let image = |spec_image: &str, running: Option<&str>| {
        let image = crate::validate::Image::Floating { repository: spec_image.to_owned() };
        let inputs = Inputs { image: running.map(str::to_owned), ..inputs(1) };
        let pod =
            build(&Cluster { image, ..read("minimal") }, &inputs).stateful_set.spec.unwrap().template.spec;
        pod.unwrap().containers.remove(0).image.unwrap()
    };
    let own = env!("CARGO_PKG_VERSION");
    assert_eq!(image("a/b", None), format!("a/b:{own}"));
    assert_eq!(image("a/b", Some("a/b:0.0.9")), "a/b:0.0.9");
    assert_eq!(
        image("mirror:5000/b", Some("a/b:0.0.9")),
        "mirror:5000/b:0.0.9",
        "another place, the same version"
    );
    assert_eq!(image("a/b", Some("mirror:5000/b")), format!("a/b:{own}"), "a port is no tag");
    assert_eq!(image("a/b", Some("a/b:1@sha256:00")), format!("a/b:{own}"), "a digest belongs to one image");
}

#[test]
fn the_embedded_database_outlives_the_pods_of_a_cluster_that_is_stopped() {
    let stopped = Cluster { stopped: true, ..read("minimal") };
    let replicas = |set: &StatefulSet| set.spec.as_ref().unwrap().replicas;
    let both = |cluster: &Cluster, pods: u32| {
        let objects = build(cluster, &inputs(pods));
        (replicas(&objects.stateful_set), replicas(&objects.database.unwrap().stateful_set))
    };
    assert_eq!(both(&stopped, 3), (Some(3), Some(1)), "while they drain");
    assert_eq!(both(&stopped, 0), (Some(0), Some(0)));
    assert_eq!(both(&read("minimal"), 0), (Some(0), Some(1)), "before the first pod");
    let [running, stopped] = [read("minimal"), stopped].map(|cluster| build(&cluster, &inputs(0)));
    assert_eq!(running.client_service, stopped.client_service);
}

#[test]
fn credentials_for_registries_reach_the_pods_and_the_database() {
    let secret = certeus_crds::SecretRef { name: "registry".to_owned() };
    let objects = build(&Cluster { image_pull_secrets: vec![secret], ..read("minimal") }, &inputs(1));
    for set in [objects.stateful_set, objects.database.unwrap().stateful_set] {
        let named = set.spec.unwrap().template.spec.unwrap().image_pull_secrets.unwrap();
        assert_eq!(named.iter().map(|secret| &*secret.name).collect::<Vec<_>>(), ["registry"]);
    }
}

#[test]
fn a_budget_for_disruptions_comes_with_the_second_pod() {
    let cluster = read("minimal");
    let has_budget = |replicas| build(&cluster, &inputs(replicas)).pod_disruption_budget.is_some();
    assert_eq!([0, 1, 2, 20].map(has_budget), [false, false, true, true]);
}

#[test]
fn the_workload_comes_last_and_all_objects_can_be_found_again() {
    for (name, count) in [("minimal", 10), ("full", 9)] {
        let cluster = read(name);
        let inputs = Inputs { service_monitors: true, ..inputs(3) };
        let all = build(&cluster, &inputs).all();
        assert_eq!(all.len(), count, "{name}");
        assert_eq!(all, build(&cluster, &inputs).all(), "the same again");
        let last = all.last().unwrap();
        assert_eq!(
            (last.resource.kind.as_str(), last.object.metadata.name.as_deref()),
            ("StatefulSet", Some(&*cluster.name))
        );
        let kinds = owned_kinds(true);
        let names: BTreeSet<_> = all
            .iter()
            .map(|owned| (owned.resource.kind.clone(), owned.object.metadata.name.clone()))
            .collect();
        assert_eq!(names.len(), all.len(), "each object has a name of its own");
        for Owned { resource, object } in all {
            assert!(kinds.contains(&resource), "{resource:?}");
            let labels = object.metadata.labels.unwrap();
            for wanted in owned_selector(&cluster).split(',') {
                let (key, value) = wanted.split_once('=').unwrap();
                assert_eq!(labels[key], value);
            }
            let owners = object.metadata.owner_references.unwrap_or_default();
            assert_eq!(owners.len(), usize::from(cluster.uid.is_some()));
            assert!(owners.iter().all(|owner| owner.controller == Some(true)));
            assert_eq!(object.metadata.namespace.as_deref(), Some(&*cluster.namespace));
        }
    }
}

#[test]
fn without_their_definition_there_is_no_service_monitor() {
    assert!(build(&read("full"), &inputs(3)).service_monitor.is_none());
    assert_eq!(owned_kinds(false).len() + 1, owned_kinds(true).len());
}

#[test]
fn generated_secrets_are_made_for_what_the_user_does_not_name_and_outlive_the_cluster() {
    assert!(generated_secrets(&read("full")).is_empty());
    let cluster = Cluster { uid: Some("1".to_owned()), ..read("minimal") };
    let names = |cluster: &Cluster| -> Vec<String> {
        generated_secrets(cluster).iter().map(|secret| secret.name().to_owned()).collect()
    };
    // On one machine nothing but this machine reaches the pods.
    assert_eq!(names(&cluster), ["demo-signing-key", "demo-database"]);
    let cluster = with_api_key(cluster);
    assert_eq!(names(&cluster), ["demo-signing-key", "demo-api-key", "demo-database"]);
    let generated = generated_secrets(&cluster);
    for secret in &generated {
        let made = secret.make(&cluster, [1; 32]).unwrap();
        assert_eq!(made.metadata.name.as_deref(), Some(secret.name()));
        assert_eq!(made.metadata.owner_references, None);
        assert_ne!(made, secret.make(&cluster, [2; 32]).unwrap());
        // What the pods refer to is in it.
        let used = secret_uses(&cluster).into_iter().filter(|used| used.reference.name == secret.name());
        let keys: Vec<String> = used.map(|used| used.reference.key).collect();
        assert!(!keys.is_empty() && keys.iter().all(|key| made.data.as_ref().unwrap().contains_key(key)));
    }
    let text = generated[0].make(&cluster, [1; 32]).unwrap().data.unwrap()["signing-key"].0.clone();
    let key = certeus_tlog::note::SignerKey::parse(&String::from_utf8(text).unwrap()).unwrap();
    assert_eq!(key.verifier().name(), "certeus.io/default/demo");
}

/// RFC 4231 has no vectors for lists; this one was computed with Python's hmac module.
#[test]
fn the_hash_of_secrets_follows_their_values_and_not_their_order() {
    let hash = |values: &[(&str, &str)]| {
        secrets_hash(b"key", values.iter().map(|(name, value)| (*name, value.as_bytes())))
    };
    assert_eq!(hash(&[("a", "1"), ("b", "2")]), VECTOR);
    assert_eq!(hash(&[("b", "2"), ("a", "1")]), VECTOR);
    assert_ne!(hash(&[("a", "1"), ("b", "3")]), VECTOR);
    assert_ne!(hash(&[("a", "1b"), ("", "2")]), VECTOR);
    assert_ne!(secrets_hash(b"other", [("a", &b"1"[..]), ("b", &b"2"[..])]), VECTOR);
}

const VECTOR: &str = "a00af59060e539f0892f8005a925487b4ab551a6476c04105853896b97283dc5";

#[test]
fn the_dashboard_asks_for_metrics_that_pods_export() {
    let ledger = concat!(env!("CARGO_MANIFEST_DIR"), "/../dataplane/ledger/src/metrics.rs");
    let server = concat!(env!("CARGO_MANIFEST_DIR"), "/../dataplane/server/src");
    let mut exported = std::fs::read_to_string(ledger).unwrap();
    for file in ["main.rs", "process.rs"] {
        exported.push_str(&std::fs::read_to_string(Path::new(server).join(file)).unwrap());
    }
    let map = monitoring::dashboard(&read("full"));
    let text = map.data.unwrap().into_values().next().unwrap();
    let dashboard: serde_json::Value = serde_json::from_str(&text).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let queries = panels.iter().flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let mut names = BTreeSet::new();
    for query in queries {
        let expression = query["expr"].as_str().unwrap();
        assert!(expression.contains(r#"{namespace="ledger",pod=~"trades-[0-9]+""#), "{expression}");
        let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        names.extend(words.filter(|word| word.starts_with("certeus_")).map(str::to_owned));
    }
    assert!(names.len() > 20, "{names:?}");
    for name in names {
        let parts = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
        let metric = parts.unwrap_or(&name);
        assert!(exported.contains(&format!("\"{metric}\"")), "{metric} is exported by no pod");
    }
}
