//! The generated schemas, and checking an object against one as the API server would.
//! Knows structural schemas in general and nothing of what the fields mean. CEL rules are not evaluated here: each type
//! repeats its own in Rust, and a test compares the two.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, ValidationRule,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::CustomResourceExt;
use kube::core::schema::{OptionalEnum, OptionalIntOrString, StructuralSchemaRewriter};
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use schemars::transform::AddNullable;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::ledger_cluster::{NAME_PROBLEM, NAME_RULE};
use crate::{AlertRule, FieldError, LedgerCluster};

/// The definitions of all resources of the group.
#[must_use]
pub fn crds() -> [CustomResourceDefinition; 2] {
    [with_name_rule(LedgerCluster::crd()), AlertRule::crd()].map(|crd| with_known_formats(&crd))
}

/// Names are bound by more than Kubernetes asks of them. A rule about them stands at the root, whose schema knows no field of
/// the metadata that it could point to: the message names it.
fn with_name_rule(mut crd: CustomResourceDefinition) -> CustomResourceDefinition {
    let schemas = crd.spec.versions.iter_mut().filter_map(|version| version.schema.as_mut());
    for schema in schemas.filter_map(|schema| schema.open_api_v3_schema.as_mut()) {
        schema.x_kubernetes_validations = Some(vec![ValidationRule {
            rule: NAME_RULE.to_owned(),
            message: Some(format!("metadata.name {NAME_PROBLEM}")),
            ..ValidationRule::default()
        }]);
    }
    crd
}

/// Kubernetes knows the signed integer formats alone and warns of others at every `kubectl apply`.
fn with_known_formats(crd: &CustomResourceDefinition) -> CustomResourceDefinition {
    fn rename(value: &mut Value) {
        match value {
            Value::Object(map) => {
                if map.get("format").is_some_and(|format| format == "uint32" || format == "uint64") {
                    map.insert("format".to_owned(), "int64".into());
                }
                map.values_mut().for_each(rename);
            }
            Value::Array(items) => items.iter_mut().for_each(rename),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    let mut value = to_value(crd);
    rename(&mut value);
    #[expect(clippy::expect_used, reason = "only the values of `format` strings changed")]
    serde_json::from_value(value).expect("a definition reads back")
}

#[expect(
    clippy::expect_used,
    reason = "types of this crate and of Kubernetes have string keys and nothing else that could fail"
)]
fn to_value(value: &impl Serialize) -> Value {
    serde_json::to_value(value).expect("API objects are JSON")
}

/// Schema of a type, in the form that custom resource definitions have.
fn schema_of<T: JsonSchema>() -> Value {
    let generator = SchemaSettings::openapi3()
        .with(|settings| {
            settings.inline_subschemas = true;
            settings.meta_schema = None;
        })
        .with_transform(AddNullable::default())
        .with_transform(StructuralSchemaRewriter)
        .with_transform(OptionalEnum)
        .with_transform(OptionalIntOrString)
        .into_generator();
    generator.into_root_schema_for::<T>().to_value()
}

/// Schema of a `LedgerCluster`.
pub(crate) static LEDGER_CLUSTER: LazyLock<Value> = LazyLock::new(resource_schema::<LedgerCluster>);
/// Schema of an `AlertRule`.
pub(crate) static ALERT_RULE: LazyLock<Value> = LazyLock::new(resource_schema::<AlertRule>);

/// Schema of a whole custom resource, with the parts that Kubernetes itself adds.
fn resource_schema<T: CustomResourceExt>() -> Value {
    let versions = T::crd().spec.versions;
    let schema = versions.into_iter().next().and_then(|version| version.schema?.open_api_v3_schema);
    let mut schema = to_value(&schema);
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        properties.insert("apiVersion".to_owned(), serde_json::json!({ "type": "string" }));
        properties.insert("kind".to_owned(), serde_json::json!({ "type": "string" }));
        properties.insert("metadata".to_owned(), schema_of::<ObjectMeta>());
    }
    schema
}

/// Everything in which `object` departs from `schema`.
pub(crate) fn check(schema: &Value, object: &impl Serialize) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut value = to_value(object);
    remove_nulls(&mut value);
    walk(schema, &value, "", &mut errors);
    errors
}

/// Reads an object of a built-in kind and refuses unknown fields and wrong types.
///
/// # Errors
/// All that is wrong with it.
pub fn read_builtin<T: JsonSchema + DeserializeOwned>(value: Value) -> Result<T, Vec<FieldError>> {
    let mut schema = schema_of::<T>();
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        properties.insert("apiVersion".to_owned(), serde_json::json!({ "type": "string" }));
        properties.insert("kind".to_owned(), serde_json::json!({ "type": "string" }));
    }
    read(&schema, value)
}

/// Reads an object and refuses what the API server would refuse with strict field validation, CEL rules aside.
pub(crate) fn read<T: DeserializeOwned>(schema: &Value, mut value: Value) -> Result<T, Vec<FieldError>> {
    remove_nulls(&mut value);
    let mut errors = Vec::new();
    walk(schema, &value, "", &mut errors);
    if !errors.is_empty() {
        return Err(errors);
    }
    serde_path_to_error::deserialize(value)
        .map_err(|error| vec![FieldError::new(error.path().to_string(), error.inner().to_string())])
}

