use kube::core::cel::Validator;
use serde_json::{Value, json};

use super::*;

mod addresses;
mod images;

fn cluster(spec: &Value) -> Value {
    json!({ "apiVersion": "certeus.io/v1alpha1", "kind": "LedgerCluster", "metadata": { "name": "demo" }, "spec": spec })
}

fn alert_rule(spec: &Value) -> Value {
    json!({ "apiVersion": "certeus.io/v1alpha1", "kind": "AlertRule", "metadata": { "name": "demo" }, "spec": spec })
}

fn messages(errors: &[FieldError]) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}

fn cluster_errors(spec: &Value) -> Vec<String> {
    LedgerCluster::read(cluster(spec)).err().map(|errors| messages(&errors)).unwrap_or_default()
}

fn schema_json(crd: &CustomResourceDefinition) -> Value {
    let schema = crd.spec.versions[0].schema.as_ref().unwrap().open_api_v3_schema.as_ref().unwrap();
    serde_json::to_value(schema).unwrap()
}

/// The pattern of a field of a `LedgerCluster`'s spec, as a schema with a rule.
fn pattern_of(field: &str) -> Value {
    let schema = schema_json(&crds()[0]);
    let field = schema.pointer(&format!("/properties/spec/properties/{field}")).unwrap();
    let pattern = field["pattern"].as_str().unwrap().replace('\\', "\\\\").replace('\'', "\\'");
    let rule = json!([{ "rule": format!("self.matches('{pattern}')"), "message": "no" }]);
    json!({ "type": "string", "x-kubernetes-validations": rule })
}

/// Whether the API server takes the text.
fn matches(field: &Value, text: &str) -> bool {
    Validator::new().validate(field, &json!(text), None).is_ok()
}

/// Fills defaults in as the API server does before it evaluates rules.
fn with_defaults(schema: &Value, value: &mut Value) {
    let (Some(properties), Some(object)) = (schema["properties"].as_object(), value.as_object_mut()) else {
        if let (Some(items), Some(list)) = (schema.get("items"), value.as_array_mut()) {
            list.iter_mut().for_each(|item| with_defaults(items, item));
        }
        return;
    };
    for (name, property) in properties {
        if let (None, Some(default)) = (object.get(name), property.get("default")) {
            object.insert(name.clone(), default.clone());
        }
        if let Some(child) = object.get_mut(name) {
            with_defaults(property, child);
        }
    }
}

#[test]
fn installed_definitions_are_those_of_the_types() {
    for crd in crds() {
        let path = format!("{}/{}.yaml", env!("CARGO_MANIFEST_DIR"), crd.metadata.name.as_ref().unwrap());
        let generated = document(&crd).unwrap();
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&path, &generated).unwrap();
        }
        let installed = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            installed == generated,
            "{path} differs from the types; run the tests with UPDATE_GOLDEN=1 and read the diff"
        );
        // kubectl keeps a copy in an annotation, which may have 256 KiB.
        assert!(generated.len() < 250_000);
        let read_back: CustomResourceDefinition = serde_saphyr::from_str(&generated).unwrap();
        assert_eq!(read_back, crd);
    }
}

#[test]
fn defaults_of_the_schema_are_those_of_the_types() {
    let mut value = cluster(&json!({ "database": { "embedded": true } }));
    let read = LedgerCluster::read(value.clone()).unwrap();
    with_defaults(&schema_json(&crds()[0]), &mut value);
    assert_eq!(value["spec"], serde_json::to_value(&read.spec).unwrap());

    let scaling = &read.spec.autoscaling;
    assert_eq!((scaling.min, scaling.max, scaling.cooldown.to_string().as_str()), (3, 20, "5m"));
    assert_eq!(
        scaling.cpu,
        CpuTrigger { enabled: true, target: 0.7, scale_up_threshold: 0.8, scale_down_threshold: 0.4 }
    );
    let ledger = &value["spec"]["ledger"];
    let expected = json!({ "batchSize": 10000, "batchTimeout": "100ms", "queueEvents": 100_000, "queueBytes": "64Mi", "writers": 2 });
    assert_eq!(*ledger, expected);
}

