//! Where the API server is and what it is to know us by: the kubeconfig that is named, else the pod's service account.
//!
//! Owns the words for what is wrong with either: which file, what in it, what to do. *Must not* make a request, nor fall back
//! from a kubeconfig that cannot be used to other credentials: they may lead to a cluster that nobody meant.

use std::env;
use std::error::Error as StdError;
use std::io;
use std::path::PathBuf;

use kube::Config;
use kube::config::{Cluster, Context, KubeConfigOptions, Kubeconfig, KubeconfigError, LoadDataError};
use rustls::CertificateError;

use crate::errors::{chain, message};
use crate::names::Namespace;

/// Set in every container by Kubernetes.
const IN_CLUSTER: &str = "KUBERNETES_SERVICE_HOST";
const ACCOUNT: &str = "the pod's service account";
const ACCOUNT_AUTHORITY: &str = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";
/// Names that an error shows of those there are.
const NAMES_SHOWN_MAX: usize = 10;

/// Why nobody knows where the API server is, or how to speak with it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(
        "no cluster to connect to: there is neither a kubeconfig (KUBECONFIG or ~/.kube/config) nor a service account of a pod"
    )]
    Nowhere,
    #[error("{credentials}: {problem}")]
    Unusable { credentials: String, problem: String },
}

/// The API server and the way to it.
pub(crate) struct Access {
    pub(crate) config: Config,
    /// That of the kubeconfig's context, or of the service account.
    pub(crate) namespace: Namespace,
    pub(crate) server: ApiServer,
}

/// The API server, for people.
#[derive(Clone, Debug)]
pub(crate) struct ApiServer {
    pub(crate) address: String,
    /// Where what we show it is from.
    pub(crate) credentials: String,
    /// What its certificate is checked with.
    authority: String,
}

/// As the environment says.
pub(crate) async fn find() -> Result<Access, Error> {
    let files = kubeconfigs();
    if !files.is_empty() {
        return read(&files).await;
    }
    if env::var_os(IN_CLUSTER).is_none() {
        return Err(Error::Nowhere);
    }
    let unusable = |problem| Error::Unusable { credentials: ACCOUNT.to_owned(), problem };
    let config = Config::incluster().map_err(|error| {
        unusable(format!("{}; does the pod set automountServiceAccountToken to false?", chain(&error)))
    })?;
    let namespace = namespace(&config).map_err(unusable)?;
    let server = ApiServer {
        address: address(&config),
        credentials: ACCOUNT.to_owned(),
        authority: ACCOUNT_AUTHORITY.to_owned(),
    };
    Ok(Access { config, namespace, server })
}

/// The files of `KUBECONFIG`; without it the usual one, if there is one.
fn kubeconfigs() -> Vec<PathBuf> {
    let named = env::var_os("KUBECONFIG").unwrap_or_default();
    let named: Vec<PathBuf> = env::split_paths(&named).filter(|file| !file.as_os_str().is_empty()).collect();
    if !named.is_empty() {
        return named;
    }
    // In a container the home folder may be somebody else's; what cannot be looked at counts as not there.
    let usual = env::home_dir().map(|home| home.join(".kube/config"));
    usual.filter(|file| file.exists()).into_iter().collect()
}

/// As these files say, of which the first that says something counts.
async fn read(files: &[PathBuf]) -> Result<Access, Error> {
    let unusable = |problem| unusable(files, problem);
    let mut kubeconfig = Kubeconfig::default();
    for file in files {
        let named =
            |error| self::unusable(std::slice::from_ref(file), problem(&error, &Kubeconfig::default()));
        let next = Kubeconfig::read_from(file).map_err(named)?;
        kubeconfig = kubeconfig.merge(next).map_err(named)?;
    }
    let config = Config::from_custom_kubeconfig(kubeconfig.clone(), &KubeConfigOptions::default())
        .await
        .map_err(|error| unusable(problem(&error, &kubeconfig)))?;
    let authority = authority(&kubeconfig);
    if config.root_cert.as_ref().is_some_and(Vec::is_empty) {
        return Err(unusable(format!("{authority} holds no certificate in PEM")));
    }
    let namespace = namespace(&config).map_err(unusable)?;
    let server = ApiServer { address: address(&config), credentials: credentials(files), authority };
    Ok(Access { config, namespace, server })
}

fn unusable(files: &[PathBuf], problem: String) -> Error {
    Error::Unusable { credentials: credentials(files), problem }
}

fn credentials(files: &[PathBuf]) -> String {
    let files: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
    format!("kubeconfig {}", files.join(", "))
}

fn namespace(config: &Config) -> Result<Namespace, String> {
    let namespace = match config.default_namespace.trim() {
        "" => "default",
        namespace => namespace,
    };
    namespace.parse().map_err(|error| format!("its namespace is {namespace:?}, but {error}"))
}

/// Without what a URL may hold of credentials.
fn address(config: &Config) -> String {
    let url = &config.cluster_url;
    let authority = url.authority().map_or("", |authority| authority.as_str());
    let host = authority.rsplit('@').next().unwrap_or_default();
    format!("{}://{host}", url.scheme_str().unwrap_or("http"))
}

/// What the certificate of the current context's API server is checked with.
fn authority(kubeconfig: &Kubeconfig) -> String {
    match current_cluster(kubeconfig) {
        Some(Cluster { certificate_authority_data: Some(_), .. }) => {
            "its certificate-authority-data".to_owned()
        }
        Some(Cluster { certificate_authority: Some(file), .. }) => {
            format!("its certificate-authority {file}")
        }
        Some(_) | None => "this machine's certificate store, naming no certificate-authority".to_owned(),
    }
}

