//! Reads objects from YAML text: any number of documents, of the kinds that one machine needs.
//! Never opens a file. Promises: everything wrong is told at once, with file, line, and the path of the field; no text of a
//! Secret appears in an error.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use certeus_crds::{
    AlertRule, FieldError, GROUP, LedgerCluster, VERSION, element_path, field_path, read_builtin,
};
use k8s_openapi::api::core::v1::Secret;
use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_saphyr::Spanned;

/// An object and where it was written.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// The file as it was named to [`parse`].
    pub file: PathBuf,
    /// Line of the object's first field, from 1.
    pub line: u64,
    /// The object.
    pub object: Object,
}

/// An object of a kind that is known here.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// A ledger cluster.
    LedgerCluster(Box<LedgerCluster>),
    /// Rules for one.
    AlertRule(Box<AlertRule>),
    /// Passwords and keys that these refer to.
    Secret(Box<Secret>),
}

/// What is wrong with a manifest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}:{line}: {problem}", file.display())]
pub struct ManifestError {
    /// The file as it was named to [`parse`].
    pub file: PathBuf,
    /// Line of the field, or of the nearest field around it.
    pub line: u64,
    /// What is wrong.
    #[source]
    pub problem: Problem,
}

/// What can be wrong with a manifest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Not YAML.
    #[error("not valid YAML: {0}")]
    Yaml(String),
    /// A kind that is not read here.
    #[error("{0}")]
    UnknownKind(UnknownKind),
    /// A field of a known kind.
    #[error(transparent)]
    Field(FieldError),
    /// The same object was given before.
    #[error("{kind} {name} was given before, at {}:{line}", file.display())]
    Duplicate {
        /// The kind.
        kind: &'static str,
        /// Namespace and name.
        name: String,
        /// File of the first.
        file: PathBuf,
        /// Line of the first.
        line: u64,
    },
}

/// A kind that is not read here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownKind {
    api_version: Option<String>,
    kind: Option<String>,
}

impl fmt::Display for UnknownKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.api_version, &self.kind) {
            (Some(api_version), Some(kind)) => {
                write!(f, "apiVersion {api_version}, kind {kind} is not known here")
            }
            (None, _) => f.write_str("apiVersion: is required"),
            (_, None) => f.write_str("kind: is required"),
        }?;
        write!(f, "; known are LedgerCluster and AlertRule of {GROUP}/{VERSION}, and Secret of v1")
    }
}

impl Object {
    /// Name of the kind.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::LedgerCluster(_) => "LedgerCluster",
            Self::AlertRule(_) => "AlertRule",
            Self::Secret(_) => "Secret",
        }
    }

    /// `namespace/name`; the namespace is `default` unless given.
    #[must_use]
    pub fn qualified_name(&self) -> String {
        let metadata = match self {
            Self::LedgerCluster(object) => &object.metadata,
            Self::AlertRule(object) => &object.metadata,
            Self::Secret(object) => &object.metadata,
        };
        let namespace = metadata.namespace.as_deref().unwrap_or("default");
        format!("{namespace}/{}", metadata.name.as_deref().unwrap_or_default())
    }
}

/// Reads all documents of one text. `file` is only used to name them. Empty documents are skipped.
///
/// # Errors
/// Everything that is wrong with any of them.
pub fn parse(file: &Path, text: &str) -> Result<Vec<Manifest>, Vec<ManifestError>> {
    let error = |line, problem| ManifestError { file: file.to_owned(), line, problem };
    // A snippet of the text could show a secret.
    let options = serde_saphyr::options! { with_snippet: false };
    let documents: Vec<Node> = serde_saphyr::from_multiple_with_options(text, options).map_err(|yaml| {
        let line = yaml.location().map_or(1, |location| location.line());
        vec![error(line, Problem::Yaml(yaml.to_string()))]
    })?;
    let mut manifests = Vec::new();
    let mut errors = Vec::new();
    for document in documents {
        if matches!(document.tree, Tree::Leaf(Value::Null)) {
            continue;
        }
        let mut lines = BTreeMap::new();
        document.note_lines("", &mut lines);
        let line = document.line;
        match read_object(document.into_value()) {
            Ok(object) => manifests.push(Manifest { file: file.to_owned(), line, object }),
            Err(problems) => errors.extend(problems.into_iter().map(|problem| {
                let path = if let Problem::Field(field) = &problem { field.path.as_str() } else { "" };
                error(nearest_line(&lines, path).unwrap_or(line), problem)
            })),
        }
    }
    if errors.is_empty() { Ok(manifests) } else { Err(errors) }
}

