//! Turns a `LedgerCluster` into values that can be built: all that can be wrong is found here, so that later code cannot fail.
//! Pure, and never looks at other objects: whether a referenced Secret exists is for the caller to see.
//! Read next: `build.rs`.

use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

use certeus_autoscale::{self as autoscale, Policy, PolicyConfig};
use certeus_crds::{
    Behavior, Database, FieldError, LedgerCluster, LedgerClusterSpec, LedgerSettings, Scheduling,
    SecretKeyRef, Security, Spool, bytes, millicores,
};
use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// A label of a pod is the cluster's name, a dash and a hash of 10 characters; labels may have 63.
const NAME_LENGTH_MAX: usize = 63 - 11;
/// Connections a pod needs beside those of its writers: one to read, one for health checks. The pod insists on it.
const READ_CONNECTIONS_MIN: u32 = 2;
/// Most connections one pod can use. The pod insists on it.
const POOL_SIZE_MAX: u32 = 500;

/// A cluster that can be built.
#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    /// Name; a DNS label that leaves room for what Kubernetes appends.
    pub name: String,
    /// Namespace of everything the cluster consists of.
    pub namespace: String,
    /// The object's identity, absent without an API server.
    pub uid: Option<String>,
    /// The generation of the spec, for status.
    pub generation: Option<i64>,
    /// Image with tag or digest.
    pub image: String,
    /// Copied into the pods.
    pub resources: ResourceRequirements,
    /// What CPU use is measured against; present whenever the CPU trigger is.
    pub cpu_request: Option<Millicores>,
    /// How many pods.
    pub scaling: Scaling,
    /// Where the database is.
    pub database: DatabaseSource,
    /// Connections of one pod, writers' included: its share of the budget at the largest number of pods.
    pub pool_size: NonZeroU32,
    /// How events are gathered and committed.
    pub ledger: LedgerSettings,
    /// The spool volume.
    pub spool: Spool,
    /// How long samples are kept.
    pub retention: Duration,
    /// Keys by reference.
    pub security: Security,
    /// Where pods may run.
    pub scheduling: Scheduling,
    /// Change nothing.
    pub paused: bool,
}

/// Thousandths of a CPU core, above zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Millicores(NonZeroU64);

impl Millicores {
    /// As a number of cores.
    #[must_use]
    pub fn cores(self) -> f64 {
        self.0.get() as f64 / 1000.0
    }
}

/// How many pods.
#[derive(Clone, Debug, PartialEq)]
pub enum Scaling {
    /// Always as many.
    Fixed(NonZeroU32),
    /// With load.
    Auto(Box<Policy>),
}

impl Scaling {
    /// Fewest pods.
    #[must_use]
    pub fn min(&self) -> u32 {
        match self {
            Self::Fixed(replicas) => replicas.get(),
            Self::Auto(policy) => policy.config().replicas_min,
        }
    }

    /// Most pods.
    #[must_use]
    pub fn max(&self) -> u32 {
        match self {
            Self::Fixed(replicas) => replicas.get(),
            Self::Auto(policy) => policy.config().replicas_max,
        }
    }
}

/// Where the database is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DatabaseSource {
    /// Its URL is in a Secret.
    Secret(SecretKeyRef),
    /// Whoever runs the cluster starts one and gives the pods its URL.
    Embedded,
}

/// Checks `object` and works out what follows from it.
///
/// # Errors
/// Everything that is wrong with it.
pub fn validate(object: &LedgerCluster) -> Result<Cluster, Vec<FieldError>> {
    let mut errors = object.check();
    let metadata = &object.metadata;
    let spec = &object.spec;
    let name = metadata.name.clone().unwrap_or_default();
    check_name(&name, &mut errors);
    let cpu_request = check_resources(&spec.resources, &mut errors);
    if spec.autoscaling.enabled && spec.autoscaling.cpu.enabled && cpu_request.is_none() {
        let problem = "is required, above 0, as the CPU trigger is a fraction of it; or set autoscaling.cpu.enabled to false";
        errors.push(FieldError::new("spec.resources.requests.cpu", problem));
    }
    let scaling = scaling(object, &mut errors);
    let pool_size = scaling
        .as_ref()
        .and_then(|scaling| pool_size(&spec.database, spec.ledger.writers, scaling.max(), &mut errors));
    let database = match &spec.database.secret_ref {
        Some(secret_ref) => DatabaseSource::Secret(secret_ref.clone()),
        None => DatabaseSource::Embedded,
    };
    let (Some(scaling), Some(pool_size), true) = (scaling, pool_size, errors.is_empty()) else {
        return Err(errors);
    };
    Ok(Cluster {
        name,
        namespace: metadata.namespace.clone().unwrap_or_else(|| "default".to_owned()),
        uid: metadata.uid.clone(),
        generation: metadata.generation,
        image: image(spec),
        resources: spec.resources.clone(),
        cpu_request,
        scaling,
        database,
        pool_size,
        ledger: spec.ledger.clone(),
        spool: spec.spool.clone(),
        retention: spec.monitoring.retention.into(),
        security: spec.security.clone(),
        scheduling: spec.scheduling.clone(),
        paused: spec.paused,
    })
}

