//! What a pod's container is as a process: program, arguments, environment, folders for its volumes.
//!
//! A process sees the whole file system, so the paths at which a container would see its volumes are replaced by those
//! of the folders that stand for them: in arguments, in the environment, and in files that come from ConfigMaps. In the same way
//! `0.0.0.0` and `127.0.0.1` become the pod's own address. What comes from a Secret stays as it is but for names of Services.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{
    ConfigMap, Container, EnvVar, PersistentVolumeClaim, Pod, PodSpec, Secret, ServiceAccount, Volume,
};
use kube::api::PostParams;
use kube::{Api, ResourceExt};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::{ADMIN_PORT, API_PORT, HIDDEN_ADMIN_PORT, Shared, service};

/// Each pod has one of its own.
const LOOPBACK: &str = "127.0.0.1";
/// What a container leaves as its last message, in the pod's folder.
pub(super) const LAST_WORDS: &str = "termination-log";
const ACCOUNT_FOLDER: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Why a container does not start yet: reason and message of its waiting state.
#[derive(Debug)]
pub(super) struct Waiting(pub(super) &'static str, pub(super) String);

pub(super) fn not_yet(message: impl Into<String>) -> Waiting {
    Waiting("CreateContainerConfigError", message.into())
}

/// Images of this registry cannot be pulled.
const NO_REGISTRY: &str = "nowhere.invalid/";

impl Waiting {
    /// As kubelets tell of an image: in turn that it could not be pulled and that they wait, each time in other words.
    pub(super) fn at_attempt(self, attempt: usize) -> Self {
        match self {
            Self("ErrImagePull", why) => {
                let why = format!("{why}: read tcp 127.0.0.1:{}: i/o timeout", 40_000 + attempt);
                if attempt.is_multiple_of(2) {
                    Self("ErrImagePull", why)
                } else {
                    Self("ImagePullBackOff", format!("Back-off pulling image: ErrImagePull: {why}"))
                }
            }
            other => other,
        }
    }
}

/// A container, ready to be started any number of times.
#[derive(Debug)]
pub(super) struct Launch {
    pub(super) program: PathBuf,
    pub(super) args: Vec<String>,
    /// Not for printing: it holds secrets.
    pub(super) env: BTreeMap<String, String>,
    /// What asks it to end.
    pub(super) stop_signal: Signal,
    mounts: Vec<(String, PathBuf)>,
}

/// The files of a volume, by path within it.
type Files = BTreeMap<String, Vec<u8>>;

/// Makes the volumes and resolves all that the container refers to.
pub(super) async fn prepare(
    shared: &Shared,
    pod: &Pod,
    address: Ipv4Addr,
    fronted: bool,
    dir: &Path,
) -> Result<Launch, Waiting> {
    let spec = pod.spec.as_ref().ok_or_else(|| not_yet("no spec"))?;
    let [container] = &spec.containers[..] else {
        return Err(not_yet("only pods of one container can run here"));
    };
    if let Some(image) = container.image.as_ref().filter(|image| image.starts_with(NO_REGISTRY)) {
        return Err(Waiting("ErrImagePull", format!("failed to pull {image:?}")));
    }
    if spec.init_containers.as_ref().is_some_and(|containers| !containers.is_empty()) {
        return Err(not_yet("init containers cannot run here"));
    }
    let preparing = Preparing { shared, pod, spec, address, dir };
    let mut mounts = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        let folder = dir.join("volumes").join(&mount.name);
        let volume = spec.volumes.iter().flatten().find(|volume| volume.name == mount.name);
        let volume = volume.ok_or_else(|| not_yet(format!("there is no volume {}", mount.name)))?;
        let folder = preparing.claim_of(volume).await?.unwrap_or(folder);
        let seen = mount.sub_path.as_ref().map_or_else(|| folder.clone(), |below| folder.join(below));
        mounts.push((mount.mount_path.trim_end_matches('/').to_owned(), seen));
    }
    // The longest path first: one volume may be mounted within another.
    mounts.sort_by_key(|(path, _)| std::cmp::Reverse(path.len()));
    for volume in spec.volumes.iter().flatten() {
        preparing.fill(volume, &mounts).await?;
    }
    let mut env = preparing.environment(container, &mounts).await?;
    let admin_port = if fronted { HIDDEN_ADMIN_PORT } else { ADMIN_PORT };
    env.insert("CERTEUS_API_LISTEN".to_owned(), format!("{address}:{API_PORT}"));
    env.insert("CERTEUS_ADMIN_LISTEN".to_owned(), format!("{address}:{admin_port}"));
    env.insert("POD_ADDRESS".to_owned(), address.to_string());
    // Empty for each container, as a kubelet makes it.
    let last_words = dir.join(LAST_WORDS);
    fs::write(&last_words, "").map_err(|error| not_yet(error.to_string()))?;
    env.insert("CERTEUS_TERMINATION_LOG".to_owned(), last_words.to_string_lossy().into_owned());
    env.insert("PATH".to_owned(), path());
    if let Some((_, folder)) = mounts.iter().find(|(path, _)| path == ACCOUNT_FOLDER) {
        env.insert("KUBECONFIG".to_owned(), preparing.kubeconfig(folder)?);
    }
    let mut words = container.command.iter().flatten().chain(container.args.iter().flatten()).cloned();
    let program = match shared.programs.get(image_name(container)) {
        Some(program) if container.command.is_none() => program.clone(),
        by_image => {
            let first = words.next().unwrap_or_default();
            let name = first.rsplit('/').next().unwrap_or_default();
            let known = shared.programs.get(name).or(by_image).cloned();
            known.ok_or_else(|| {
                Waiting("ErrImagePull", format!("no program stands for '{first}' of {:?}", container.image))
            })?
        }
    };
    let args = words.map(|word| localise(&word, address, &mounts)).collect();
    // The image says so: on SIGTERM PostgreSQL would wait until its clients have gone.
    let stop_signal = if image_name(container) == "postgres" { Signal::INT } else { Signal::TERM };
    Ok(Launch { program, args, env, stop_signal, mounts })
}