fn current_context(kubeconfig: &Kubeconfig) -> Option<&Context> {
    let name = kubeconfig.current_context.as_ref()?;
    kubeconfig.contexts.iter().find(|context| context.name == *name)?.context.as_ref()
}

fn current_cluster(kubeconfig: &Kubeconfig) -> Option<&Cluster> {
    let name = &current_context(kubeconfig)?.cluster;
    kubeconfig.clusters.iter().find(|cluster| cluster.name == *name)?.cluster.as_ref()
}

/// What is wrong with a kubeconfig, of which `kubeconfig` could be read, and what to do.
fn problem(error: &KubeconfigError, kubeconfig: &Kubeconfig) -> String {
    let contexts = || names(kubeconfig.contexts.iter().map(|context| &context.name));
    match error {
        KubeconfigError::ReadConfig(source, _) => format!("cannot be read: {source}"),
        // A snippet of the text could show a token.
        KubeconfigError::Parse(source) => format!("is no kubeconfig: {}", source.without_snippet()),
        KubeconfigError::CurrentContextNotSet if kubeconfig.contexts.is_empty() => {
            "has no context, so it leads to no cluster; name another file in KUBECONFIG".to_owned()
        }
        KubeconfigError::CurrentContextNotSet => {
            format!("has no current-context; choose one with kubectl config use-context: {}", contexts())
        }
        KubeconfigError::LoadContext(name) => format!(
            "its current-context is {name:?}, which it does not have; choose one with kubectl config use-context: {}",
            contexts()
        ),
        KubeconfigError::LoadClusterOfContext(name) => format!(
            "its current context is for the cluster {name:?}, which it does not have; it has {}",
            names(kubeconfig.clusters.iter().map(|cluster| &cluster.name))
        ),
        KubeconfigError::MissingClusterUrl => "its current context's cluster has no server".to_owned(),
        KubeconfigError::ParseClusterUrl(source) => {
            format!("the server of its current context's cluster is no URL: {source}")
        }
        KubeconfigError::LoadCertificateAuthority(source) => data("certificate-authority", source),
        KubeconfigError::LoadClientCertificate(source) => data("client-certificate", source),
        KubeconfigError::LoadClientKey(source) => data("client-key", source),
        other => chain(other),
    }
}

fn data(field: &str, error: &LoadDataError) -> String {
    match error {
        LoadDataError::ReadFile(source, file) => {
            format!("its {field} {} cannot be read: {source}", file.display())
        }
        LoadDataError::DecodeBase64(source) => format!("its {field}-data is not base64: {source}"),
        LoadDataError::NoBase64DataOrFile => format!("it lacks the {field}"),
    }
}

fn names<'a>(names: impl Iterator<Item = &'a String>) -> String {
    let mut names = names.map(String::as_str);
    let mut shown: Vec<&str> = names.by_ref().take(NAMES_SHOWN_MAX).collect();
    if shown.is_empty() {
        return "none".to_owned();
    }
    if names.next().is_some() {
        shown.push("...");
    }
    shown.join(", ")
}

impl ApiServer {
    /// No client can be made of the settings.
    pub(crate) fn unusable(&self, error: &kube::Error) -> Error {
        let problem = match error {
            kube::Error::InferKubeconfig(error) => problem(error, &Kubeconfig::default()),
            other => chain(other),
        };
        Error::Unusable { credentials: self.credentials.clone(), problem }
    }

    /// Why a request failed, with what to look at.
    pub(crate) fn explain(&self, error: &kube::Error) -> String {
        let Self { address, credentials, authority } = self;
        if let kube::Error::Api(status) = error {
            let said = message(status);
            return match status.code {
                401 => format!("{address} refuses the credentials of {credentials}: {said}"),
                _ => format!("{address} answers: {said}"),
            };
        }
        match certificate_error(error) {
            Some(source) => {
                let why = match source {
                    CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                        "it is signed by somebody else".to_owned()
                    }
                    other => other.to_string(),
                };
                format!(
                    "the certificate of {address} is not trusted: {why}; {credentials} says to check it with {authority}"
                )
            }
            None => format!("{address}: {}", chain(error)),
        }
    }
}

/// What TLS has against the server's certificate, if that is the cause.
fn certificate_error<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a CertificateError> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(rustls::Error::InvalidCertificate(error)) = error.downcast_ref() {
            return Some(error);
        }
        // What an I/O error holds is not what it names as its source.
        let held = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = held.map(|held| held as &(dyn StdError + 'static)).or_else(|| error.source());
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_the_cause_however_often_it_is_wrapped() {
        let refused = || rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        for error in [io::Error::other(refused()), io::Error::other(io::Error::other(refused()))] {
            let error = kube::Error::Service(Box::new(error));
            assert_eq!(certificate_error(&error), Some(&CertificateError::UnknownIssuer));
        }
        assert_eq!(certificate_error(&kube::Error::Service(Box::new(io::Error::other("broken")))), None);
    }

    #[test]
    fn an_address_shows_no_credentials() {
        let of = |url| address(&Config::new(hyper::Uri::from_static(url)));
        assert_eq!(of("https://me:secret@example.org:6443/path"), "https://example.org:6443");
        assert_eq!(of("https://[::1]:6443"), "https://[::1]:6443");
    }
}