/// Each case breaks one rule; the API server, through CEL, and [`LedgerCluster::check`] must both refuse it.
#[test]
fn rules_refuse_the_same_in_cel_and_in_rust() {
    let fallback =
        |replicas: u32| json!({ "autoscaling": { "fallback": { "failures": 3, "replicas": replicas } } });
    let secret = json!({ "name": "keys", "key": "k" });
    let security = |security: Value| json!({ "security": security });
    let encrypted = |fields: Value| {
        security(json!({ "encryptedFields": fields, "encryptionKeySecretRef": secret.clone() }))
    };
    let fields = Some("spec.security.encryptedFields");
    let cases = [
        (encrypted(json!(["/card/number", "/card/name", "/cards", "/a~1b"])), None),
        (encrypted(json!([])), None),
        (security(json!({ "encryptedFields": [] })), fields),
        (security(json!({ "encryptionKeySecretRef": secret })), fields),
        (encrypted(json!(["/timestamp"])), fields),
        (encrypted(json!(["/type/of"])), fields),
        (encrypted(json!(["/case_id"])), fields),
        (encrypted(json!(["/types"])), None),
        (encrypted(json!(["/card/number", "/card"])), fields),
        (encrypted(json!(["/card", "/card"])), fields),
        (security(json!({ "decryptApiKeySecretRef": secret })), Some("spec.security.decryptApiKeySecretRef")),
        (security(json!({ "decryptApiKeySecretRef": secret, "apiKeySecretRef": secret })), None),
        (json!({}), None),
        (json!({ "replicas": 2 }), Some("spec.replicas")),
        (json!({ "replicas": 2, "autoscaling": { "enabled": false } }), None),
        (json!({ "image": "certeus:1", "version": "2" }), Some("spec.version")),
        (
            json!({ "image": format!("certeus@sha256:{}", "0".repeat(64)), "version": "2" }),
            Some("spec.version"),
        ),
        (json!({ "image": "registry:5000/certeus", "version": "2" }), None),
        (json!({ "image": "registry:5000/certeus:1" }), None),
        (json!({ "autoscaling": { "min": 5, "max": 4 } }), Some("spec.autoscaling.min")),
        (json!({ "autoscaling": { "min": 4, "max": 4 } }), None),
        (json!({ "autoscaling": { "cpu": { "enabled": false } } }), None),
        (
            json!({ "autoscaling": { "cpu": { "enabled": false }, "queueDepth": { "enabled": false } } }),
            Some("spec.autoscaling.cpu"),
        ),
        (fallback(2), Some("spec.autoscaling.fallback")),
        (fallback(3), None),
        (fallback(21), Some("spec.autoscaling.fallback")),
        (json!({ "autoscaling": { "cpu": { "target": 0.9 } } }), Some("spec.autoscaling.cpu.target")),
        (
            json!({ "autoscaling": { "queueDepth": { "scaleDownThreshold": 0.75 } } }),
            Some("spec.autoscaling.queueDepth.target"),
        ),
        (
            json!({ "autoscaling": { "cpu": { "target": 1, "scaleUpThreshold": 1, "scaleDownThreshold": 1 } } }),
            None,
        ),
        (
            json!({ "autoscaling": { "behavior": { "scaleUp": { "policies": [] } } } }),
            Some("spec.autoscaling.behavior.scaleUp.policies"),
        ),
        (json!({ "autoscaling": { "behavior": { "scaleDown": { "selectPolicy": "Disabled" } } } }), None),
        (json!({ "ledger": { "batchSize": 101, "queueEvents": 100 } }), Some("spec.ledger.batchSize")),
        (json!({ "retention": { "events": "400d" } }), Some("spec.retention.archive")),
        (json!({ "retention": { "events": "400d", "archive": "s3://bucket/ledger" } }), None),
        (json!({ "retention": { "archive": "s3://bucket" } }), None),
        (json!({ "stopped": true, "dryRun": true, "paused": true }), None),
        (json!({ "database": {} }), Some("spec.database.secretRef")),
        (json!({ "database": { "secretRef": { "name": "db", "key": "url" } } }), None),
        (
            json!({ "database": { "embedded": true, "secretRef": { "name": "db", "key": "url" } } }),
            Some("spec.database.secretRef"),
        ),
        (json!({ "database": { "secretRef": secret, "caSecretRef": secret } }), None),
        (
            json!({ "database": { "embedded": true, "caSecretRef": secret } }),
            Some("spec.database.caSecretRef"),
        ),
    ];
    let schema = schema_json(&crds()[0]);
    for (mut spec, refused_at) in cases {
        if spec.get("database").is_none() {
            spec["database"] = json!({ "embedded": true });
        }
        let mut value = cluster(&spec);
        let errors = LedgerCluster::read(value.clone()).err().unwrap_or_default();
        let paths: Vec<&str> = errors.iter().map(|error| error.path.as_str()).collect();
        assert_eq!(paths, refused_at.into_iter().collect::<Vec<_>>(), "{spec}");

        with_defaults(&schema, &mut value);
        let cel = Validator::new().validate(&schema, &value, None);
        let cel_messages: Vec<String> = cel.err().into_iter().flatten().map(|error| error.message).collect();
        let problems: Vec<String> = errors.into_iter().map(|error| error.problem).collect();
        assert_eq!(cel_messages, problems, "{spec}");
    }
}

