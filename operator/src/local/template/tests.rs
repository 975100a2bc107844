use k8s_openapi::api::core::v1::EnvVarSource;
use serde_json::json;

use super::*;

fn workload() -> StatefulSet {
    serde_json::from_value(json!({
        "metadata": {"name": "demo"},
        "spec": {
            "selector": {}, "serviceName": "demo",
            "template": {"spec": {
                "terminationGracePeriodSeconds": 7,
                "containers": [{
                    "name": "dataplane",
                    "args": ["--config", "/etc/certeus/config.yaml", "--spool=/var/spool/certeus", "--plain=a"],
                    "env": [
                        {"name": "CERTEUS_LOG_LEVEL", "value": "debug"},
                        {"name": "CERTEUS_API_KEY", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "api"}}},
                        {"name": "MAYBE", "valueFrom": {"secretKeyRef": {"name": "no", "key": "x", "optional": true}}},
                        {"name": "MADE", "valueFrom": {"secretKeyRef": {"name": "made", "key": "x"}}},
                        {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                    ],
                    "volumeMounts": [
                        {"name": "config", "mountPath": "/etc/certeus"},
                        {"name": "spool", "mountPath": "/var/spool/certeus"},
                        {"name": "tmp", "mountPath": "/tmp"},
                    ],
                }],
                "volumes": [
                    {"name": "config", "configMap": {"name": "demo"}},
                    {"name": "tmp", "emptyDir": {}},
                ],
            }},
            "volumeClaimTemplates": [{"metadata": {"name": "spool"}}],
        },
    }))
    .unwrap()
}

fn resolve(workload: &StatefulSet) -> Result<Template, Error> {
    let map = json!({"metadata": {"name": "demo"}, "data": {"config.yaml": "log: {}"}});
    let secret = json!({"metadata": {"name": "keys"}, "data": {"api": "c2VjcmV0"}});
    let config_maps = [serde_json::from_value(map).unwrap()];
    let secrets = [serde_json::from_value(secret).unwrap()];
    let objects =
        Objects { config_maps: &config_maps, secrets: &secrets, elsewhere: &["made"], anchored: false };
    Template::resolve(workload, objects)
}

fn container(workload: &mut StatefulSet) -> &mut Container {
    let pod = workload.spec.as_mut().unwrap().template.spec.as_mut().unwrap();
    &mut pod.containers[0]
}

/// The refusal of a workload after an edit.
fn refused(edit: impl FnOnce(&mut StatefulSet)) -> String {
    let mut workload = workload();
    edit(&mut workload);
    resolve(&workload).map(|_| ()).unwrap_err().to_string()
}

#[test]
fn a_pod_becomes_arguments_environment_and_folders() {
    let template = resolve(&workload()).ok().unwrap();
    assert_eq!(template.drain_timeout, Duration::from_secs(7));
    assert_eq!(template.env(API_KEY), Some("secret"));
    let Launch { args, env, fresh_folders, folders, files } = template.launch(2, Path::new("/s/demo-2"));
    let spool = "--spool=/s/demo-2/volumes/spool";
    assert_eq!(args, ["--config", "/s/demo-2/config/config/config.yaml", spool, "--plain=a"]);
    let env: Vec<(&str, &str)> = env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let expected = [("CERTEUS_API_KEY", "secret"), ("CERTEUS_LOG_LEVEL", "debug"), ("POD_NAME", "demo-2")];
    assert_eq!(env, expected);
    assert_eq!(files, [(PathBuf::from("/s/demo-2/config/config/config.yaml"), b"log: {}".to_vec())]);
    // What is on a claim is never removed.
    assert_eq!(fresh_folders, ["/s/demo-2/config/config", "/s/demo-2/scratch/tmp"].map(PathBuf::from));
    assert!(folders.contains(&PathBuf::from("/s/demo-2/volumes/spool")));
}

#[test]
fn what_is_missing_or_cannot_be_given_is_named() {
    let missing = refused(|workload| {
        let reference = container(workload).env.as_mut().unwrap()[1].value_from.as_mut().unwrap();
        reference.secret_key_ref.as_mut().unwrap().name = "other".to_owned();
    });
    let path = "spec.template.spec.containers[0]";
    assert_eq!(
        missing,
        format!(
            "{path}.env[CERTEUS_API_KEY]: there is no Secret 'other' among the manifests: add it to the folder"
        )
    );

    let key = refused(|workload| {
        let reference = container(workload).env.as_mut().unwrap()[1].value_from.as_mut().unwrap();
        reference.secret_key_ref.as_mut().unwrap().key = "other".to_owned();
    });
    assert_eq!(key, format!("{path}.env[CERTEUS_API_KEY]: Secret 'keys' has no key 'other'"));

    let source = refused(|workload| {
        container(workload).env.as_mut().unwrap()[0].value_from = Some(EnvVarSource::default());
    });
    assert_eq!(source, format!("{path}.env[CERTEUS_LOG_LEVEL]: not supported on one machine"));

    let volume = refused(|workload| {
        let pod = workload.spec.as_mut().unwrap().template.spec.as_mut().unwrap();
        pod.volumes.as_mut().unwrap()[1].empty_dir = None;
    });
    assert_eq!(volume, "spec.template.spec.volumes[tmp]: not supported on one machine");
}
