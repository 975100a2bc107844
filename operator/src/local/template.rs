//! Turns a built StatefulSet into what a pod is as a process: arguments, environment, and folders for its volumes.
//!
//! Pure: reads no file and starts nothing. Whatever a pod would see and a process cannot is refused with the path of the
//! field. What only guards a pod (limits, probes, security context) is left to Kubernetes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVar, PodSpec, Secret, Volume, VolumeMount};

/// What Kubernetes gives a pod that names no grace period.
const GRACE_DEFAULT: Duration = Duration::from_secs(30);

/// Why a workload cannot run here.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum Error {
    #[error("{path}: the workload that was built has none")]
    Missing { path: &'static str },
    #[error("{path}: not supported on one machine")]
    Unsupported { path: String },
    #[error("{path}: there is no {kind} '{name}' among the manifests: add it to the folder")]
    NoObject { path: String, kind: &'static str, name: String },
    #[error("{path}: {kind} '{name}' has no key '{key}'")]
    NoKey { path: String, kind: &'static str, name: String, key: String },
    #[error("{path}: key '{key}' of Secret '{name}' is not text")]
    NotText { path: String, name: String, key: String },
    #[error("{path}: file name '{name}' is not a plain name")]
    FileName { path: String, name: String },
}

/// The objects that a workload refers to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Objects<'a> {
    pub(crate) config_maps: &'a [ConfigMap],
    pub(crate) secrets: &'a [Secret],
    /// Secrets that are generated in Kubernetes, and of which pods here get the values in another way.
    pub(crate) elsewhere: &'a [&'a str],
    /// Whether the user names an anchor.
    pub(crate) anchored: bool,
}

/// What every pod of a workload has in common. Two equal templates make equal processes. Not `Debug`: it holds secrets.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Template {
    /// Pods are called `<workload>-<ordinal>`.
    pub(crate) workload: String,
    pub(crate) drain_timeout: Duration,
    /// Whether the user names an anchor for the log.
    pub(crate) anchored: bool,
    args: Vec<String>,
    env: BTreeMap<String, EnvValue>,
    mounts: Vec<Mount>,
}

#[derive(Clone, PartialEq, Eq)]
enum EnvValue {
    Text(String),
    PodName,
}

#[derive(Clone, PartialEq, Eq)]
struct Mount {
    /// Where the container sees it.
    path: PathBuf,
    /// The folder's name below the pod's own.
    folder: PathBuf,
    content: Content,
}

#[derive(Clone, PartialEq, Eq)]
enum Content {
    /// Replaced at each start.
    Files(BTreeMap<String, Vec<u8>>),
    /// Emptied at each start.
    Scratch,
    /// Kept for ever.
    Claim,
}

/// One pod, ready to be made into a process.
pub(crate) struct Launch {
    pub(crate) args: Vec<String>,
    pub(crate) env: BTreeMap<String, String>,
    /// Folders to remove with all that is in them before the others are made.
    pub(crate) fresh_folders: Vec<PathBuf>,
    pub(crate) folders: Vec<PathBuf>,
    pub(crate) files: Vec<(PathBuf, Vec<u8>)>,
}

impl Template {
    /// Resolves all that the pods of a workload refer to.
    pub(crate) fn resolve(workload: &StatefulSet, objects: Objects<'_>) -> Result<Self, Error> {
        let name = workload.metadata.name.clone().ok_or(Error::Missing { path: "metadata.name" })?;
        let spec = workload.spec.as_ref().ok_or(Error::Missing { path: "spec" })?;
        let pod = spec.template.spec.as_ref().ok_or(Error::Missing { path: "spec.template.spec" })?;
        let [container] = pod.containers.as_slice() else {
            return Err(Error::Unsupported {
                path: "spec.template.spec.containers: other than one".to_owned(),
            });
        };
        let claims: Vec<&str> = spec
            .volume_claim_templates
            .iter()
            .flatten()
            .filter_map(|claim| claim.metadata.name.as_deref())
            .collect();
        let grace = pod.termination_grace_period_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        Ok(Self {
            workload: name,
            drain_timeout: grace.map_or(GRACE_DEFAULT, Duration::from_secs),
            anchored: objects.anchored,
            args: container.args.clone().unwrap_or_default(),
            env: environment(container, objects)?,
            mounts: container
                .volume_mounts
                .iter()
                .flatten()
                .map(|mount| resolve_mount(mount, pod, &claims, objects))
                .collect::<Result<_, _>>()?,
        })
    }