/// Refuses objects that were given more than once.
///
/// # Errors
/// One for each object that repeats an earlier one.
pub fn check_unique(manifests: &[Manifest]) -> Result<(), Vec<ManifestError>> {
    let mut seen: BTreeMap<(&'static str, String), &Manifest> = BTreeMap::new();
    let mut errors = Vec::new();
    for manifest in manifests {
        let (kind, name) = (manifest.object.kind(), manifest.object.qualified_name());
        if let Some(first) = seen.get(&(kind, name.clone())) {
            let problem = Problem::Duplicate { kind, name, file: first.file.clone(), line: first.line };
            errors.push(ManifestError { file: manifest.file.clone(), line: manifest.line, problem });
        } else {
            seen.insert((kind, name), manifest);
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

fn read_object(value: Value) -> Result<Object, Vec<Problem>> {
    let text = |field: &str| value.get(field).and_then(Value::as_str).map(ToOwned::to_owned);
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let named = value.get("metadata").and_then(|metadata| metadata.get("name")).is_some();
    let ours = format!("{GROUP}/{VERSION}");
    let read = match (api_version.as_deref(), kind.as_deref()) {
        (Some(version), Some("LedgerCluster")) if version == ours => {
            LedgerCluster::read(value).map(|object| Object::LedgerCluster(Box::new(object)))
        }
        (Some(version), Some("AlertRule")) if version == ours => {
            AlertRule::read(value).map(|object| Object::AlertRule(Box::new(object)))
        }
        (Some("v1"), Some("Secret")) => read_secret(value).map(|object| Object::Secret(Box::new(object))),
        _ => return Err(vec![Problem::UnknownKind(UnknownKind { api_version, kind })]),
    };
    let unnamed = (!named).then(|| FieldError::new("metadata.name", "is required"));
    match (read, unnamed) {
        (Ok(object), None) => Ok(object),
        (read, unnamed) => Err(read.err().into_iter().flatten().chain(unnamed).map(Problem::Field).collect()),
    }
}

/// A Secret with its `stringData` merged into `data`, as the API server does.
fn read_secret(value: Value) -> Result<Secret, Vec<FieldError>> {
    let mut secret: Secret = read_builtin(value).map_err(|errors| {
        let redact = |error: FieldError| match error.path.strip_prefix("data") {
            // What serde says here repeats the text that is no base64.
            Some(_) => FieldError::new(error.path, "must be base64; use stringData for plain text"),
            None => error,
        };
        errors.into_iter().map(redact).collect::<Vec<_>>()
    })?;
    for (key, text) in secret.string_data.take().into_iter().flatten() {
        secret.data.get_or_insert_default().insert(key, k8s_openapi::ByteString(text.into_bytes()));
    }
    Ok(secret)
}

/// Line of the longest known path that `path` begins with.
fn nearest_line(lines: &BTreeMap<String, u64>, path: &str) -> Option<u64> {
    let around = |known: &&String| {
        path.strip_prefix(known.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    };
    lines.keys().filter(around).max_by_key(|known| known.len()).and_then(|known| lines.get(known)).copied()
}

/// A YAML value that knows its line.
struct Node {
    line: u64,
    tree: Tree,
}

enum Tree {
    Leaf(Value),
    List(Vec<Node>),
    Map(Vec<(Spanned<String>, Node)>),
}

impl Node {
    fn note_lines(&self, path: &str, lines: &mut BTreeMap<String, u64>) {
        match &self.tree {
            Tree::Leaf(_) => {}
            Tree::List(items) => {
                for (index, item) in items.iter().enumerate() {
                    let path = element_path(path, index);
                    item.note_lines(&path, lines);
                    lines.insert(path, item.line);
                }
            }
            Tree::Map(entries) => {
                for (key, value) in entries {
                    let path = field_path(path, &key.value);
                    value.note_lines(&path, lines);
                    // The line of the key: a value may begin below it.
                    lines.insert(path, key.referenced.line());
                }
            }
        }
    }

    fn into_value(self) -> Value {
        match self.tree {
            Tree::Leaf(value) => value,
            Tree::List(items) => items.into_iter().map(Self::into_value).collect(),
            Tree::Map(entries) => {
                entries.into_iter().map(|(key, node)| (key.value, node.into_value())).collect()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Tree>::deserialize(deserializer)?;
        Ok(Self { line: spanned.referenced.line(), tree: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor)
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Tree, E> {
        Ok(Tree::Leaf(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Tree, E> {
        Ok(Tree::Leaf(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Tree, E> {
        Ok(Tree::Leaf(value.into()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Tree, E> {
        let number = serde_json::Number::from_f64(value).ok_or_else(|| E::custom("number is not finite"))?;
        Ok(Tree::Leaf(number.into()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Tree, E> {
        Ok(Tree::Leaf(value.into()))
    }

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Leaf(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Tree, E> {
        Ok(Tree::Leaf(Value::Null))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Tree, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Tree::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Tree, A::Error> {
        let mut map = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            map.push(entry);
        }
        Ok(Tree::Map(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(text: &str) -> Vec<String> {
        parse(Path::new("demo.yaml"), text).unwrap_err().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn reads_every_document_and_knows_its_line() {
        let text = "# nothing but a comment\n---\napiVersion: certeus.io/v1alpha1\nkind: LedgerCluster\n\
                    metadata: { name: demo }\nspec: { database: { embedded: true } }\n---\n---\n\
                    apiVersion: v1\nkind: Secret\nmetadata: { name: keys, namespace: x }\nstringData: { a: plain }\n\
                    data: { b: aGk= }\n";
        let manifests = parse(Path::new("demo.yaml"), text).unwrap();
        let found: Vec<_> =
            manifests.iter().map(|m| (m.line, m.object.kind(), m.object.qualified_name())).collect();
        assert_eq!(
            found,
            [(3, "LedgerCluster", "default/demo".to_owned()), (9, "Secret", "x/keys".to_owned())]
        );
        let Object::Secret(secret) = &manifests[1].object else { panic!("not a secret") };
        let data = secret.data.as_ref().unwrap();
        assert_eq!((data["a"].0.as_slice(), data["b"].0.as_slice()), (b"plain".as_slice(), b"hi".as_slice()));
    }

    #[test]
    fn errors_name_file_line_and_path() {
        let text = "apiVersion: certeus.io/v1alpha1\nkind: LedgerCluster\nmetadata:\n  name: demo\nspec:\n  database:\n    \
                    embedded: true\n  autoscaling:\n    cpu:\n      targets: 0.5\n  replica: 3\n---\n\
                    apiVersion: certeus.io/v1alpha1\nkind: AlertRule\nmetadata: {}\nspec:\n  groups:\n    - name: a\n      \
                    rules:\n        - alert: A\n";
        assert_eq!(
            errors(text),
            [
                "demo.yaml:10: spec.autoscaling.cpu.targets: unknown field; known here: enabled, scaleDownThreshold, \
                 scaleUpThreshold, target",
                "demo.yaml:11: spec.replica: unknown field; known here: autoscaling, database, dryRun, image, \
                 imagePullSecrets, ledger, log, monitoring, network, paused, proofs, replicas, resources, retention, scheduling, security, \
                 spool, stopped, version",
                "demo.yaml:20: spec.groups[0].rules[0].expr: is required",
                "demo.yaml:16: spec.clusterRef: is required",
                "demo.yaml:15: metadata.name: is required",
            ]
        );
    }

    #[test]
    fn refuses_kinds_it_does_not_know() {
        let known = "known are LedgerCluster and AlertRule of certeus.io/v1alpha1, and Secret of v1";
        assert_eq!(
            errors("\napiVersion: v1\nkind: Pod\n"),
            [format!("demo.yaml:2: apiVersion v1, kind Pod is not known here; {known}")]
        );
        assert_eq!(errors("kind: Secret"), [format!("demo.yaml:1: apiVersion: is required; {known}")]);
        assert_eq!(errors("- 1").len(), 1);
        assert_eq!(errors("apiVersion: certeus.io/v1\nkind: AlertRule").len(), 1);
    }

    #[test]
    fn bad_yaml_is_an_error_with_its_line() {
        let broken = errors("apiVersion: v1\nkind: [\n");
        assert!(broken[0].starts_with("demo.yaml:") && broken[0].contains("not valid YAML"), "{broken:?}");
        let twice = errors("apiVersion: v1\nkind: Secret\nkind: Secret\n");
        assert!(twice[0].starts_with("demo.yaml:3: not valid YAML"), "{twice:?}");
        assert!(errors("apiVersion: v1\nnumber: .nan\n")[0].contains("not valid YAML"));
    }

    #[test]
    fn no_error_repeats_the_text_of_a_secret() {
        let head = "apiVersion: v1\nkind: Secret\nmetadata: { name: keys }\n";
        for body in [
            "data: { key: hush-hush }",
            "stringData: { key: [hush-hush] }",
            "data: { key: hush-hush",
            "data: hush-hush",
            "type: { hush-hush: hush",
        ] {
            let errors = errors(&format!("{head}{body}"));
            assert!(!errors.concat().contains("hush"), "{errors:?}");
        }
        assert_eq!(
            errors(&format!("{head}data: {{ key: hush-hush }}"))[0],
            "demo.yaml:4: data.key: must be base64; use stringData for plain text"
        );
    }

    #[test]
    fn the_same_object_twice_is_refused() {
        let text = "apiVersion: v1\nkind: Secret\nmetadata: { name: keys }\n";
        let manifests = parse(Path::new("a.yaml"), &format!("{text}---\n{text}  \n")).unwrap();
        let errors = check_unique(&manifests).unwrap_err();
        assert_eq!(errors[0].to_string(), "a.yaml:5: Secret default/keys was given before, at a.yaml:1");
    }
}