/// As in an image: with PostgreSQL's programs, for those that are not installed where all look.
fn path() -> String {
    let usual = "/usr/local/bin:/usr/bin:/bin";
    let found = certeus_localpg::Binaries::find().ok();
    let postgres = found.as_ref().and_then(|found| found.postgres.parent());
    postgres.map_or_else(|| usual.to_owned(), |folder| format!("{}:{usual}", folder.display()))
}

impl Launch {
    /// The words of a command that runs beside the container, as its probes do.
    pub(super) fn localise(&self, words: &[String], address: Ipv4Addr) -> Vec<String> {
        words.iter().map(|word| localise(word, address, &self.mounts)).collect()
    }
}

struct Preparing<'a> {
    shared: &'a Shared,
    pod: &'a Pod,
    spec: &'a PodSpec,
    address: Ipv4Addr,
    dir: &'a Path,
}

impl Preparing<'_> {
    /// The folder of a volume that outlives the pod.
    async fn claim_of(&self, volume: &Volume) -> Result<Option<PathBuf>, Waiting> {
        let Some(source) = &volume.persistent_volume_claim else { return Ok(None) };
        let claims: Api<PersistentVolumeClaim> = self.api();
        let found = claims.get_opt(&source.claim_name).await.map_err(|error| not_yet(error.to_string()))?;
        let claim = found.ok_or_else(|| not_yet(format!("there is no claim {}", source.claim_name)))?;
        // A claim that is made anew under the same name is an empty one.
        let folder = format!("{}-{}", source.claim_name, claim.uid().unwrap_or_default());
        Ok(Some(self.shared.dir.join("claims").join(folder)))
    }

    async fn fill(&self, volume: &Volume, mounts: &[(String, PathBuf)]) -> Result<(), Waiting> {
        let source = serde_json::to_value(volume).unwrap_or_default();
        if let Some(claim) = self.claim_of(volume).await? {
            return fs::create_dir_all(&claim).map_err(|error| not_yet(error.to_string()));
        }
        let folder = self.dir.join("volumes").join(&volume.name);
        let mut files = Files::new();
        if let Some(projected) = source.get("projected") {
            for source in projected["sources"].as_array().into_iter().flatten() {
                files.extend(self.files(source, mounts).await?);
            }
        } else if source.get("emptyDir").is_none() {
            files = self.files(&source, mounts).await?;
        }
        write(&folder, &files).map_err(|error| not_yet(format!("volume {}: {error}", volume.name)))
    }

    /// The files of one source, as JSON: the same words stand in a volume and in a part of a projected one.
    async fn files(&self, source: &Value, mounts: &[(String, PathBuf)]) -> Result<Files, Waiting> {
        if let Some(map) = source.get("configMap") {
            let found = self.config_map(&map["name"]).await?;
            let data = found.into_iter().flat_map(|found| {
                let text = found.data.unwrap_or_default().into_iter();
                let text = text.map(|(key, text)| (key, localise(&text, self.address, mounts).into_bytes()));
                text.chain(
                    found.binary_data.unwrap_or_default().into_iter().map(|(key, bytes)| (key, bytes.0)),
                )
                .collect::<Files>()
            });
            return chosen(data.collect(), map);
        }
        if let Some(secret) = source.get("secret") {
            let name = if secret["secretName"].is_string() { &secret["secretName"] } else { &secret["name"] };
            let found = self.secret(name).await?;
            let data = found.and_then(|found| found.data).unwrap_or_default();
            return chosen(data.into_iter().map(|(key, bytes)| (key, bytes.0)).collect(), secret);
        }
        if let Some(downward) = source.get("downwardAPI") {
            let items = downward["items"].as_array().into_iter().flatten();
            let files = items.map(|item| {
                let path = item["fieldRef"]["fieldPath"].as_str().unwrap_or_default();
                Ok((text(&item["path"]), self.field(path)?.into_bytes()))
            });
            return files.collect();
        }
        if let Some(token) = source.get("serviceAccountToken") {
            return Ok([(text(&token["path"]), self.token(token).await?.into_bytes())].into());
        }
        Err(not_yet(format!("no volume of this kind can be had here: {source}")))
    }

    async fn token(&self, source: &Value) -> Result<String, Waiting> {
        let account = self.spec.service_account_name.as_deref().unwrap_or("default");
        let audiences: Vec<&str> = source["audience"].as_str().into_iter().collect();
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": { "audiences": audiences, "expirationSeconds": 86_400 },
        });
        let accounts: Api<ServiceAccount> = self.api();
        let issued: kube::Result<Value> =
            accounts.create_subresource("token", account, &PostParams::default(), &request).await;
        let issued = issued.map_err(|error| not_yet(format!("no token for {account}: {error}")))?;
        Ok(text(&issued["status"]["token"]))
    }

    /// A process does not find the service account's folder, but it finds this.
    fn kubeconfig(&self, folder: &Path) -> Result<String, Waiting> {
        let token = fs::read_to_string(folder.join("token")).map_err(|error| not_yet(error.to_string()))?;
        let path = self.dir.join("kubeconfig");
        let written = self.shared.plane.kubeconfig_for(&path, &token, None);
        written.map_err(|error| not_yet(format!("{error:#}")))?;
        Ok(path.display().to_string())
    }

    async fn environment(
        &self,
        container: &Container,
        mounts: &[(String, PathBuf)],
    ) -> Result<BTreeMap<String, String>, Waiting> {
        let mut env = BTreeMap::new();
        for source in container.env_from.iter().flatten() {
            let prefix = source.prefix.clone().unwrap_or_default();
            if let Some(reference) = &source.config_map_ref {
                let found = self.config_map(&json!(reference.name)).await?;
                let found = required(found, reference.optional, &reference.name)?;
                let data = found.and_then(|found| found.data).unwrap_or_default();
                env.extend(data.into_iter().map(|(key, text)| (format!("{prefix}{key}"), text)));
            }
            if let Some(reference) = &source.secret_ref {
                let found = self.secret(&json!(reference.name)).await?;
                let found = required(found, reference.optional, &reference.name)?;
                for (key, bytes) in found.and_then(|found| found.data).unwrap_or_default() {
                    env.insert(format!("{prefix}{key}"), String::from_utf8_lossy(&bytes.0).into_owned());
                }
            }
        }
        for variable in container.env.iter().flatten() {
            if let Some(value) = self.value(variable, mounts, &env).await? {
                env.insert(variable.name.clone(), service::resolve(self.shared, &value).await?);
            }
        }
        Ok(env)
    }

    async fn value(
        &self,
        variable: &EnvVar,
        mounts: &[(String, PathBuf)],
        before: &BTreeMap<String, String>,
    ) -> Result<Option<String>, Waiting> {
        let Some(source) = &variable.value_from else {
            let mut value = variable.value.clone().unwrap_or_default();
            for (name, text) in before {
                value = value.replace(&format!("$({name})"), text);
            }
            return Ok(Some(localise(&value, self.address, mounts)));
        };
        if let Some(reference) = &source.secret_key_ref {
            let found = self.secret(&json!(reference.name)).await?;
            let bytes = found.and_then(|found| found.data?.remove(&reference.key));
            let place = format!("key {} of Secret {}", reference.key, reference.name);
            let bytes = required(bytes, reference.optional, &place)?;
            return Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes.0).into_owned()));
        }
        if let Some(reference) = &source.config_map_key_ref {
            let found = self.config_map(&json!(reference.name)).await?;
            let text = found.and_then(|found| found.data?.remove(&reference.key));
            let place = format!("key {} of ConfigMap {}", reference.key, reference.name);
            return required(text, reference.optional, &place);
        }
        match &source.field_ref {
            Some(field) => self.field(&field.field_path).map(Some),
            None => Err(not_yet(format!("{}: no value of this kind can be had here", variable.name))),
        }
    }

    fn field(&self, path: &str) -> Result<String, Waiting> {
        let metadata = &self.pod.metadata;
        let of = |map: &Option<BTreeMap<String, String>>, key: &str| {
            map.as_ref().and_then(|map| map.get(key)).cloned().unwrap_or_default()
        };
        if let Some((map, key)) = path.strip_suffix("']").and_then(|path| path.split_once("['")) {
            return match map {
                "metadata.labels" => Ok(of(&metadata.labels, key)),
                "metadata.annotations" => Ok(of(&metadata.annotations, key)),
                _ => Err(not_yet(format!("no field {path}"))),
            };
        }
        Ok(match path {
            "metadata.name" => self.pod.name_any(),
            "metadata.namespace" => self.shared.namespace.clone(),
            "metadata.uid" => self.pod.uid().unwrap_or_default(),
            "spec.nodeName" => self.shared.node.clone(),
            "spec.serviceAccountName" => self.spec.service_account_name.clone().unwrap_or_default(),
            "status.podIP" | "status.podIPs" => self.address.to_string(),
            "status.hostIP" | "status.hostIPs" => "127.0.0.1".to_owned(),
            _ => return Err(not_yet(format!("no field {path}"))),
        })
    }

    async fn config_map(&self, name: &Value) -> Result<Option<ConfigMap>, Waiting> {
        let api: Api<ConfigMap> = self.api();
        api.get_opt(&text(name)).await.map_err(|error| not_yet(error.to_string()))
    }

    async fn secret(&self, name: &Value) -> Result<Option<Secret>, Waiting> {
        let api: Api<Secret> = self.api();
        api.get_opt(&text(name)).await.map_err(|error| not_yet(error.to_string()))
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.shared.client.clone(), &self.shared.namespace)
    }
}

