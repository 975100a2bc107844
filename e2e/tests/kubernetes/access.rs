//! What the operator says while the API server takes neither its credentials nor its word for who it is, or has no place for
//! its lease: one line that says what to do, not one with each try, and none of the client's own.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use certeus_e2e::cluster::guard::Process;
use certeus_e2e::cluster::space::Space;
use certeus_e2e::programs;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(60);
/// Several tries.
const WHILE: Duration = Duration::from_secs(6);

/// An authority that signed nothing; nobody has its key.
const OTHER_AUTHORITY: &str = "\
-----BEGIN CERTIFICATE-----
MIIBeTCCAR+gAwIBAgIUIW2OQbJGDX1Vg0k8Z0DA2iw/1RAwCgYIKoZIzj0EAwIw
ETEPMA0GA1UEAwwGbm9ib2R5MCAXDTI2MTEyMTIwMDMxMFoYDzIxMjYxMDI4MjAw
MzEwWjARMQ8wDQYDVQQDDAZub2JvZHkwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNC
AATpUrDNLKj6QiKf6z7Q8dKDl/xpMvnJiQGl/y0D0GhBLwy4egK0SUdeKJNELldE
IywCIE+PzmF0CUGF/qBqKuYxo1MwUTAdBgNVHQ4EFgQUUZ+F/caxAsjvu+a1Kxqt
wGecGIQwHwYDVR0jBBgwFoAUUZ+F/caxAsjvu+a1KxqtwGecGIQwDwYDVR0TAQH/
BAUwAwEB/zAKBggqhkjOPQQDAgNIADBFAiA4AIXCh0Qu+sZwPKxeAZBFMGIe4D8g
1BMHaButnnc97QIhAOgNAtpsiZjg+CgFR7PnMSy3IOoTJqggzz6S3aadYpu+
-----END CERTIFICATE-----
";

/// The one line of the operator's log at the level of a warning or above, once it was there for a while. The administrator's kubeconfig is
/// changed before.
fn complaint(
    name: &str,
    change: impl FnOnce(&mut Value, &Path),
    lease_namespace: Option<&str>,
) -> (Space, Value) {
    let space = Space::with_definitions(name).unwrap();
    let text = std::fs::read_to_string(space.plane().kubeconfig()).unwrap();
    let mut kubeconfig: Value = serde_json::from_str(&text).unwrap();
    change(&mut kubeconfig, space.dir());
    let file = space.dir().join("operator.kubeconfig");
    std::fs::write(&file, kubeconfig.to_string()).unwrap();
    let path = space.dir().join("operator.log");
    let log = std::fs::File::create(&path).unwrap();
    let mut command = Command::new(programs::operator().unwrap());
    command
        .args(["run", "--namespace", space.name(), "--listen", "127.0.0.1:0", "--pod-name", "operator"])
        .args(["--lease-namespace", lease_namespace.unwrap_or(space.name())])
        .env_clear()
        .env("KUBECONFIG", &file)
        .stdout(log.try_clone().unwrap())
        .stderr(log);
    let _operator = Process::start(&mut command).unwrap();
    let complaints = || -> Vec<Value> {
        let text = std::fs::read_to_string(&path).unwrap();
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter(|line| line["level"] == "ERROR" || line["level"] == "WARN").collect()
    };
    let deadline = Instant::now() + SOON;
    while complaints().is_empty() {
        assert!(Instant::now() < deadline, "no complaint: {}", std::fs::read_to_string(&path).unwrap());
        std::thread::sleep(Duration::from_millis(50));
    }
    std::thread::sleep(WHILE);
    let all = complaints();
    assert_eq!(all.len(), 1, "{all:#?}");
    (space, all[0].clone())
}

fn server(kubeconfig: &Value) -> &str {
    kubeconfig["clusters"][0]["cluster"]["server"].as_str().unwrap()
}

#[test]
fn refused_credentials_are_told_once() {
    let mut address = String::new();
    let wrong = |kubeconfig: &mut Value, _: &Path| {
        address = server(kubeconfig).to_owned();
        kubeconfig["users"][0]["user"] = json!({ "token": "wrong" });
    };
    let (space, line) = complaint("token", wrong, None);
    let file = space.dir().join("operator.kubeconfig");
    let expected =
        format!("{address} refuses the credentials of kubeconfig {}: Unauthorized", file.display());
    assert_eq!((&line["level"], &line["error"]), (&json!("ERROR"), &json!(expected)));
}

#[test]
fn a_certificate_of_another_authority_is_told_once() {
    let mut address = String::new();
    let wrong = |kubeconfig: &mut Value, dir: &Path| {
        address = server(kubeconfig).to_owned();
        std::fs::write(dir.join("other.crt"), OTHER_AUTHORITY).unwrap();
        kubeconfig["clusters"][0]["cluster"]["certificate-authority"] = json!(dir.join("other.crt"));
    };
    let (space, line) = complaint("authority", wrong, None);
    let dir = space.dir().display();
    let expected = format!(
        "the certificate of {address} is not trusted: it is signed by somebody else; kubeconfig {dir}/operator.kubeconfig says \
         to check it with its certificate-authority {dir}/other.crt"
    );
    assert_eq!((&line["level"], &line["error"]), (&json!("ERROR"), &json!(expected)));
}

#[test]
fn a_missing_namespace_of_the_lease_is_told_once() {
    let (_space, line) = complaint("lease", |_, _| {}, Some("nowhere"));
    let expected =
        "namespaces \"nowhere\" not found; create the namespace, or name another with --lease-namespace";
    assert_eq!((&line["level"], &line["error"]), (&json!("WARN"), &json!(expected)));
}
