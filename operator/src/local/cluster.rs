//! The manifests of a folder, checked and built by the same code as in Kubernetes.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use certeus_crds::{AlertRule, FieldError, LedgerCluster, LedgerClusterStatus};
use certeus_operator::build::{self, Inputs};
use certeus_operator::manifest::{self, ManifestError, Object};
use certeus_operator::rules;
use certeus_operator::validate::{self, DatabaseSource};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use super::template::{self, API_KEY, Template};

/// What is wrong with the manifests.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot read the manifests in {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
    #[error("{}", list(.0))]
    Manifests(Vec<ManifestError>),
    #[error("{}:{line}: {}", file.display(), list(problems))]
    Object { file: PathBuf, line: u64, problems: Vec<FieldError> },
    #[error("{}: {} LedgerClusters were found, and one instance runs exactly one", folder.display(), count)]
    Count { folder: PathBuf, count: usize },
    #[error(
        "the API listens on {0}, which can be reached from outside, so a key is needed: set \
         spec.security.apiKeySecretRef, or choose a loopback address with --api-listen"
    )]
    Unprotected(SocketAddr),
    #[error("{field} cannot be changed while it runs: stop it and start it again")]
    Fixed { field: &'static str },
    #[error("LedgerCluster {name} cannot run on this machine")]
    Template { name: String, source: template::Error },
}

