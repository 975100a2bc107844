//! `certeus-operator run` as a process: what it says of arguments, kubeconfigs and credentials that are of no use. There is no
//! cluster here; with one see the end-to-end tests.
#![expect(clippy::unwrap_used, reason = "a failed test says where")]

use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;

const NOWHERE: &str = "neither a kubeconfig";

struct Ran {
    code: Option<i32>,
    errors: String,
}

/// Runs it with nothing but these variables and the home folder `home` in its environment.
fn run(home: &Path, variables: &[(&str, &str)], args: &[&str]) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_certeus-operator"));
    command.arg("run").args(args).args(["--listen", "127.0.0.1:0"]).stdin(Stdio::null());
    command.env_clear().env("HOME", home).envs(variables.iter().copied());
    let output = command.output().unwrap();
    Ran { code: output.status.code(), errors: String::from_utf8(output.stderr).unwrap() }
}

#[track_caller]
fn check_usage(variables: &[(&str, &str)], args: &[&str], expected: &str) {
    let home = TempDir::new().unwrap();
    let Ran { code, errors } = run(home.path(), variables, args);
    assert_eq!(code, Some(2), "{args:?}: {errors}");
    assert!(errors.contains(expected), "{args:?}: {errors}");
}

#[test]
fn arguments_that_name_nothing_are_wrong_usage() {
    let namespace = "a namespace's name has";
    check_usage(&[], &["--namespace", "A_b"], namespace);
    check_usage(&[], &["--namespace", ""], namespace);
    check_usage(&[], &["--namespace", "good,Bad"], "invalid value 'Bad' for '--namespace <NAMESPACE>'");
    check_usage(&[], &["--namespace", "good,"], namespace);
    check_usage(&[("CERTEUS_NAMESPACES", "good, spaced")], &[], namespace);
    check_usage(&[], &["--lease-namespace", "X y"], namespace);
    check_usage(&[], &["--pod-namespace", "a.b"], namespace);
    check_usage(&[("POD_NAMESPACE", "-a")], &[], namespace);
    check_usage(&[], &["--pod-name", ""], "a pod's name has");
    check_usage(&[("POD_NAME", "a..b")], &[], "a pod's name has");
    check_usage(&[], &["--log-level", "loud"], "a log level is off, error, warn, info, debug, trace, or");
    check_usage(&[("CERTEUS_LOG_LEVEL", "info,kube")], &[], "a log level is off");
}

#[test]
fn good_arguments_get_as_far_as_the_cluster() {
    let home = TempDir::new().unwrap();
    let args = ["--namespace", "a,b", "--lease-namespace", "c", "--pod-name", "op-0.x", "--log-level", "off"];
    let Ran { code, errors } = run(home.path(), &[], &args);
    assert_eq!(code, Some(7), "{errors}");
    assert!(errors.contains(NOWHERE), "{errors}");
}

/// A kubeconfig with this text in a file `config` is refused with exactly `expected`, in which FILE is that file and DIR its folder.
#[track_caller]
fn check(text: &str, expected: &str) {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("config");
    std::fs::write(&file, text).unwrap();
    let file = file.to_str().unwrap();
    let Ran { code, errors } = run(dir.path(), &[("KUBECONFIG", file)], &[]);
    let expected = expected.replace("FILE", file).replace("DIR", dir.path().to_str().unwrap());
    assert_eq!((code, errors.trim_end()), (Some(7), &expected[..]));
}

fn kubeconfig(cluster: &str, user: &str) -> String {
    format!(
        "{{ clusters: [{{ name: c, cluster: {cluster} }}], users: [{{ name: u, user: {user} }}], \
         contexts: [{{ name: here, context: {{ cluster: c, user: u }} }}], current-context: here }}"
    )
}

#[test]
fn a_kubeconfig_that_is_of_no_use_is_named_with_what_is_wrong_in_it() {
    check(
        "",
        "error: kubeconfig FILE: has no context, so it leads to no cluster; name another file in KUBECONFIG",
    );
    check(
        "contexts: [{ name: a, context: { cluster: c } }, { name: b }]",
        "error: kubeconfig FILE: has no current-context; choose one with kubectl config use-context: a, b",
    );
    check(
        "contexts: [{ name: a, context: { cluster: c } }]\ncurrent-context: b",
        "error: kubeconfig FILE: its current-context is \"b\", which it does not have; choose one with kubectl config \
         use-context: a",
    );
    check(
        "contexts: [{ name: a, context: { cluster: c } }]\ncurrent-context: a",
        "error: kubeconfig FILE: its current context is for the cluster \"c\", which it does not have; it has none",
    );
    check(
        &kubeconfig("{ server: https://localhost, certificate-authority: ca.crt }", "{}"),
        "error: kubeconfig FILE: its certificate-authority DIR/ca.crt cannot be read: No such file or directory (os error 2)",
    );
    check(
        &kubeconfig("{ server: https://localhost, certificate-authority: config }", "{}"),
        "error: kubeconfig FILE: its certificate-authority DIR/config holds no certificate in PEM",
    );
    check(
        &kubeconfig("{ server: https://localhost }", "{ client-certificate: me.crt, client-key: me.key }"),
        "error: kubeconfig FILE: its client-certificate DIR/me.crt cannot be read: No such file or directory (os error 2)",
    );
    check(&kubeconfig("{}", "{}"), "error: kubeconfig FILE: its current context's cluster has no server");
}

#[test]
fn a_kubeconfig_that_is_no_yaml_is_told_in_one_line_that_shows_none_of_it() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("config");
    std::fs::write(&file, "users:\n- name: u\n  user: { token: hush\nclusters: [\n").unwrap();
    let file = file.to_str().unwrap();
    let Ran { code, errors } = run(dir.path(), &[("KUBECONFIG", file)], &[]);
    assert_eq!(code, Some(7), "{errors}");
    assert!(errors.starts_with(&format!("error: kubeconfig {file}: is no kubeconfig: ")), "{errors}");
    assert!(errors.contains("line ") && !errors.contains("hush") && errors.lines().count() == 1, "{errors}");
}

#[test]
fn only_without_any_kubeconfig_there_is_none() {
    let home = TempDir::new().unwrap();
    let Ran { code, errors } = run(home.path(), &[], &[]);
    assert!(code == Some(7) && errors.contains(NOWHERE), "{errors}");

    // One that is named and missing is no reason to take another.
    let missing = [("KUBECONFIG", "/nowhere/config"), ("KUBERNETES_SERVICE_HOST", "127.0.0.1")];
    let Ran { code, errors } = run(home.path(), &missing, &[]);
    assert_eq!(code, Some(7));
    assert_eq!(
        errors,
        "error: kubeconfig /nowhere/config: cannot be read: No such file or directory (os error 2)\n"
    );

    // The one in the home folder counts without being named.
    let usual = home.path().join(".kube");
    std::fs::create_dir(&usual).unwrap();
    std::fs::write(usual.join("config"), "").unwrap();
    let Ran { errors, .. } = run(home.path(), &[], &[]);
    assert!(errors.contains(".kube/config: has no context"), "{errors}");
}

#[test]
fn a_pod_without_its_account_says_so() {
    let home = TempDir::new().unwrap();
    let pod = [("KUBERNETES_SERVICE_HOST", "127.0.0.1"), ("KUBERNETES_SERVICE_PORT", "443")];
    let Ran { code, errors } = run(home.path(), &pod, &[]);
    assert_eq!(code, Some(7), "{errors}");
    assert!(
        errors.starts_with("error: the pod's service account: ") && errors.contains("automount"),
        "{errors}"
    );
}