fn check_name(name: &str, errors: &mut Vec<FieldError>) {
    let plain = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    let begins_well = name.starts_with(|c: char| c.is_ascii_lowercase());
    if !plain || !begins_well || name.ends_with('-') || name.len() > NAME_LENGTH_MAX {
        let problem = format!(
            "must be at most {NAME_LENGTH_MAX} lower-case letters, digits and dashes, begin with a letter and not end with a dash"
        );
        errors.push(FieldError::new("metadata.name", problem));
    }
}

/// Checks requests against limits; the CPU request, which is the limit where only that is given, as in Kubernetes.
fn check_resources(resources: &ResourceRequirements, errors: &mut Vec<FieldError>) -> Option<Millicores> {
    let mut read = |list: &str, name: &str, quantity: &Quantity| {
        let value = if name == "cpu" { millicores(quantity) } else { bytes(quantity) };
        let path = certeus_crds::field_path(&format!("spec.resources.{list}"), name);
        value.map_err(|error| errors.push(FieldError::new(path, error.to_string()))).ok()
    };
    let mut cpu = None;
    let mut above_limit = Vec::new();
    let limits = resources.limits.iter().flatten();
    for (name, quantity) in limits {
        let limit = read("limits", name, quantity);
        if name == "cpu" {
            cpu = limit;
        }
    }
    for (name, quantity) in resources.requests.iter().flatten() {
        let request = read("requests", name, quantity);
        let limit = resources.limits.as_ref().and_then(|limits| limits.get(name));
        let limit_value =
            limit.and_then(|limit| if name == "cpu" { millicores(limit) } else { bytes(limit) }.ok());
        if let (Some(request), Some(limit_value), Some(limit)) = (request, limit_value, limit)
            && request > limit_value
        {
            above_limit.push((name, limit));
        }
        if name == "cpu" {
            cpu = request;
        }
    }
    for (name, limit) in above_limit {
        let path = certeus_crds::field_path("spec.resources.requests", name);
        errors.push(FieldError::new(path, format!("must not be above the limit of {}", limit.0)));
    }
    cpu.and_then(NonZeroU64::new).map(Millicores)
}

fn image(spec: &LedgerClusterSpec) -> String {
    if spec.image_has_version() {
        return spec.image.clone();
    }
    // The operator and the pods it runs are released together.
    format!("{}:{}", spec.image, spec.version.as_deref().unwrap_or(env!("CARGO_PKG_VERSION")))
}

/// The share of one pod, rounded down so that all pods together stay within the budget.
fn pool_size(
    database: &Database,
    writers: u32,
    replicas_max: u32,
    errors: &mut Vec<FieldError>,
) -> Option<NonZeroU32> {
    let needed = writers.saturating_add(READ_CONNECTIONS_MIN);
    let share = (database.connection_budget / replicas_max.max(1)).min(POOL_SIZE_MAX);
    if share < needed {
        let problem = format!(
            "must be at least {}: {replicas_max} pods with {writers} writers need {needed} connections each",
            u64::from(needed) * u64::from(replicas_max)
        );
        errors.push(FieldError::new("spec.database.connectionBudget", problem));
        return None;
    }
    NonZeroU32::new(share)
}

fn scaling(object: &LedgerCluster, errors: &mut Vec<FieldError>) -> Option<Scaling> {
    let spec = &object.spec.autoscaling;
    if !spec.enabled {
        return NonZeroU32::new(object.spec.replicas.unwrap_or(spec.min)).map(Scaling::Fixed);
    }
    let behavior = behavior(&spec.behavior, spec.cooldown.into(), errors);
    let cpu = &spec.cpu;
    let queue = &spec.queue_depth;
    let config = PolicyConfig {
        replicas_min: spec.min,
        replicas_max: spec.max,
        cpu: cpu.enabled.then_some(autoscale::Trigger {
            target: cpu.target,
            scale_up_threshold: cpu.scale_up_threshold,
            scale_down_threshold: cpu.scale_down_threshold,
        }),
        queue_depth: queue.enabled.then_some(autoscale::Trigger {
            target: queue.target,
            scale_up_threshold: queue.scale_up_threshold,
            scale_down_threshold: queue.scale_down_threshold,
        }),
        behavior,
        fallback: spec
            .fallback
            .as_ref()
            .map(|fallback| autoscale::Fallback { failures: fallback.failures, replicas: fallback.replicas }),
        ..PolicyConfig::default()
    };
    match Policy::new(config) {
        Ok(policy) => Some(Scaling::Auto(Box::new(policy))),
        Err(error) => {
            // What the object's own check found says it better.
            if errors.is_empty() {
                errors.push(FieldError::new("spec.autoscaling", error.to_string()));
            }
            None
        }
    }
}