#[test]
fn a_name_that_could_not_name_a_pod_is_refused_in_cel_and_in_rust() {
    let schema = schema_json(&crds()[0]);
    let (longest, too_long) = ("a".repeat(NAME_LENGTH_MAX), "a".repeat(NAME_LENGTH_MAX + 1));
    let refused = ["", "1abc", "a.b", "a-", "-a", "Demo", "a_b", &too_long];
    let accepted = ["a", "a-1", "abc", &longest];
    for (name, valid) in
        refused.map(|name| (name, false)).into_iter().chain(accepted.map(|name| (name, true)))
    {
        let mut value = cluster(&json!({ "database": { "embedded": true } }));
        value["metadata"]["name"] = name.into();
        let errors = LedgerCluster::read(value.clone()).err().unwrap_or_default();
        with_defaults(&schema, &mut value);
        let cel = Validator::new().validate(&schema, &value, None);
        let cel: Vec<String> = cel.err().into_iter().flatten().map(|error| error.message).collect();
        assert_eq!((cel.is_empty(), errors.is_empty()), (valid, valid), "{name}");
        let told: Vec<String> =
            errors.iter().map(|error| format!("{} {}", error.path, error.problem)).collect();
        assert_eq!(cel, told, "{name}");
    }
}

#[test]
fn rules_about_alert_rules_refuse_the_same_in_cel_and_in_rust() {
    let one = |rule: Value| json!({ "clusterRef": { "name": "demo" }, "groups": [{ "name": "g", "rules": [rule] }] });
    let notify = |target: Value| {
        let mut spec = one(json!({ "alert": "A", "expr": "up" }));
        spec["notify"] = json!([target]);
        spec
    };
    let rule = Some("spec.groups[0].rules[0]");
    let cases = [
        (
            one(
                json!({ "alert": "A", "expr": "up", "for": "5m", "keep_firing_for": "1m", "annotations": { "a": "b" } }),
            ),
            None,
        ),
        (one(json!({ "record": "a:b", "expr": "up", "labels": { "a": "b" } })), None),
        (one(json!({ "expr": "up" })), rule),
        (one(json!({ "alert": "A", "record": "a:b", "expr": "up" })), rule),
        (one(json!({ "record": "a:b", "expr": "up", "for": "5m" })), rule),
        (one(json!({ "record": "a:b", "expr": "up", "keep_firing_for": "5m" })), rule),
        (one(json!({ "record": "a:b", "expr": "up", "annotations": { "a": "b" } })), rule),
        (notify(json!({ "name": "n", "url": "http://127.0.0.1:9/" })), None),
        (notify(json!({ "name": "n", "urlSecretRef": { "name": "s", "key": "k" } })), None),
        (notify(json!({ "name": "n" })), Some("spec.notify[0]")),
        (notify(json!({ "name": "n", "url": "ftp://h" })), Some("spec.notify[0]")),
        (
            notify(json!({ "name": "n", "url": "http://h", "urlSecretRef": { "name": "s", "key": "k" } })),
            Some("spec.notify[0]"),
        ),
    ];
    let mut schema = schema_json(&crds()[1]);
    // kube-cel 0.8 doubles every underscore of a field name; the API server replaces only a double one, by
    // `__underscores__` (apiserver/pkg/cel, escaping.go). Remove this when kube-cel does the same.
    let rules = &mut schema["properties"]["spec"]["properties"]["groups"]["items"]["properties"]["rules"]["items"]
        ["x-kubernetes-validations"];
    let expression = &mut rules[1]["rule"];
    *expression = expression.as_str().unwrap().replace("keep_firing_for", "keep__firing__for").into();
    for (spec, refused_at) in cases {
        let mut value = alert_rule(&spec);
        let errors = AlertRule::read(value.clone()).err().unwrap_or_default();
        let paths: Vec<&str> = errors.iter().map(|error| error.path.as_str()).collect();
        assert!(paths.first().copied() == refused_at, "{spec}: {paths:?}");

        with_defaults(&schema, &mut value);
        let cel = Validator::new().validate(&schema, &value, None);
        let cel_messages: Vec<String> = cel.err().into_iter().flatten().map(|error| error.message).collect();
        let problems: Vec<String> = errors.into_iter().map(|error| error.problem).collect();
        assert_eq!(cel_messages, problems, "{spec}");
    }
}

