//! The command line: options, help and exit codes.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::names::{Namespace, PodName};
use crate::run::LogFilter;

/// Exit codes, as the help documents them. 2 is what clap uses for wrong usage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    Failure = 1,
    InvalidManifests = 3,
    NotInstalled = 4,
    AddressInUse = 5,
    OtherInstance = 6,
    NoCluster = 7,
    LeaseLost = 8,
}

const EXIT_CODES: &str = "\
Exit codes:
  0  success
  1  failure
  2  wrong usage
  3  the manifests are invalid
  4  a program that is needed is not installed
  5  an address is in use
  6  another local instance is running, or none is
  7  there is no Kubernetes cluster to connect to
  8  another operator took the lease, or it could not be renewed";

/// Runs verifiable event ledgers: reconciles LedgerCluster and AlertRule.
#[derive(Debug, Parser)]
#[command(name = "certeus-operator", version = certeus_operator::version(), after_help = EXIT_CODES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Reconciles LedgerClusters and AlertRules on Kubernetes, until SIGTERM.
    #[command(after_help = RUN_EXAMPLES)]
    Run(RunArgs),
    /// Runs the manifests of a folder on this machine, without Kubernetes, until Ctrl-C.
    #[command(after_help = LOCAL_EXAMPLES)]
    Local(LocalArgs),
    /// Shows what `kubectl get` would show of the running local instance.
    #[command(after_help = STATUS_EXAMPLES)]
    Status(StatusArgs),
    /// Stops the running local instance and cleans up what a killed one left.
    #[command(after_help = DOWN_EXAMPLES)]
    Down(DownArgs),
    /// Prints the CustomResourceDefinitions as YAML, for `kubectl apply -f -`.
    Crd,
    /// Prints shell completions.
    #[command(
        after_help = "Example:\n  certeus-operator completions bash > ~/.local/share/bash-completion/completions/certeus-operator"
    )]
    Completions {
        /// The shell.
        shell: Shell,
    },
}

const RUN_EXAMPLES: &str = "\
Examples:
  certeus-operator run                            all namespaces, as the kubeconfig or the pod's account allows
  certeus-operator run --namespace ledgers --namespace audit
  certeus-operator run --listen 127.0.0.1:0 --log-level info,certeus_operator=debug

Several may run: one holds the lease and works, the others stand by.
The port serves /metrics, /healthz, /readyz and, to the loopback address alone,
  curl -X PUT -d debug localhost:9090/loglevel";

const LOCAL_EXAMPLES: &str = "\
Examples:
  certeus-operator local                          the manifests in config/samples
  certeus-operator local -f my-cluster/ --api-listen 127.0.0.1:9000
  certeus-operator local --dataplane target/debug/certeus-dataplane

The manifests may be edited while it runs. Ctrl-C drains the pods, then stops
them and PostgreSQL; a second Ctrl-C stops everything at once.";

const STATUS_EXAMPLES: &str = "\
Examples:
  certeus-operator status
  certeus-operator status -o wide
  psql \"$(cat $(certeus-operator status -o json | jq -r .databaseUrlFile))\"";

const DOWN_EXAMPLES: &str = "\
Examples:
  certeus-operator down
  certeus-operator down --purge                   also removes the database with all events";

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// A namespace to work in; may be given several times, or as a list with commas [default: all of them].
    #[arg(
        long = "namespace",
        short = 'n',
        value_name = "NAMESPACE",
        env = "CERTEUS_NAMESPACES",
        value_delimiter = ','
    )]
    pub(crate) namespaces: Vec<Namespace>,
    /// Namespace of the lease [default: the operator's own].
    #[arg(long, value_name = "NAMESPACE")]
    pub(crate) lease_namespace: Option<Namespace>,
    /// Address for metrics, health and the log level; [::] is every address, of IPv4 as well.
    #[arg(long, value_name = "ADDRESS", default_value = "[::]:9090")]
    pub(crate) listen: SocketAddr,
    /// off, error, warn, info, debug, trace, or directives such as info,certeus_operator=debug.
    #[arg(long, value_name = "LEVEL", default_value = "info", env = "CERTEUS_LOG_LEVEL")]
    pub(crate) log_level: LogFilter,
    /// The operator's own pod, as its name in the lease and in Events [default: the host's name].
    #[arg(long, value_name = "NAME", env = "POD_NAME")]
    pub(crate) pod_name: Option<PodName>,
    /// The operator's own namespace [default: that of the pod's account, or of the kubeconfig].
    #[arg(long, value_name = "NAMESPACE", env = "POD_NAMESPACE")]
    pub(crate) pod_namespace: Option<Namespace>,
}

#[derive(Debug, Args)]
pub(crate) struct LocalArgs {
    /// Folder with YAML manifests: one LedgerCluster, and the Secrets and AlertRules that belong to it.
    #[arg(short = 'f', long = "manifests", value_name = "DIR", default_value = "config/samples")]
    pub(crate) manifests: PathBuf,
    /// Address that all pods share for the API. Port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8000")]
    pub(crate) api_listen: SocketAddr,
    /// Admin port of pod 0 on 127.0.0.1; pod N has the port N higher. 0 takes free ones.
    #[arg(long, value_name = "PORT", default_value_t = 9090)]
    pub(crate) admin_port: u16,
    /// The pod binary [default: certeus-dataplane beside this program].
    #[arg(long, value_name = "FILE")]
    pub(crate) dataplane: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) state: StateArgs,
}

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// What to print.
    #[arg(short, long, value_name = "FORMAT")]
    pub(crate) output: Option<Output>,
    #[command(flatten)]
    pub(crate) state: StateArgs,
}

#[derive(Debug, Args)]
pub(crate) struct DownArgs {
    /// Also remove the database, the pods' volumes and the logs.
    #[arg(long)]
    pub(crate) purge: bool,
    #[command(flatten)]
    pub(crate) state: StateArgs,
}

#[derive(Debug, Args)]
pub(crate) struct StateArgs {
    /// Folder for data, logs and state [default: $XDG_STATE_HOME/certeus or ~/.local/state/certeus; as root
    /// /var/lib/certeus].
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
}

/// Output formats of `status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// Tables with further columns.
    Wide,
    /// The whole state as YAML.
    Yaml,
    /// The whole state as JSON.
    Json,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::Cli;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }
}