fn behavior(spec: &Behavior, cooldown: Duration, errors: &mut Vec<FieldError>) -> autoscale::Behavior {
    let mut behavior = PolicyConfig::default().behavior;
    behavior.scale_down.stabilization_window = cooldown;
    let directions = [
        ("scaleUp", &spec.scale_up, &mut behavior.scale_up),
        ("scaleDown", &spec.scale_down, &mut behavior.scale_down),
    ];
    for (direction, given, rules) in directions {
        let Some(given) = given else { continue };
        if let Some(seconds) = given.stabilization_window_seconds {
            rules.stabilization_window = Duration::from_secs(seconds.into());
        }
        if let Some(select) = given.select_policy {
            rules.select_policy = match select {
                certeus_crds::SelectPolicy::Max => autoscale::SelectPolicy::Max,
                certeus_crds::SelectPolicy::Min => autoscale::SelectPolicy::Min,
                certeus_crds::SelectPolicy::Disabled => autoscale::SelectPolicy::Disabled,
            };
        }
        if let Some(policies) = &given.policies {
            rules.policies = policies.iter().map(rate_policy).collect();
        }
        if let Some(tolerance) = &given.tolerance {
            // The engine counts in fractions; thousandths are as fine as any tolerance needs to be.
            match millicores(tolerance) {
                Ok(thousandths) => rules.tolerance = thousandths as f64 / 1000.0,
                Err(error) => {
                    let path = format!("spec.autoscaling.behavior.{direction}.tolerance");
                    errors.push(FieldError::new(path, error.to_string()));
                }
            }
        }
    }
    behavior
}

fn rate_policy(policy: &certeus_crds::RatePolicy) -> autoscale::RatePolicy {
    autoscale::RatePolicy {
        change: match policy.kind {
            certeus_crds::RatePolicyType::Pods => autoscale::Change::Pods(policy.value),
            certeus_crds::RatePolicyType::Percent => autoscale::Change::Percent(policy.value),
        },
        period: Duration::from_secs(policy.period_seconds.into()),
    }
}

#[cfg(test)]
mod tests {
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
        assert_eq!((valid.pool_size.get(), valid.cpu_request.map(Millicores::cores)), (4, Some(1.0)));
        assert_eq!(valid.image, format!("certeus/dataplane:{}", env!("CARGO_PKG_VERSION")));
        assert_eq!((valid.namespace.as_str(), valid.database), ("default", DatabaseSource::Embedded));
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
        let pods =
            autoscale::RatePolicy { change: autoscale::Change::Pods(2), period: Duration::from_secs(30) };
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

    #[test]
    fn refuses_a_budget_that_is_too_small_for_the_largest_number_of_pods() {
        check(
            "{ database: { embedded: true, connectionBudget: 79 } }",
            "spec.database.connectionBudget: must be at least 80: 20 pods with 2 writers need 4 connections each",
        );
        check("{ database: { embedded: true, connectionBudget: 80 } }", "");
        check(
            "{ database: { embedded: true }, ledger: { writers: 3 } }",
            "spec.database.connectionBudget: must be at least 100: 20 pods with 3 writers need 5 connections each",
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
        let errors = validate(&cluster("demo", &with("{ requests: { cpu: much } }"))).unwrap_err();
        assert!(errors[0].to_string().starts_with("spec.resources.requests.cpu: \"much\" is not a quantity"));
    }

    #[test]
    fn refuses_names_that_could_not_name_a_pod() {
        let spec = "{ database: { embedded: true } }";
        let long = "a".repeat(NAME_LENGTH_MAX + 1);
        for name in ["Demo", "1demo", "demo-", "de.mo", "", &long] {
            let errors = validate(&cluster(name, spec)).unwrap_err();
            assert_eq!(errors.len(), 1, "{name}");
            assert_eq!(errors[0].path, "metadata.name");
        }
        assert!(validate(&cluster(&long[1..], spec)).is_ok());
    }

    #[test]
    fn an_image_is_completed_only_where_it_says_no_version() {
        for (given, expected) in [
            ("image: a/b, version: '2'", "a/b:2"),
            ("image: 'localhost:5000/b', version: '2'", "localhost:5000/b:2"),
            ("image: 'a/b:1'", "a/b:1"),
            ("image: 'a/b@sha256:00'", "a/b@sha256:00"),
        ] {
            let spec = format!("{{ database: {{ embedded: true }}, {given} }}");
            assert_eq!(validate(&cluster("demo", &spec)).unwrap().image, expected);
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
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/build/golden/full.yaml"))
                .unwrap();
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
                        let built = crate::build::build(&cluster, most)
                            .stateful_set
                            .spec
                            .and_then(|spec| spec.replicas);
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
}
