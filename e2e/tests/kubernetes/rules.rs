//! Every validation rule of the custom resources, as the API server applies it: one object that it refuses, with the field and the
//! message that a user then reads, and one next to it that it accepts.

use std::collections::BTreeSet;

use certeus_crds::{AlertRule, LedgerCluster};
use certeus_e2e::cluster::space::Space;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use kube::{Api, Resource};
use serde_json::{Value, json};

struct Case {
    /// Where the message stands.
    field: &'static str,
    message: &'static str,
    refused: Value,
    accepted: Value,
}

fn case(field: &'static str, message: &'static str, refused: Value, accepted: Value) -> Case {
    Case { field, message, refused, accepted }
}

/// A rule's place is that of the object it stands in, and its `fieldPath`.
fn rules_of(schema: &Value, path: &str, found: &mut BTreeSet<(String, String)>) {
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        let below = rule["fieldPath"].as_str().unwrap_or_default();
        found.insert((format!("{path}{below}"), rule["message"].as_str().unwrap().to_owned()));
    }
    for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
        let separator = if path.is_empty() { "" } else { "." };
        rules_of(schema, &format!("{path}{separator}{name}"), found);
    }
    if schema["items"].is_object() {
        rules_of(&schema["items"], &format!("{path}[0]"), found);
    }
    if schema["additionalProperties"].is_object() {
        rules_of(&schema["additionalProperties"], &format!("{path}[*]"), found);
    }
}

fn merge(into: &mut Value, patch: &Value) {
    match (into, patch) {
        (Value::Object(into), Value::Object(patch)) => {
            for (key, value) in patch {
                if value.is_null() {
                    into.remove(key);
                } else {
                    merge(into.entry(key.clone()).or_insert_with(|| json!({})), value);
                }
            }
        }
        (into, patch) => *into = patch.clone(),
    }
}

/// Asks the API server without storing anything.
fn ask<K: Resource<DynamicType = ()>>(space: &Space, base: &Value, patch: &Value) -> Result<(), String> {
    let mut object = json!({
        "apiVersion": K::api_version(&()), "kind": K::kind(&()), "metadata": { "name": "tried" }, "spec": base,
    });
    // What is about the name is about the object.
    merge(if patch.get("metadata").is_some() { &mut object } else { &mut object["spec"] }, patch);
    let api: Api<DynamicObject> =
        Api::namespaced_with(space.client().clone(), space.name(), &ApiResource::erase::<K>(&()));
    let object: DynamicObject = serde_json::from_value(object).unwrap();
    let parameters = PostParams { dry_run: true, ..PostParams::default() };
    space.block(api.create(&parameters, &object)).map(|_created| ()).map_err(|error| error.to_string())
}