fn required<T>(found: Option<T>, optional: Option<bool>, what: &str) -> Result<Option<T>, Waiting> {
    if found.is_none() && !optional.unwrap_or(false) {
        return Err(not_yet(format!("there is no {what}")));
    }
    Ok(found)
}

/// The keys that a source's `items` choose, under their paths; all without such a list.
fn chosen(mut data: Files, source: &Value) -> Result<Files, Waiting> {
    let optional = source["optional"].as_bool().unwrap_or(false);
    let Some(items) = source["items"].as_array() else {
        if data.is_empty() && !optional {
            return Err(not_yet(format!("there is nothing of {source}")));
        }
        return Ok(data);
    };
    let mut files = Files::new();
    for item in items {
        match data.remove(&text(&item["key"])) {
            Some(bytes) => {
                files.insert(text(&item["path"]), bytes);
            }
            None if optional => {}
            None => return Err(not_yet(format!("there is no key {} of {source}", item["key"]))),
        }
    }
    Ok(files)
}

fn write(folder: &Path, files: &Files) -> std::io::Result<()> {
    fs::create_dir_all(folder)?;
    for (name, bytes) in files {
        let path = folder.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(path, bytes)?;
    }
    Ok(())
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// `registry.example:5000/certeus/dataplane:1.2` is called `certeus/dataplane`.
fn image_name(container: &Container) -> &str {
    let image = container.image.as_deref().unwrap_or_default();
    let image = image.split('@').next().unwrap_or_default();
    let (host, rest) = image.split_once('/').unwrap_or(("", image));
    let rest = if host.contains(['.', ':']) || host == "localhost" { rest } else { image };
    match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name,
        _ => rest,
    }
}