    pub(crate) fn pod_name(&self, ordinal: u32) -> String {
        format!("{}-{ordinal}", self.workload)
    }

    /// The text of an environment variable that all pods have.
    pub(crate) fn env(&self, name: &str) -> Option<&str> {
        match self.env.get(name)? {
            EnvValue::Text(text) => Some(text),
            EnvValue::PodName => None,
        }
    }

    /// One pod whose file system stands in `folder`.
    pub(crate) fn launch(&self, ordinal: u32, folder: &Path) -> Launch {
        let env = self.env.iter().map(|(name, value)| {
            let text = match value {
                EnvValue::Text(text) => text.clone(),
                EnvValue::PodName => self.pod_name(ordinal),
            };
            (name.clone(), text)
        });
        let mut launch = Launch {
            args: self.args.iter().map(|arg| self.localise(arg, folder)).collect(),
            env: env.collect(),
            fresh_folders: Vec::new(),
            folders: vec![folder.to_owned()],
            files: Vec::new(),
        };
        for mount in &self.mounts {
            let below = folder.join(&mount.folder);
            match &mount.content {
                Content::Files(files) => {
                    launch.fresh_folders.push(below.clone());
                    launch.files.extend(files.iter().map(|(name, bytes)| (below.join(name), bytes.clone())));
                }
                Content::Scratch => launch.fresh_folders.push(below.clone()),
                Content::Claim => {}
            }
            launch.folders.push(below);
        }
        launch
    }

    /// An argument with a path below a mount, bare or after `=`, moved to the folder that stands for the mount.
    fn localise(&self, arg: &str, folder: &Path) -> String {
        let (option, path) = match arg.split_once('=') {
            Some((option, path)) if option.starts_with('-') => (format!("{option}="), path),
            Some(_) | None => (String::new(), arg),
        };
        let moved = self.mounts.iter().find_map(|mount| {
            let rest = Path::new(path).strip_prefix(&mount.path).ok()?;
            // Joining nothing would add a slash.
            let below = folder.join(&mount.folder);
            Some(if rest.as_os_str().is_empty() { below } else { below.join(rest) })
        });
        moved.map_or_else(|| arg.to_owned(), |moved| format!("{option}{}", moved.display()))
    }
}

fn environment(container: &Container, objects: Objects<'_>) -> Result<BTreeMap<String, EnvValue>, Error> {
    if container.env_from.as_ref().is_some_and(|sources| !sources.is_empty()) {
        return Err(Error::Unsupported { path: "spec.template.spec.containers[0].envFrom".to_owned() });
    }
    let mut env = BTreeMap::new();
    for variable in container.env.iter().flatten() {
        if let Some(value) = env_value(variable, objects)? {
            env.insert(variable.name.clone(), value);
        }
    }
    Ok(env)
}

pub(crate) const DATABASE_URL: &str = "CERTEUS_DB_URL";
pub(crate) const API_KEY: &str = "CERTEUS_API_KEY";
pub(crate) const SIGNING_KEY: &str = "CERTEUS_SIGNING_KEY";

