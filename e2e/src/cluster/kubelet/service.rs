//! What a cluster's DNS does for containers that name a Service (`NAME.NAMESPACE.svc`), without DNS.
//!
//! Each such Service gets an address of this machine, at which every one of its ports leads to a pod that is ready, asked for
//! anew with each connection: so one that takes another's place is found, as by a name. Knows Services of the kubelet's own
//! namespace whose selector picks pods, and TCP. A connection is closed at once while no pod is ready.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::Api;
use kube::api::ListParams;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::Shared;
use super::exec::port_of;
use super::template::{Waiting, not_yet};

/// A Service that some container names.
#[derive(Debug)]
pub(super) struct Reachable {
    address: Ipv4Addr,
    /// Listeners and connections; they end with it.
    _tasks: JoinSet<()>,
}

/// The text with names of Services replaced by addresses that lead to their pods.
pub(super) async fn resolve(shared: &Shared, text: &str) -> Result<String, Waiting> {
    let suffix = format!(".{}.svc", shared.namespace);
    let (mut out, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once(&suffix) {
        let start = before.rfind(|character: char| !character.is_ascii_alphanumeric() && character != '-');
        let (before, name) = before.split_at(start.map_or(0, |start| start + 1));
        out += before;
        out += &address_of(shared, name).await?.to_string();
        rest = after.strip_prefix(".cluster.local").unwrap_or(after);
    }
    Ok(out + rest)
}

async fn address_of(shared: &Shared, name: &str) -> Result<Ipv4Addr, Waiting> {
    let mut reachable = shared.services.lock().await;
    if let Some(service) = reachable.get(name) {
        return Ok(service.address);
    }
    let services: Api<Service> = Api::namespaced(shared.client.clone(), &shared.namespace);
    let found = services.get_opt(name).await.map_err(|error| not_yet(error.to_string()))?;
    let spec = found
        .and_then(|service| service.spec)
        .ok_or_else(|| not_yet(format!("there is no Service {name}")))?;
    let selector = spec.selector.unwrap_or_default();
    let labels: Vec<String> = selector.iter().map(|(label, value)| format!("{label}={value}")).collect();
    let pods = Api::namespaced(shared.client.clone(), &shared.namespace);
    let (address, mut tasks) = (shared.take_address(), JoinSet::new());
    for port in spec.ports.into_iter().flatten() {
        let number = u16::try_from(port.port).map_err(|error| not_yet(error.to_string()))?;
        let listener = TcpListener::bind((address, number)).await;
        let listener = listener.map_err(|error| not_yet(error.to_string()))?;
        let port = port.target_port.unwrap_or(IntOrString::Int(port.port));
        let target = Target { pods: pods.clone(), selector: labels.join(","), port };
        tasks.spawn(serve(listener, Arc::new(target)));
    }
    reachable.insert(name.to_owned(), Reachable { address, _tasks: tasks });
    Ok(address)
}

/// One port of the pods behind a Service.
struct Target {
    pods: Api<Pod>,
    selector: String,
    port: IntOrString,
}

async fn serve(listener: TcpListener, target: Arc<Target>) {
    let mut connections = JoinSet::new();
    while let Ok((mut inner, _from)) = listener.accept().await {
        let target = Arc::clone(&target);
        connections.spawn(async move {
            let Some(mut outer) = target.connect().await else { return };
            // Neither end waits for more to send, and so must not what is between them.
            let _slower = (inner.set_nodelay(true), outer.set_nodelay(true));
            // Whichever end breaks it, the other one sees it end.
            let _ended = tokio::io::copy_bidirectional(&mut inner, &mut outer).await;
        });
        while connections.try_join_next().is_some() {}
    }
}

impl Target {
    async fn connect(&self) -> Option<TcpStream> {
        let pods = self.pods.list(&ListParams::default().labels(&self.selector)).await.ok()?;
        let place = pods.iter().find_map(|pod| {
            let status = pod.status.as_ref()?;
            let mut conditions = status.conditions.iter().flatten();
            conditions.find(|condition| condition.type_ == "Ready" && condition.status == "True")?;
            let address: IpAddr = status.pod_ip.as_ref()?.parse().ok()?;
            Some((address, port_of(pod.spec.as_ref()?.containers.first()?, &self.port)?))
        });
        TcpStream::connect(place?).await.ok()
    }
}