/// Everything that is wrong, on one line.
fn list<T: ToString>(problems: &[T]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// A cluster that can run.
pub(crate) struct Cluster {
    /// As the user wrote it, with what the API server would add.
    resource: LedgerCluster,
    pub(crate) alert_rules: Vec<AlertRule>,
    pub(crate) checked: validate::Cluster,
    pub(crate) template: Template,
}

impl Cluster {
    /// Reads and checks all manifests of a folder. The files are read in the order of their names.
    pub(crate) fn load(folder: &Path) -> Result<Self, Error> {
        let mut clusters = Vec::new();
        let mut alert_rules = Vec::new();
        let mut secrets = Vec::new();
        for found in read_all(folder)? {
            match found.object {
                Object::LedgerCluster(cluster) => clusters.push((found.file, found.line, *cluster)),
                Object::AlertRule(rule) => {
                    let (file, line) = (found.file, found.line);
                    rules::validate(&rule).map_err(|problems| Error::Object { file, line, problems })?;
                    alert_rules.push(*rule);
                }
                Object::Secret(secret) => secrets.push(*secret),
            }
        }
        let count = clusters.len();
        let (Some((file, line, mut resource)), 1) = (clusters.pop(), count) else {
            return Err(Error::Count { folder: folder.to_owned(), count });
        };
        let now = Timestamp::now();
        let of_rules = alert_rules.iter_mut().map(|rule: &mut AlertRule| &mut rule.metadata);
        for metadata in of_rules.chain([&mut resource.metadata]) {
            metadata.generation = Some(1);
            metadata.creation_timestamp = Some(Time(now));
        }
        let checked =
            validate::validate(&resource).map_err(|problems| Error::Object { file, line, problems })?;
        // The number of pods is no part of what a pod is.
        let built = build::build(&checked, &Inputs::default());
        let generated = build::generated_secrets(&checked);
        let elsewhere: Vec<&str> = generated.iter().map(build::GeneratedSecret::name).collect();
        let objects = template::Objects {
            config_maps: &[built.config_map],
            secrets: &secrets,
            elsewhere: &elsewhere,
            anchored: checked.log.anchor.is_some(),
        };
        let template = Template::resolve(&built.stateful_set, objects)
            .map_err(|source| Error::Template { name: checked.name.clone(), source })?;
        Ok(Self { resource, alert_rules, checked, template })
    }

    /// The same objects after an edit.
    pub(crate) fn following(mut self, before: &Self) -> Result<Self, Error> {
        if self.checked.name != before.checked.name || self.checked.namespace != before.checked.namespace {
            return Err(Error::Fixed { field: "metadata.name and namespace" });
        }
        if self.has_embedded_database() != before.has_embedded_database() {
            return Err(Error::Fixed { field: "spec.database.embedded" });
        }
        let edited = self.resource.spec != before.resource.spec;
        follow(&mut self.resource.metadata, &before.resource.metadata, edited);
        self.checked.generation = self.resource.metadata.generation;
        for rule in &mut self.alert_rules {
            let same = |old: &&AlertRule| {
                old.metadata.name == rule.metadata.name && old.metadata.namespace == rule.metadata.namespace
            };
            if let Some(old) = before.alert_rules.iter().find(same) {
                let edited = rule.spec != old.spec;
                follow(&mut rule.metadata, &old.metadata, edited);
            }
        }
        Ok(self)
    }

    /// Refuses to serve the world without a key.
    pub(crate) fn check_listen(&self, api: SocketAddr) -> Result<(), Error> {
        let has_key = self.template.env(API_KEY).is_some_and(|key| !key.is_empty());
        if has_key || api.ip().is_loopback() { Ok(()) } else { Err(Error::Unprotected(api)) }
    }

    /// Connections that all pods together may open.
    pub(crate) fn connections_max(&self) -> u32 {
        self.checked.pool_size.get().saturating_mul(self.checked.scaling.max())
    }

    /// Takes an edit over that says to change nothing: what pods are stays as it was applied last.
    pub(crate) fn pause(&mut self, edited: Self) {
        let Self { resource, alert_rules, checked, template: _ } = edited;
        self.resource = resource;
        self.alert_rules = alert_rules;
        self.checked = checked;
    }

    /// The object as `kubectl get` would give it.
    pub(crate) fn resource_with(&self, status: LedgerClusterStatus) -> LedgerCluster {
        LedgerCluster { status: Some(status), ..self.resource.clone() }
    }

    pub(crate) fn is_paused(&self) -> bool {
        !self.checked.may_change()
    }

    /// How many pods there are until load has been measured.
    pub(crate) fn replicas_at_start(&self) -> u32 {
        // As in Kubernetes: what is paused from the start is not created.
        if self.is_paused() || self.checked.stopped { 0 } else { self.checked.scaling.min() }
    }

    pub(crate) fn has_embedded_database(&self) -> bool {
        matches!(self.checked.database, DatabaseSource::Embedded { .. })
    }
}

/// An object keeps its age, and its generation counts edits of the spec.
fn follow(metadata: &mut ObjectMeta, before: &ObjectMeta, edited: bool) {
    metadata.generation = before.generation.map(|generation| generation + i64::from(edited));
    metadata.creation_timestamp.clone_from(&before.creation_timestamp);
}

fn read_all(folder: &Path) -> Result<Vec<manifest::Manifest>, Error> {
    let read_error = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::Read(path, source)
    };
    let files = super::folder::files(folder).map_err(read_error(folder))?;
    let mut found = Vec::new();
    let mut wrong = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).map_err(read_error(&file))?;
        match manifest::parse(&file, &text) {
            Ok(manifests) => found.extend(manifests),
            Err(errors) => wrong.extend(errors),
        }
    }
    if wrong.is_empty() {
        wrong = manifest::check_unique(&found).err().unwrap_or_default();
    }
    if wrong.is_empty() { Ok(found) } else { Err(Error::Manifests(wrong)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: &str = "apiVersion: certeus.io/v1alpha1\nkind: LedgerCluster\nmetadata: { name: demo }\n";

    /// The cluster of a folder with one file.
    fn load(text: &str) -> Result<Cluster, Error> {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("cluster.yaml"), text).unwrap();
        Cluster::load(folder.path())
    }

    fn cluster(spec: &str) -> Cluster {
        load(&format!("{CLUSTER}spec: {{ {spec} }}\n")).ok().unwrap()
    }

    #[test]
    fn exactly_one_cluster_is_run() {
        let one = format!("{CLUSTER}spec: {{ database: {{ embedded: true }} }}\n");
        assert!(matches!(load(""), Err(Error::Count { count: 0, .. })));
        let two = format!("{one}---\n{}", one.replace("demo", "other"));
        assert!(matches!(load(&two), Err(Error::Count { count: 2, .. })));
    }

    #[test]
    fn rules_with_a_mistake_are_refused_with_their_place() {
        let with = |expr: &str| {
            load(&format!(
                "{CLUSTER}spec: {{ database: {{ embedded: true }} }}\n---\n\napiVersion: certeus.io/v1alpha1\nkind: AlertRule\n\
                 metadata: {{ name: rules }}\nspec:\n  clusterRef: {{ name: demo }}\n  groups:\n  - name: g\n    rules:\n    \
                 - {{ alert: Down, expr: '{expr}' }}\n"
            ))
        };
        assert_eq!(with("up == 0").ok().unwrap().alert_rules.len(), 1);
        let told = with("up ==").err().unwrap().to_string();
        assert!(
            told.contains(
                "cluster.yaml:7: spec.groups[0].rules[0].expr: group \"g\", alert \"Down\": is not PromQL"
            ),
            "{told}"
        );
    }

    #[test]
    fn an_edit_counts_only_when_it_changes_the_spec() {
        let first = cluster("database: { embedded: true }");
        let same = cluster("database: { embedded: true }").following(&first).ok().unwrap();
        assert_eq!(same.resource, first.resource, "its age as well");
        let edited = cluster("database: { embedded: true }, paused: true").following(&same).ok().unwrap();
        assert_eq!(edited.checked.generation, Some(2));
        assert!(edited.template == first.template);
    }

    #[test]
    fn what_cannot_change_while_it_runs_is_refused() {
        let secret = "---\napiVersion: v1\nkind: Secret\nmetadata: { name: pg }\nstringData: { url: 'postgres://x' }\n";
        let before = cluster("database: { embedded: true }");
        let elsewhere =
            format!("{CLUSTER}spec: {{ database: {{ secretRef: {{ name: pg, key: url }} }} }}\n{secret}");
        let moved = load(&elsewhere).ok().unwrap();
        assert!(!moved.has_embedded_database());
        assert_eq!(moved.template.env("CERTEUS_DB_URL"), Some("postgres://x"));
        assert!(matches!(moved.following(&before), Err(Error::Fixed { field: "spec.database.embedded" })));
        let renamed =
            load(&format!("{CLUSTER}spec: {{ database: {{ embedded: true }} }}").replace("demo", "other"));
        assert!(matches!(renamed.ok().unwrap().following(&before), Err(Error::Fixed { .. })));
    }
}
