use serde_json::{Value, json};

use super::*;
use crate::manifest::{Object, parse};

fn cluster(name: &str, spec: &str) -> LedgerCluster {
    let text = format!(
        "apiVersion: certeus.io/v1alpha1\nkind: LedgerCluster\nmetadata: {{ name: \"{name}\" }}\nspec: {spec}"
    );
    let mut manifests = parse(std::path::Path::new("test.yaml"), &text).unwrap();
    match manifests.remove(0).object {
        Object::LedgerCluster(cluster) => *cluster,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn check(spec: &str, expected: &str) {
    let errors = validate(&cluster("demo", spec)).err().unwrap_or_default();
    let told: Vec<String> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(told.join("; "), expected, "{spec}");
}

#[test]
fn a_minimal_cluster_gets_the_engines_own_defaults() {
    let valid = validate(&cluster("demo", "{ database: { embedded: true } }")).unwrap();
    let Scaling::Auto(policy) = &valid.scaling else { panic!("not scaled") };
    assert_eq!(*policy.config(), PolicyConfig::default());
    assert_eq!((valid.pool_size.get(), valid.cpu_request.map(Millicores::cores)), (5, Some(1.0)));
    assert_eq!(valid.image, Image::Floating { repository: "certeus/dataplane".to_owned() });
    assert_eq!(
        (valid.namespace.as_str(), valid.database),
        ("default", DatabaseSource::Embedded { image: "postgres:18".to_owned() })
    );
}

#[test]
fn what_is_given_of_a_behaviour_goes_before_defaults() {
    let valid = validate(&cluster(
        "demo",
        "{ database: { embedded: true }, autoscaling: { cooldown: 15s, behavior: { scaleDown: { tolerance: 50m }, \
         scaleUp: { stabilizationWindowSeconds: 7, policies: [{ type: Pods, value: 2, periodSeconds: 30 }] } } } }",
    ))
    .unwrap();
    let Scaling::Auto(policy) = &valid.scaling else { panic!("not scaled") };
    let autoscale::Behavior { scale_up, scale_down } = &policy.config().behavior;
    assert_eq!(scale_up.stabilization_window, Duration::from_secs(7));
    let pods = autoscale::RatePolicy { change: autoscale::Change::Pods(2), period: Duration::from_secs(30) };
    assert_eq!(scale_up.policies, [pods]);
    assert_eq!((scale_down.stabilization_window, scale_down.tolerance), (Duration::from_secs(15), 0.05));
}

#[test]
fn a_fixed_count_needs_no_cpu_request_and_shares_the_budget_by_itself() {
    let valid = validate(&cluster(
        "demo",
        "{ database: { embedded: true, connectionBudget: 11 }, replicas: 2, autoscaling: { enabled: false }, \
         resources: {} }",
    ))
    .unwrap();
    assert_eq!((valid.scaling.min(), valid.scaling.max(), valid.pool_size.get()), (2, 2, 5));
}

/// It is in the pods' configuration: `kubectl scale` must not restart them.
#[test]
fn a_fixed_count_does_not_change_how_many_connections_a_pod_has() {
    let pool = |budget: u32, replicas: u32| {
        let spec = format!(
            "{{ database: {{ embedded: true, connectionBudget: {budget} }}, replicas: {replicas}, \
             autoscaling: {{ enabled: false, max: 10 }} }}"
        );
        validate(&cluster("demo", &spec)).map(|valid| valid.pool_size.get()).ok()
    };
    for replicas in 1..=10 {
        assert_eq!(pool(100, replicas), Some(10));
    }
    // Beyond that it is what every pod needs at least.
    assert_eq!((pool(100, 11), pool(100, 20), pool(100, 21)), (Some(5), Some(5), None));
    assert_eq!((pool(12, 1), pool(12, 2), pool(12, 3)), (Some(5), Some(5), None));
}

#[test]
fn refuses_a_budget_that_is_too_small_for_the_largest_number_of_pods() {
    check(
        "{ database: { embedded: true, connectionBudget: 99 } }",
        "spec.database.connectionBudget: must be at least 100: 20 pods with 2 writers need 5 connections each",
    );
    check("{ database: { embedded: true, connectionBudget: 100 } }", "");
    check(
        "{ database: { embedded: true }, ledger: { writers: 3 } }",
        "spec.database.connectionBudget: must be at least 120: 20 pods with 3 writers need 6 connections each",
    );
}

#[test]
fn refuses_resources_that_do_not_fit() {
    let with = |resources: &str| format!("{{ database: {{ embedded: true }}, resources: {resources} }}");
    let needed = "spec.resources.requests.cpu: is required, above 0, as the CPU trigger is a fraction of it; or set \
                  autoscaling.cpu.enabled to false";
    check(&with("{ requests: { memory: 1Gi } }"), needed);
    check(&with("{ requests: { cpu: 0 } }"), needed);
    check(&with("{ limits: { cpu: 2 } }"), "");
    check(
        &with("{ requests: { cpu: 2, memory: 2Gi }, limits: { cpu: 1500m, memory: 1G } }"),
        "spec.resources.requests.cpu: must not be above the limit of 1500m; \
         spec.resources.requests.memory: must not be above the limit of 1G",
    );
    // One mistake, one error.
    for list in ["requests", "limits"] {
        let errors =
            validate(&cluster("demo", &with(&format!("{{ {list}: {{ cpu: much }} }}")))).unwrap_err();
        let [error] = &errors[..] else { panic!("{errors:?}") };
        assert_eq!(error.path, format!("spec.resources.{list}.cpu"));
        assert!(error.problem.starts_with("\"much\" is not a quantity"), "{error}");
    }
    check(
        &with("{ requests: { cpu: -1, memory: 1Gi } }"),
        "spec.resources.requests.cpu: quantity \"-1\" is negative",
    );
}

#[test]
fn an_image_is_completed_only_where_it_says_no_version() {
    let pinned = format!("a/b@sha256:{}", "0".repeat(64));
    for (given, expected) in [
        ("image: a/b, version: '2'", "a/b:2"),
        ("image: 'localhost:5000/b', version: '2'", "localhost:5000/b:2"),
        ("image: 'a/b:1'", "a/b:1"),
        (&format!("image: '{pinned}'"), &pinned),
    ] {
        let spec = format!("{{ database: {{ embedded: true }}, {given} }}");
        let image = validate(&cluster("demo", &spec)).unwrap().image;
        assert_eq!(image, Image::Fixed(expected.to_owned()));
    }
}

#[test]
fn the_samples_are_valid() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/samples");
    let mut kinds = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        for manifest in parse(&path, &std::fs::read_to_string(&path).unwrap()).unwrap() {
            kinds.push(manifest.object.kind());
            if let Object::LedgerCluster(cluster) = manifest.object {
                let scaling = validate(&cluster).unwrap().scaling;
                assert_eq!((scaling.min(), scaling.max()), (1, 4));
            }
        }
    }
    kinds.sort_unstable();
    assert_eq!(kinds, ["AlertRule", "LedgerCluster"]);
}

