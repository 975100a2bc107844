//! What a test works in: a namespace of its own, a client, `kubectl`, and waits that say what they saw.

use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::{Namespace, Secret, ServiceAccount};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::control_plane::{ControlPlane, tails};
use super::guard::Guard;
use super::runtime;
use crate::{interrupt, wait_for};

/// The custom resources' definitions as they are shipped.
const DEFINITIONS: [&str; 2] = ["crds/ledgerclusters.certeus.io.yaml", "crds/alertrules.certeus.io.yaml"];
const POLL: Duration = Duration::from_millis(50);

/// A namespace. What is in it is shown when the test that holds it panics; else it is removed from a cluster that stays.
pub struct Space {
    plane: &'static ControlPlane,
    name: String,
    client: Client,
    dir: PathBuf,
}

impl Space {
    /// Makes a namespace whose name begins like this, in the control plane of this process.
    ///
    /// # Errors
    /// When there is no control plane.
    pub fn new(prefix: &str) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let plane = ControlPlane::get()?;
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{prefix}-{}-{count}", std::process::id());
        let dir = Guard::get()?.dir().join(&name);
        std::fs::create_dir_all(&dir).context("cannot create a folder")?;
        let space = Self { plane, client: plane.client()?, name, dir };
        let namespace: Namespace = serde_json::from_value(json!({ "metadata": { "name": space.name } }))?;
        let all: Api<Namespace> = Api::all(space.client.clone());
        space.block(all.create(&PostParams::default(), &namespace)).context("cannot make a namespace")?;
        // Pods are refused before.
        let exists = |account: Option<&ServiceAccount>| account.is_some();
        space.wait("the default ServiceAccount", "default", Duration::from_secs(60), exists)?;
        Ok(space)
    }

    /// Like [`Self::new`], with the custom resources' definitions in the cluster.
    ///
    /// # Errors
    /// When there is no control plane, or it refuses them.
    pub fn with_definitions(prefix: &str) -> Result<Self> {
        static INSTALLED: std::sync::Mutex<bool> = std::sync::Mutex::new(false);
        let space = Self::new(prefix)?;
        let mut installed = INSTALLED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !*installed {
            for file in DEFINITIONS {
                let path = repository().join(file);
                let path = path.to_str().context("the repository's path is not text")?;
                space.plane.kubectl(&["apply", "--server-side", "-f", path])?;
            }
            let kinds = ["crd/ledgerclusters.certeus.io", "crd/alertrules.certeus.io"];
            let wait = ["wait", "--for=condition=Established", "--timeout=60s"];
            space.plane.kubectl(&[&wait[..], &kinds].concat())?;
            wait_for("the definitions' documentation", Duration::from_secs(60), || {
                let shown = space.plane.kubectl(&["get", "--raw", "/openapi/v3/apis/certeus.io/v1alpha1"]);
                let served = space.plane.kubectl(&["get", "--raw", "/apis/certeus.io/v1alpha1"]);
                let all = |text: &String| text.contains("LedgerCluster") && text.contains("AlertRule");
                Ok(shown.is_ok_and(|text| all(&text)) && served.is_ok_and(|text| all(&text)))
            })?;
            // `kubectl` remembers for hours that there were no such kinds.
            let _forgotten = std::fs::remove_dir_all(Guard::get()?.dir().join(".kube/cache"));
            *installed = true;
        }
        Ok(space)
    }

    /// Makes somebody else's kind known, if it is not, with version `v1` and objects of any content: their own schema is not
    /// what is tested.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub fn define_foreign(&self, group: &str, kind: &str) -> Result<()> {
        let singular = kind.to_lowercase();
        let plural = format!("{singular}s");
        let name = format!("crd/{plural}.{group}");
        if self.kubectl(&["get", &name, "--ignore-not-found", "-o", "name"])?.is_empty() {
            let schema = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
            let version = json!({ "name": "v1", "served": true, "storage": true, "schema": { "openAPIV3Schema": schema } });
            let definition = json!({
                "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
                "metadata": { "name": format!("{plural}.{group}") },
                "spec": {
                    "group": group, "names": { "kind": kind, "plural": plural, "singular": singular },
                    "scope": "Namespaced", "versions": [version],
                },
            });
            self.apply(&definition.to_string())?;
        }
        self.kubectl(&["wait", "--for=condition=Established", "--timeout=60s", &name])?;
        Ok(())
    }

    /// The control plane.
    #[must_use]
    pub fn plane(&self) -> &'static ControlPlane {
        self.plane
    }

    /// The namespace.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A folder for files of the test.
    #[must_use]
    pub fn dir(&self) -> &std::path::Path {
        &self.dir
    }

    /// The administrator's client.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Runs something to its end, from a test's ordinary code.
    pub fn block<F: Future>(&self, future: F) -> F::Output {
        runtime().block_on(future)
    }

    /// Objects of a kind in this namespace.
    #[must_use]
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.name)
    }

    /// `kubectl` in this namespace.
    ///
    /// # Errors
    /// With what it complained about.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.plane.kubectl(&[&["--namespace", &self.name[..]], arguments].concat())
    }

    /// Applies manifests in this namespace as `kubectl apply` does on a user's machine.
    ///
    /// # Errors
    /// When they are refused.
    pub fn apply(&self, manifests: &str) -> Result<String> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let path = self.dir.join(format!("manifest-{}.yaml", COUNT.fetch_add(1, Ordering::Relaxed)));
        // An older kubectl takes what begins with a brace for JSON to its end.
        std::fs::write(&path, format!("---\n{manifests}")).context("cannot write a manifest")?;
        self.kubectl(&["apply", "-f", path.to_str().context("a path that is not text")?])
    }

    /// An object, when it is there.
    ///
    /// # Errors
    /// When the API server cannot be asked.
    pub fn get<K>(&self, name: &str) -> Result<Option<K>>
    where
        K: Resource<Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
        K::DynamicType: Default,
    {
        Ok(self.block(self.api::<K>().get_opt(name))?)
    }

    /// All objects of a kind with these labels.
    ///
    /// # Errors
    /// When the API server cannot be asked.
    pub fn list<K>(&self, labels: &str) -> Result<Vec<K>>
    where
        K: Resource<Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
        K::DynamicType: Default,
    {
        let wanted = kube::api::ListParams::default().labels(labels);
        Ok(self.block(self.api::<K>().list(&wanted))?.items)
    }

    /// Changes an object by a JSON merge patch.
    ///
    /// # Errors
    /// When it is refused.
    pub fn patch<K>(&self, name: &str, patch: &Value) -> Result<K>
    where
        K: Resource<Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
        K::DynamicType: Default,
    {
        let parameters = PatchParams::default();
        Ok(self.block(self.api::<K>().patch(name, &parameters, &Patch::Merge(patch)))?)
    }

    /// Deletes an object; does not wait until it is gone.
    ///
    /// # Errors
    /// When it is not there.
    pub fn delete<K>(&self, name: &str) -> Result<()>
    where
        K: Resource<Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
        K::DynamicType: Default,
    {
        self.block(self.api::<K>().delete(name, &DeleteParams::default()))?;
        Ok(())
    }

    /// Waits until an object is, or is not, like this; gives it as it was then.
    ///
    /// # Errors
    /// When it did not happen in time; the text holds what the object was like instead.
    pub fn wait<K>(
        &self,
        what: &str,
        name: &str,
        limit: Duration,
        mut is_so: impl FnMut(Option<&K>) -> bool,
    ) -> Result<Option<K>>
    where
        K: Resource<Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug + Serialize,
        K::DynamicType: Default,
    {
        let deadline = Instant::now() + limit;
        loop {
            let found = self.get::<K>(name)?;
            if is_so(found.as_ref()) {
                return Ok(found);
            }
            interrupt::check()?;
            if Instant::now() > deadline {
                let found = found.map_or("nothing".to_owned(), |found| readable(&found));
                bail!("{what} took longer than {} s; {name} is:\n{found}", limit.as_secs());
            }
            std::thread::sleep(POLL);
        }
    }

    /// Makes a Secret, or puts this into it.
    ///
    /// # Errors
    /// When it is refused.
    pub fn put_secret(&self, name: &str, data: &[(&str, &str)]) -> Result<()> {
        let data: Value = data.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name }, "stringData": data,
        });
        let parameters = PatchParams::apply("certeus-e2e").force();
        self.block(self.api::<Secret>().patch(name, &parameters, &Patch::Apply(&secret)))?;
        Ok(())
    }

    /// What is in the namespace, for whoever reads why a test failed.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut text = String::new();
        let looks: [&[&str]; 3] = [
            &["get", "ledgerclusters,alertrules,statefulsets,pods,leases", "-o", "wide"],
            &[
                "get",
                "ledgerclusters",
                "-o",
                "jsonpath={range .items[*]}{.metadata.name}{\" \"}{.status}{\"\\n\"}{end}",
            ],
            &["get", "events", "--sort-by=.lastTimestamp"],
        ];
        for look in looks {
            let shown = self.kubectl(look).unwrap_or_else(|error| format!("{error:#}"));
            // Endpoints refuse the addresses that pods have here.
            let shown = shown.lines().filter(|line| !line.contains("FailedToUpdateEndpoint"));
            text += &format!("--- kubectl {}\n{}\n", look.join(" "), shown.collect::<Vec<_>>().join("\n"));
        }
        text + &tails(&self.dir)
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.describe());
            if let Ok(guard) = Guard::get() {
                guard.keep();
                eprintln!("all files of the test: {}", guard.dir().display());
            }
        } else if self.plane.is_foreign() {
            let all: Api<Namespace> = Api::all(self.client.clone());
            if let Err(error) = self.block(all.delete(&self.name, &DeleteParams::default())) {
                eprintln!("cannot remove namespace {}: {error}", self.name);
            }
        }
    }
}

/// The repository's folder.
#[must_use]
pub fn repository() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// An object as a reader wants it: without who managed which field.
fn readable(object: &impl Serialize) -> String {
    let mut value = serde_json::to_value(object).unwrap_or_default();
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
    serde_json::to_string_pretty(&value).unwrap_or_default()
}