/// A field set to null counts as absent, so that its default applies.
fn remove_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(remove_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(remove_nulls),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Path of a field of the object at `path`, as [`FieldError::path`] writes it.
#[must_use]
pub fn field_path(path: &str, field: &str) -> String {
    let plain = field.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-' || b == b'$');
    match (path.is_empty(), plain) {
        (true, true) => field.to_owned(),
        (false, true) => format!("{path}.{field}"),
        (_, false) => format!("{path}[{field:?}]"),
    }
}

/// Path of an element of the list at `path`, as [`FieldError::path`] writes it.
#[must_use]
pub fn element_path(path: &str, index: usize) -> String {
    format!("{path}[{index}]")
}

fn walk(schema: &Value, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    if flag(schema, "x-kubernetes-int-or-string") {
        if !value.is_string() && !value.is_number() {
            errors
                .push(FieldError::new(path, format!("must be a number or a string, not {}", kind_of(value))));
        }
        return;
    }
    let expected = schema.get("type").and_then(Value::as_str);
    match (expected, value) {
        (Some("object"), Value::Object(map)) => walk_object(schema, map, path, errors),
        (Some("array"), Value::Array(items)) => walk_array(schema, items, path, errors),
        (Some("string"), Value::String(text)) => check_string(schema, text, path, errors),
        (Some("integer"), Value::Number(number)) if number.is_f64() => {
            errors.push(FieldError::new(path, format!("must be a whole number, not {number}")));
        }
        (Some("integer" | "number"), Value::Number(number)) => check_number(schema, number, path, errors),
        (Some("boolean"), Value::Bool(_)) | (None, _) => {}
        (Some(expected), _) => {
            let article = if expected.starts_with(['a', 'i', 'o']) { "an" } else { "a" };
            errors
                .push(FieldError::new(path, format!("must be {article} {expected}, not {}", kind_of(value))));
        }
    }
}

fn walk_object(schema: &Value, map: &Map<String, Value>, path: &str, errors: &mut Vec<FieldError>) {
    let properties = schema.get("properties").and_then(Value::as_object);
    let additional = schema.get("additionalProperties").filter(|schema| schema.is_object());
    let open = flag(schema, "x-kubernetes-preserve-unknown-fields")
        || (properties.is_none() && additional.is_none());
    for (name, value) in map {
        let child = field_path(path, name);
        match properties.and_then(|properties| properties.get(name)).or(additional) {
            Some(schema) => walk(schema, value, &child, errors),
            None if open => {}
            None => {
                let known: Vec<&str> =
                    properties.into_iter().flat_map(Map::keys).map(String::as_str).collect();
                errors
                    .push(FieldError::new(child, format!("unknown field; known here: {}", known.join(", "))));
            }
        }
    }
    for name in
        schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
    {
        if !map.contains_key(name) {
            errors.push(FieldError::new(field_path(path, name), "is required"));
        }
    }
    if let Some(max) = limit(schema, "maxProperties").filter(|max| map.len() > *max) {
        errors.push(FieldError::new(path, format!("must have at most {max} entries, not {}", map.len())));
    }
}

fn walk_array(schema: &Value, items: &[Value], path: &str, errors: &mut Vec<FieldError>) {
    if let Some(min) = limit(schema, "minItems").filter(|min| items.len() < *min) {
        errors.push(FieldError::new(path, format!("must have at least {min} entries")));
    }
    if let Some(max) = limit(schema, "maxItems").filter(|max| items.len() > *max) {
        errors.push(FieldError::new(path, format!("must have at most {max} entries, not {}", items.len())));
    }
    if let Some(item_schema) = schema.get("items") {
        for (index, item) in items.iter().enumerate() {
            walk(item_schema, item, &element_path(path, index), errors);
        }
    }
    let keys: Vec<&str> = schema
        .get("x-kubernetes-list-map-keys")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let mut seen = BTreeSet::new();
    for (index, item) in items.iter().enumerate().filter(|_| !keys.is_empty()) {
        let identity: Vec<String> =
            keys.iter().map(|key| item.get(key).map(Value::to_string).unwrap_or_default()).collect();
        if !seen.insert(identity) {
            let problem = format!("must differ from all others in {}", keys.join(", "));
            errors.push(FieldError::new(element_path(path, index), problem));
        }
    }
}

fn check_string(schema: &Value, text: &str, path: &str, errors: &mut Vec<FieldError>) {
    let length = text.chars().count();
    if limit(schema, "minLength").is_some_and(|min| length < min) {
        errors.push(FieldError::new(path, "must not be empty"));
    }
    if let Some(max) = limit(schema, "maxLength").filter(|max| length > *max) {
        errors.push(FieldError::new(path, format!("must have at most {max} characters, not {length}")));
    }
    let allowed: Vec<&str> = schema
        .get("enum")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    if !allowed.is_empty() && !allowed.contains(&text) {
        errors.push(FieldError::new(path, format!("must be one of {}, not {text:?}", allowed.join(", "))));
    }
}

fn check_number(schema: &Value, number: &serde_json::Number, path: &str, errors: &mut Vec<FieldError>) {
    let bound = |name: &str| schema.get(name).and_then(Value::as_f64);
    let Some(value) = number.as_f64() else { return };
    if let Some(min) = bound("minimum").filter(|min| value < *min) {
        errors.push(FieldError::new(path, format!("must be at least {min}, not {number}")));
    }
    if let Some(max) = bound("maximum").filter(|max| value > *max) {
        errors.push(FieldError::new(path, format!("must be at most {max}, not {number}")));
    }
}

fn flag(schema: &Value, name: &str) -> bool {
    schema.get(name).and_then(Value::as_bool).unwrap_or(false)
}

fn limit(schema: &Value, name: &str) -> Option<usize> {
    schema.get(name)?.as_u64().and_then(|limit| usize::try_from(limit).ok())
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