/// Puts every odd value in the place of every field in turn. What is refused must name a field of the spec; what is
/// accepted must build.
#[test]
fn no_value_of_any_field_can_break_reading_validating_or_building() {
    let text =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/full.yaml")).unwrap();
    let full: Value = serde_saphyr::from_str(&text).unwrap();
    // As read, so that defaulted fields are there as well.
    let full = serde_json::to_value(LedgerCluster::read(full).unwrap()).unwrap();
    let odd = json!([null, true, -1, 0, 1, 4_000_000_000_u32, u64::MAX, 1e300, 0.5, "", "x", "0", "-1", "99999999Ei", "292277024y", [], [0], {}, { "x": 0 }]);
    let mut pointers = Vec::new();
    collect_pointers(&full["spec"], "/spec".to_owned(), &mut pointers);
    assert!(pointers.len() > 60, "{pointers:?}");
    let (mut accepted, mut refused) = (0, 0);
    for pointer in pointers {
        for value in odd.as_array().unwrap() {
            let mut changed = full.clone();
            *changed.pointer_mut(&pointer).unwrap() = value.clone();
            match LedgerCluster::read(changed).and_then(|object| validate(&object)) {
                Ok(cluster) => {
                    let most = cluster.scaling.max();
                    let inputs = crate::build::Inputs { replicas: most, ..Default::default() };
                    let objects = crate::build::build(&cluster, &inputs);
                    assert_eq!(objects, crate::build::build(&cluster, &inputs), "the same again");
                    let built = objects.stateful_set.spec.and_then(|spec| spec.replicas);
                    assert_eq!(built, i32::try_from(most).ok());
                    accepted += 1;
                }
                Err(errors) => {
                    assert!(
                        errors.iter().all(|e| e.path.starts_with("spec")),
                        "{pointer} {value}: {errors:?}"
                    );
                    refused += 1;
                }
            }
        }
    }
    assert!(accepted > 100 && refused > 500, "{accepted} accepted, {refused} refused");
}

fn collect_pointers(value: &Value, pointer: String, pointers: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                let name = name.replace('~', "~0").replace('/', "~1");
                collect_pointers(value, format!("{pointer}/{name}"), pointers);
            }
        }
        Value::Array(items) => {
            for (index, value) in items.iter().enumerate() {
                collect_pointers(value, format!("{pointer}/{index}"), pointers);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
    pointers.push(pointer);
}