fn env_value(variable: &EnvVar, objects: Objects<'_>) -> Result<Option<EnvValue>, Error> {
    let path = || format!("spec.template.spec.containers[0].env[{}]", variable.name);
    let Some(source) = &variable.value_from else {
        return Ok(Some(EnvValue::Text(variable.value.clone().unwrap_or_default())));
    };
    if let Some(reference) = &source.secret_key_ref {
        let optional = reference.optional.unwrap_or(false) || objects.elsewhere.contains(&&*reference.name);
        let bytes = match secret_key(objects.secrets, &reference.name, &reference.key, path) {
            Err(_) if optional => return Ok(None),
            other => other?,
        };
        let text = String::from_utf8(bytes).map_err(|_not_text| Error::NotText {
            path: path(),
            name: reference.name.clone(),
            key: reference.key.clone(),
        })?;
        return Ok(Some(EnvValue::Text(text)));
    }
    match source.field_ref.as_ref().map(|field| field.field_path.as_str()) {
        Some("metadata.name") => Ok(Some(EnvValue::PodName)),
        Some("status.podIP") => Ok(Some(EnvValue::Text("127.0.0.1".to_owned()))),
        Some(_) | None => Err(Error::Unsupported { path: path() }),
    }
}

fn secret_key(
    secrets: &[Secret],
    name: &str,
    key: &str,
    path: impl Fn() -> String,
) -> Result<Vec<u8>, Error> {
    let kind = "Secret";
    let secret = secrets
        .iter()
        .find(|secret| secret.metadata.name.as_deref() == Some(name))
        .ok_or_else(|| Error::NoObject { path: path(), kind, name: name.to_owned() })?;
    let bytes = secret.data.as_ref().and_then(|data| data.get(key)).map(|bytes| bytes.0.clone());
    bytes.ok_or_else(|| Error::NoKey { path: path(), kind, name: name.to_owned(), key: key.to_owned() })
}

fn resolve_mount(
    mount: &VolumeMount,
    pod: &PodSpec,
    claims: &[&str],
    objects: Objects<'_>,
) -> Result<Mount, Error> {
    let path = || format!("spec.template.spec.containers[0].volumeMounts[{}]", mount.mount_path);
    if mount.sub_path.is_some() || mount.sub_path_expr.is_some() {
        return Err(Error::Unsupported { path: format!("{}.subPath", path()) });
    }
    let content = if claims.contains(&mount.name.as_str()) {
        Content::Claim
    } else {
        let volume = pod.volumes.iter().flatten().find(|volume| volume.name == mount.name);
        let volume = volume.ok_or_else(|| Error::NoObject {
            path: path(),
            kind: "volume",
            name: mount.name.clone(),
        })?;
        resolve_volume(volume, objects)?
    };
    let kind = match content {
        Content::Files(_) => "config",
        Content::Scratch => "scratch",
        Content::Claim => "volumes",
    };
    if !is_plain(&mount.name) {
        return Err(Error::FileName { path: path(), name: mount.name.clone() });
    }
    let folder = Path::new(kind).join(&mount.name);
    Ok(Mount { path: PathBuf::from(&mount.mount_path), folder, content })
}

fn resolve_volume(volume: &Volume, objects: Objects<'_>) -> Result<Content, Error> {
    let path = || format!("spec.template.spec.volumes[{}]", volume.name);
    let files: BTreeMap<String, Vec<u8>> = if let Some(source) = &volume.config_map {
        if source.items.is_some() {
            return Err(Error::Unsupported { path: format!("{}.configMap.items", path()) });
        }
        let named = |map: &&ConfigMap| map.metadata.name.as_deref() == Some(&source.name);
        let map = objects.config_maps.iter().find(named).ok_or_else(|| Error::NoObject {
            path: path(),
            kind: "ConfigMap",
            name: source.name.clone(),
        })?;
        let text = map.data.iter().flatten().map(|(name, text)| (name.clone(), text.clone().into_bytes()));
        let binary = map.binary_data.iter().flatten().map(|(name, bytes)| (name.clone(), bytes.0.clone()));
        text.chain(binary).collect()
    } else if volume.empty_dir.is_some() {
        return Ok(Content::Scratch);
    } else {
        return Err(Error::Unsupported { path: path() });
    };
    match files.keys().find(|name| !is_plain(name)) {
        Some(name) => Err(Error::FileName { path: path(), name: name.clone() }),
        None => Ok(Content::Files(files)),
    }
}

/// Whether joining the name to a folder stays in that folder.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains('/')
}

#[cfg(test)]
mod tests;
