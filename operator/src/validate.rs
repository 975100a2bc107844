//! Turns a `LedgerCluster` into values that can be built: all that can be wrong is found here, so that later code cannot fail.
//! Pure, and never looks at other objects: whether a referenced Secret exists is for the caller to see.
//! Read next: `build.rs`.

use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

use certeus_autoscale::{self as autoscale, Policy, PolicyConfig};
use certeus_crds::{
    Behavior, Database, FieldError, LedgerCluster, LedgerClusterSpec, LedgerSettings, Log, Monitoring,
    Network, Proofs, Scheduling, SecretKeyRef, SecretRef, Security, Spool, bytes, millicores,
};
use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

// A label of the embedded database's pod is the cluster's name, `-database`, a dash and a hash of 10 characters; labels may
// have 63.
const _: () = assert!(certeus_crds::NAME_LENGTH_MAX == 63 - 9 - 11);
/// Connections a pod needs beside those of its writers: one to read, one for health checks, one to follow or seal the log.
const OTHER_CONNECTIONS_MIN: u32 = 3;
const DAY_MILLIS: u64 = 86_400_000;
/// Most connections one pod can use. The pod insists on it.
const POOL_SIZE_MAX: u32 = 500;

const CPU_PATHS: [&str; 2] = ["spec.resources.requests.cpu", "spec.resources.limits.cpu"];

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
    /// Image of the pods.
    pub image: Image,
    /// Credentials for the registries that images come from.
    pub image_pull_secrets: Vec<SecretRef>,
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
    /// Connections that all pods together may open.
    pub connection_budget: u32,
    /// The spool volume.
    pub spool: Spool,
    /// The signed log.
    pub log: Log,
    /// What becomes of old events.
    pub retention: Retention,
    /// How bundles are made and published.
    pub proofs: Proofs,
    /// How the ledger is watched.
    pub monitoring: Monitoring,
    /// Keys by reference.
    pub security: Security,
    /// Who may reach the pods.
    pub network: Network,
    /// Where pods may run.
    pub scheduling: Scheduling,
    /// Change nothing. Goes before all else.
    pub paused: bool,
    /// No pods.
    pub stopped: bool,
    /// Decide, and change nothing.
    pub dry_run: bool,
}

impl Cluster {
    /// Whether anything at all may be changed for it.
    #[must_use]
    pub fn may_change(&self) -> bool {
        !self.paused && !self.dry_run
    }
}

/// Image of the pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Image {
    /// With a tag or digest that the user chose.
    Fixed(String),
    /// Of whatever version runs.
    Floating {
        /// The image without a tag.
        repository: String,
    },
}

impl Image {
    /// The image to run, where `running` is that of the pods as they are. Without a version from the user theirs stays, so
    /// that an upgrade of the operator alone restarts no pod; new pods get the operator's own version, as both are
    /// released together.
    #[must_use]
    pub fn resolve(&self, running: Option<&str>) -> String {
        match self {
            Self::Fixed(image) => image.clone(),
            Self::Floating { repository } => {
                let tag = running.and_then(tag).unwrap_or(crate::version());
                format!("{repository}:{tag}")
            }
        }
    }
}

/// The tag of an image; none if it is chosen by digest. A colon before the last slash belongs to a registry's port.
fn tag(image: &str) -> Option<&str> {
    let name = image.rsplit('/').next().filter(|name| !name.contains('@'))?;
    name.split_once(':').map(|(_, tag)| tag).filter(|tag| !tag.is_empty())
}

/// What becomes of old events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// Days after which events move to the archive.
    pub days: Option<u64>,
    /// Where the archive is.
    pub archive: Option<String>,
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
    Secret {
        /// The URL.
        url: SecretKeyRef,
        /// The certificates that it is trusted by.
        ca: Option<SecretKeyRef>,
    },
    /// Whoever runs the cluster starts one and gives the pods its URL.
    Embedded {
        /// Its image.
        image: String,
    },
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
    let cpu_request = check_resources(&spec.resources, &mut errors);
    // One that cannot be read is told already.
    let cpu_told = errors.iter().any(|error| CPU_PATHS.contains(&error.path.as_str()));
    if spec.autoscaling.enabled && spec.autoscaling.cpu.enabled && cpu_request.is_none() && !cpu_told {
        let problem = "is required, above 0, as the CPU trigger is a fraction of it; or set autoscaling.cpu.enabled to false";
        errors.push(FieldError::new(CPU_PATHS[0], problem));
    }
    let scaling = scaling(object, &mut errors);
    let pool_size = scaling.as_ref().and_then(|scaling| {
        pool_size(&spec.database, spec.ledger.writers, scaling, spec.autoscaling.max, &mut errors)
    });
    let database = match &spec.database.secret_ref {
        Some(url) => DatabaseSource::Secret { url: url.clone(), ca: spec.database.ca_secret_ref.clone() },
        None => DatabaseSource::Embedded { image: spec.database.embedded_image.clone() },
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
        image_pull_secrets: spec.image_pull_secrets.clone(),
        resources: spec.resources.clone(),
        cpu_request,
        scaling,
        database,
        pool_size,
        connection_budget: spec.database.connection_budget,
        ledger: spec.ledger.clone(),
        spool: spec.spool.clone(),
        log: spec.log.clone(),
        retention: Retention {
            days: spec.retention.events.map(|events| events.as_millis() / DAY_MILLIS),
            archive: spec.retention.archive.clone(),
        },
        proofs: spec.proofs.clone(),
        monitoring: spec.monitoring.clone(),
        security: spec.security.clone(),
        network: spec.network.clone(),
        scheduling: spec.scheduling.clone(),
        paused: spec.paused,
        stopped: spec.stopped,
        dry_run: spec.dry_run,
    })
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

fn image(spec: &LedgerClusterSpec) -> Image {
    match &spec.version {
        _ if spec.image_has_version() => Image::Fixed(spec.image.clone()),
        Some(version) => Image::Fixed(format!("{}:{version}", spec.image)),
        None => Image::Floating { repository: spec.image.clone() },
    }
}

/// The share of one pod, rounded down so that all pods together stay within the budget.
/// Connections of each pod. It is part of every pod's configuration, so it must not follow a fixed count: whoever scales the
/// LedgerCluster would restart every pod with each step. Up to `autoscaling.max` pods it is the share of so many.
fn pool_size(
    database: &Database,
    writers: u32,
    scaling: &Scaling,
    pods_max: u32,
    errors: &mut Vec<FieldError>,
) -> Option<NonZeroU32> {
    let (budget, pods) = (database.connection_budget, scaling.max().max(1));
    let needed = writers.saturating_add(OTHER_CONNECTIONS_MIN);
    if budget / pods < needed {
        let problem = format!(
            "must be at least {}: {pods} pods with {writers} writers need {needed} connections each",
            u64::from(needed) * u64::from(pods)
        );
        errors.push(FieldError::new("spec.database.connectionBudget", problem));
        return None;
    }
    let share = (budget / pods_max.max(1)).clamp(needed, POOL_SIZE_MAX.max(needed));
    NonZeroU32::new(if share.saturating_mul(pods) > budget { needed } else { share })
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
mod tests;