#[test]
fn the_spool_cannot_change() {
    let schema = schema_json(&crds()[0]);
    let object = |size: &str| {
        let mut value = cluster(&json!({ "database": { "embedded": true }, "spool": { "size": size } }));
        with_defaults(&schema, &mut value);
        value
    };
    let validate = |new: &Value| Validator::new().validate(&schema, new, Some(&object("1Gi")));
    assert!(validate(&object("1Gi")).is_ok());
    assert!(validate(&object("2Gi")).unwrap_err().to_string().contains("cannot be changed"));
}

#[test]
fn errors_name_the_field_and_what_would_be_valid() {
    let with = |patch: Value| {
        let mut spec = json!({ "database": { "embedded": true } });
        spec.as_object_mut().unwrap().extend(patch.as_object().unwrap().clone());
        cluster_errors(&spec).join("; ")
    };
    assert_eq!(cluster_errors(&json!({})), ["spec.database: is required"]);
    assert_eq!(
        with(json!({ "autoscaling": { "cpu": { "targets": 0.7 } } })),
        "spec.autoscaling.cpu.targets: unknown field; known here: enabled, scaleDownThreshold, scaleUpThreshold, target"
    );
    assert_eq!(
        with(json!({ "autoscaling": { "min": 0 } })),
        "spec.autoscaling.min: must be at least 1, not 0"
    );
    assert_eq!(
        with(json!({ "autoscaling": { "max": -1 } })),
        "spec.autoscaling.max: must be at least 1, not -1"
    );
    assert_eq!(
        with(json!({ "autoscaling": { "min": 1.5 } })),
        "spec.autoscaling.min: must be a whole number, not 1.5"
    );
    assert_eq!(with(json!({ "paused": "yes" })), "spec.paused: must be a boolean, not a string");
    assert_eq!(
        with(json!({ "autoscaling": { "behavior": { "scaleUp": { "selectPolicy": "max" } } } })),
        "spec.autoscaling.behavior.scaleUp.selectPolicy: must be one of Max, Min, Disabled, not \"max\""
    );
    assert!(
        with(json!({ "ledger": { "batchTimeout": "100" } }))
            .starts_with("spec.ledger.batchTimeout: \"100\" is not a duration; write")
    );
    assert!(
        with(json!({ "ledger": { "queueBytes": "64MiB" } }))
            .starts_with("spec.ledger.queueBytes: \"64MiB\" is not a quantity; write")
    );
    assert_eq!(
        with(json!({ "ledger": { "batchTimeout": "1m" } })),
        "spec.ledger.batchTimeout: must be at most 5s"
    );
    let fields = |fields: Value| {
        let secret = json!({ "name": "keys", "key": "k" });
        with(json!({ "security": { "encryptedFields": fields, "encryptionKeySecretRef": secret } }))
    };
    assert_eq!(
        fields(json!(["/ok", "email"])),
        "spec.security.encryptedFields[1]: must be a JSON pointer to a member, such as /card/number, not \"email\""
    );
    for bad in ["/a~2", "", "/a~", "/~~0", &"/a".repeat(17), &format!("/{}", "a".repeat(256))] {
        assert!(fields(json!([bad])).starts_with("spec.security.encryptedFields[0]: must"), "{bad}");
    }
    assert_eq!(
        with(json!({ "log": { "anchor": "s3://bucket", "checkpointInterval": "10ms" } })),
        "spec.log.checkpointInterval: must be from 100ms to 1m; \
         spec.log.anchor: must be an object such as s3://bucket/ledger/anchor"
    );
    assert_eq!(
        with(json!({ "retention": { "events": "36h", "archive": "/var/archive" } })),
        "spec.retention.archive: must be a bucket, and a prefix if need be, such as s3://bucket/ledger; \
         spec.retention.events: must be whole days, from 1d to 36500d"
    );
    for events in ["0s", "36501d", "1d1ms"] {
        let refused = with(json!({ "retention": { "events": events, "archive": "s3://bucket" } }));
        assert!(refused.starts_with("spec.retention.events: "), "{events}: {refused}");
    }
    assert_eq!(
        with(json!({ "proofs": { "publicBaseUrl": "proofs.example.com" } })),
        "spec.proofs.publicBaseUrl: must be an address such as https://proofs.example.com, without query and fragment"
    );
    let typo = with(json!({ "network": { "clients": [{ "podSelectors": {} }] } }));
    assert!(typo.starts_with("spec.network.clients[0].podSelectors: unknown field"), "{typo}");
    // Parts that come from Kubernetes are looked into as well.
    let typo = with(json!({ "scheduling": { "tolerations": [{ "kye": "a" }] } }));
    assert!(typo.starts_with("spec.scheduling.tolerations[0].kye: unknown field"), "{typo}");
    // All errors are told at once.
    assert_eq!(cluster_errors(&json!({ "database": {}, "ledger": { "queueBytes": 5 } })).len(), 2);

    let mut value = cluster(&json!({ "database": { "embedded": true } }));
    value["metadata"] = json!({ "name": "demo", "labels": { "a.b/c": 1 }, "lables": {} });
    value["specc"] = json!({});
    let paths: Vec<String> =
        LedgerCluster::read(value).unwrap_err().into_iter().map(|error| error.path).collect();
    assert_eq!(paths, ["metadata.labels[\"a.b/c\"]", "metadata.lables", "specc"]);
}