#[track_caller]
fn check<K: Resource<DynamicType = ()>>(definition: &str, base: &Value, cases: &[Case], on_update: &[&str]) {
    let space = Space::with_definitions("rules").unwrap();
    ask::<K>(&space, base, &json!({})).unwrap();
    let mut wrong = Vec::new();
    for Case { field, message, refused, accepted } in cases {
        if let Err(error) = ask::<K>(&space, base, accepted) {
            wrong.push(format!("{accepted} is refused: {error}"));
        }
        match ask::<K>(&space, base, refused) {
            Ok(()) => wrong.push(format!("{refused} is accepted")),
            Err(error) if error.contains(&format!("{field}: ")) && error.contains(message) => {}
            Err(error) => wrong.push(format!("{refused}: expected '{field}: ... {message}', got: {error}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));

    let shown = space.kubectl(&["get", "crd", definition, "-o", "json"]).unwrap();
    let shown: Value = serde_json::from_str(&shown).unwrap();
    let mut rules = BTreeSet::new();
    for version in shown["spec"]["versions"].as_array().unwrap() {
        rules_of(&version["schema"]["openAPIV3Schema"], "", &mut rules);
    }
    let tried = cases.iter().map(|case| (case.field.to_owned(), case.message.to_owned()));
    let mut untried: Vec<_> = rules.iter().cloned().collect();
    let tried: Vec<_> = tried.collect();
    untried.retain(|rule| !tried.contains(rule) && !on_update.contains(&&rule.0[..]));
    assert!(untried.is_empty(), "no case is for these rules: {untried:#?}");
}

#[test]
fn every_rule_of_a_ledger_cluster_refuses_and_accepts() {
    let base = json!({ "database": { "secretRef": { "name": "postgres", "key": "url" } } });
    let policies = "must name at least one policy; use selectPolicy: Disabled to forbid the direction";
    let band = "must satisfy scaleDownThreshold <= target <= scaleUpThreshold";
    let policy = json!([{ "type": "Pods", "value": 1, "periodSeconds": 60 }]);
    let key = json!({ "name": "keys", "key": "one" });
    let fields =
        |fields: &[&str]| json!({ "security": { "encryptedFields": fields, "encryptionKeySecretRef": key } });
    let cases = [
        case(
            "spec.autoscaling.behavior.scaleDown.policies",
            policies,
            json!({ "autoscaling": { "behavior": { "scaleDown": { "policies": [] } } } }),
            json!({ "autoscaling": { "behavior": { "scaleDown": { "policies": policy } } } }),
        ),
        case(
            "spec.autoscaling.behavior.scaleUp.policies",
            policies,
            json!({ "autoscaling": { "behavior": { "scaleUp": { "policies": [] } } } }),
            json!({ "autoscaling": { "behavior": { "scaleUp": { "selectPolicy": "Disabled" } } } }),
        ),
        case(
            "spec.autoscaling.cpu.target",
            band,
            json!({ "autoscaling": { "cpu": { "target": 0.9 } } }),
            json!({ "autoscaling": { "cpu": { "target": 0.8 } } }),
        ),
        case(
            "spec.autoscaling.queueDepth.target",
            band,
            json!({ "autoscaling": { "queueDepth": { "scaleDownThreshold": 0.6, "target": 0.5 } } }),
            json!({ "autoscaling": { "queueDepth": { "scaleDownThreshold": 0.5, "target": 0.5 } } }),
        ),
        case(
            "spec.autoscaling.min",
            "min must not be larger than max",
            json!({ "autoscaling": { "min": 4, "max": 3 } }),
            json!({ "autoscaling": { "min": 3, "max": 3 } }),
        ),
        case(
            "spec.autoscaling.cpu",
            "at least one of cpu and queueDepth must be enabled, or set autoscaling.enabled to false",
            json!({ "autoscaling": { "cpu": { "enabled": false }, "queueDepth": { "enabled": false } } }),
            json!({ "autoscaling": { "cpu": { "enabled": false }, "queueDepth": { "enabled": true } } }),
        ),
        case(
            "spec.autoscaling.fallback",
            "fallback.replicas must lie between min and max",
            json!({ "autoscaling": { "min": 2, "max": 5, "fallback": { "failures": 3, "replicas": 6 } } }),
            json!({ "autoscaling": { "min": 2, "max": 5, "fallback": { "failures": 3, "replicas": 5 } } }),
        ),
        case(
            "spec.database.secretRef",
            "exactly one of secretRef and embedded: true must be given",
            json!({ "database": { "embedded": true } }),
            json!({ "database": { "embedded": true, "secretRef": null } }),
        ),
        case(
            "spec.database.caSecretRef",
            "caSecretRef needs secretRef: the embedded database has no TLS",
            json!({ "database": {
                "embedded": true, "secretRef": null, "caSecretRef": { "name": "authority", "key": "ca.crt" },
            } }),
            json!({ "database": { "caSecretRef": { "name": "authority", "key": "ca.crt" } } }),
        ),
        case(
            "spec.ledger.batchSize",
            "batchSize must not be larger than queueEvents",
            json!({ "ledger": { "batchSize": 1001, "queueEvents": 1000 } }),
            json!({ "ledger": { "batchSize": 1000, "queueEvents": 1000 } }),
        ),
        case(
            "spec.retention.archive",
            "archive is required with events: what is old is moved, never merely dropped",
            json!({ "retention": { "events": "90d" } }),
            json!({ "retention": { "events": "90d", "archive": "s3://bucket/ledger" } }),
        ),
        case(
            "spec.security.decryptApiKeySecretRef",
            "decryptApiKeySecretRef needs apiKeySecretRef: without it every caller may read what is decrypted",
            json!({ "security": { "decryptApiKeySecretRef": key } }),
            json!({ "security": { "decryptApiKeySecretRef": key, "apiKeySecretRef": { "name": "keys", "key": "two" } } }),
        ),
        case(
            "spec.security.encryptedFields",
            "encryptedFields and encryptionKeySecretRef need each other; an empty list of fields encrypts nothing and still \
             decrypts what is stored",
            json!({ "security": { "encryptedFields": ["/name"] } }),
            fields(&[]),
        ),
        case(
            "spec.security.encryptedFields",
            "type, timestamp and case_id cannot be encrypted: the ledger finds events by them",
            fields(&["/type"]),
            fields(&["/types"]),
        ),
        case(
            "spec.security.encryptedFields",
            "a field is listed that another one contains or repeats; leave it out",
            fields(&["/card", "/card/number"]),
            fields(&["/card", "/cards"]),
        ),
        case(
            "spec.replicas",
            "replicas fixes the number of pods; set autoscaling.enabled to false as well, or remove replicas",
            json!({ "replicas": 3 }),
            json!({ "replicas": 3, "autoscaling": { "enabled": false } }),
        ),
        // Its place is the object itself.
        case(
            "",
            "metadata.name must be at most 43 lower-case letters, digits and dashes, begin with a letter and not end with a dash",
            json!({ "metadata": { "name": "1abc" } }),
            json!({ "metadata": { "name": "a".repeat(43) } }),
        ),
        case(
            "",
            "metadata.name must be at most 43",
            json!({ "metadata": { "name": "a".repeat(44) } }),
            json!({ "metadata": { "name": "abc-1" } }),
        ),
        // Patterns: the message is the API server's.
        case(
            "spec.image",
            "spec.image in body should match",
            json!({ "image": "bad image" }),
            json!({ "image": format!("registry.example:5000/a/b_c:1@sha256:{}", "0".repeat(64)) }),
        ),
        case(
            "spec.version",
            "spec.version in body should match",
            json!({ "version": "a b" }),
            json!({ "version": "v1.2.3_rc-4" }),
        ),
        case(
            "spec.version",
            "image has a tag or digest already; remove it there, or remove version",
            json!({ "image": "registry.example:5000/certeus:1", "version": "2" }),
            json!({ "image": "registry.example:5000/certeus", "version": "2" }),
        ),
    ];
    check::<LedgerCluster>("ledgerclusters.certeus.io", &base, &cases, &["spec.spool"]);
}

#[test]
fn the_spool_of_a_cluster_cannot_be_changed() {
    let space = Space::with_definitions("spool").unwrap();
    space.apply(
        "{apiVersion: certeus.io/v1alpha1, kind: LedgerCluster, metadata: {name: fixed}, spec: {database: {embedded: true}}}",
    )
    .unwrap();
    let change = |patch: Value| {
        let parameters = PatchParams::default();
        space.block(space.api::<LedgerCluster>().patch("fixed", &parameters, &Patch::Merge(&patch)))
    };
    change(json!({ "spec": { "spool": { "size": "1Gi" }, "paused": true } })).unwrap();
    let refused = change(json!({ "spec": { "spool": { "size": "2Gi" } } })).unwrap_err().to_string();
    assert!(refused.contains("the spool volume cannot be changed once the cluster exists"), "{refused}");
}

#[test]
fn every_rule_of_an_alert_rule_refuses_and_accepts() {
    let groups = |rule: Value| json!({ "groups": [{ "name": "g", "rules": [rule] }] });
    let notify = |target: Value| json!({ "notify": [target] });
    let base = json!({
        "clusterRef": { "name": "trades" },
        "groups": [{ "name": "g", "rules": [{ "alert": "Down", "expr": "up == 0" }] }],
    });
    let cases = [
        case(
            "spec.groups[0].rules[0]",
            "exactly one of alert and record must be given",
            groups(json!({ "alert": "Down", "record": "down", "expr": "up == 0" })),
            groups(json!({ "record": "down", "expr": "up == 0" })),
        ),
        case(
            "spec.groups[0].rules[0]",
            "for, keep_firing_for and annotations belong to alerting rules only",
            groups(json!({ "record": "down", "expr": "up == 0", "for": "1m" })),
            groups(
                json!({ "alert": "Down", "expr": "up == 0", "for": "1m", "annotations": { "summary": "s" } }),
            ),
        ),
        case(
            "spec.notify[0]",
            "exactly one of url and urlSecretRef must be given",
            notify(json!({ "name": "n" })),
            notify(json!({ "name": "n", "urlSecretRef": { "name": "hook", "key": "url" } })),
        ),
        case(
            "spec.notify[0]",
            "url must begin with http:// or https://",
            notify(json!({ "name": "n", "url": "ftp://example" })),
            notify(json!({ "name": "n", "url": "https://example/hook" })),
        ),
    ];
    check::<AlertRule>("alertrules.certeus.io", &base, &cases, &[]);
}