/// The text with paths of mounts, the address of all interfaces and that of the pod itself replaced by what stands for them.
fn localise(text: &str, address: Ipv4Addr, mounts: &[(String, PathBuf)]) -> String {
    let mut rest = text;
    let mut out = String::new();
    'next: while let Some(character) = rest.chars().next() {
        let begins = !out.ends_with(|before: char| before.is_alphanumeric() || "-_.".contains(before));
        let mut all = mounts.iter().map(|(path, folder)| (&path[..], folder.display().to_string()));
        let found = all.find(|(path, _)| begins && continues(rest, path, |after| !is_of_name(after)));
        let any = ["0.0.0.0:", "[::]:"].into_iter().find(|any| begins && rest.starts_with(any));
        let own = begins && continues(rest, LOOPBACK, |after| !is_of_name(after));
        let (seen, instead) = match (found, any) {
            (Some((path, folder)), _) if !path.is_empty() => (path.len(), folder),
            (_, Some(any)) => (any.len(), format!("{address}:")),
            _ if own => (LOOPBACK.len(), address.to_string()),
            _ => {
                out.push(character);
                rest = &rest[character.len_utf8()..];
                continue 'next;
            }
        };
        out += &instead;
        rest = &rest[seen..];
    }
    out
}

fn continues(text: &str, prefix: &str, next: impl Fn(char) -> bool) -> bool {
    text.strip_prefix(prefix).is_some_and(|rest| rest.chars().next().is_none_or(next))
}