#[test]
fn a_null_field_means_its_default() {
    let spec =
        json!({ "database": { "embedded": true }, "autoscaling": { "cooldown": null, "fallback": null } });
    assert_eq!(LedgerCluster::read(cluster(&spec)).unwrap().spec.autoscaling, Autoscaling::default());
}

#[test]
fn rule_groups_of_a_prometheus_file_port_unchanged() {
    let groups = r#"
- name: ledger
  interval: 30s
  rules:
    - record: job:events:rate5m
      expr: sum by (job) (rate(certeus_ledger_events_committed_total[5m]))
    - alert: LedgerStalled
      expr: job:events:rate5m == 0
      for: 1h30m
      keep_firing_for: 5m
      labels: { severity: page }
      annotations: { summary: "no event for {{ $value }}" }
"#;
    let groups: Value = serde_saphyr::from_str(groups).unwrap();
    let read =
        AlertRule::read(alert_rule(&json!({ "clusterRef": { "name": "demo" }, "groups": groups }))).unwrap();
    assert_eq!(serde_json::to_value(&read.spec.groups).unwrap(), groups);

    let mut twice = groups.as_array().unwrap().clone();
    twice.push(twice[0].clone());
    let errors = AlertRule::read(alert_rule(&json!({ "clusterRef": { "name": "demo" }, "groups": twice })))
        .unwrap_err();
    assert_eq!(messages(&errors), ["spec.groups[1]: must differ from all others in name"]);
}