fn is_of_name(character: char) -> bool {
    character.is_alphanumeric() || "-_.".contains(character)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_below_mounts_move_and_others_stay() {
        let mounts =
            [("/var/lib/x/deep".to_owned(), "/b".into()), ("/var/lib/x".to_owned(), PathBuf::from("/a"))];
        let local = |text: &str| localise(text, Ipv4Addr::new(127, 1, 2, 3), &mounts);
        assert_eq!(local("--spool=/var/lib/x"), "--spool=/a");
        assert_eq!(local("anchor: \"file:///var/lib/x/anchor\""), "anchor: \"file:///a/anchor\"");
        assert_eq!(local("/var/lib/x/deep/y /var/lib/x/y"), "/b/y /a/y");
        assert_eq!(local("/var/lib/xy /srv/var/lib/x"), "/var/lib/xy /srv/var/lib/x");
        assert_eq!(local("listen: 0.0.0.0:8000"), "listen: 127.1.2.3:8000");
        assert_eq!(local("10.0.0.0:8000"), "10.0.0.0:8000");
        assert_eq!(local("-h 127.0.0.1 127.0.0.11"), "-h 127.1.2.3 127.0.0.11");
    }

    #[test]
    fn an_image_has_a_name_without_host_tag_and_digest() {
        let name = |image: &str| {
            image_name(&Container { image: Some(image.to_owned()), ..Container::default() }).to_owned()
        };
        assert_eq!(name("certeus/dataplane:0.1.0"), "certeus/dataplane");
        assert_eq!(name("registry.example:5000/certeus@sha256:00"), "certeus");
        assert_eq!(name("postgres"), "postgres");
    }
}
