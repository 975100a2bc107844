//! A real Kubernetes control plane, and pods that are processes of this machine.
//!
//! [`control_plane`] starts etcd, kube-apiserver and kube-controller-manager; [`kubelet`] brings pods to life without containers;
//! [`front`] stands between two who speak HTTP, counts and breaks; [`operator`] runs the operator with the rights it is
//! installed with; [`space`] is what a test works in: a namespace, a client and `kubectl`. [`guard`] sees to it that nothing
//! of this outlives the test's process. Owns what it starts and the namespaces it makes, and nothing else on the machine
//! or in the cluster. Endpoints refuse loopback addresses, so Services lead nowhere here.

pub mod control_plane;
pub mod front;
pub mod guard;
pub mod kubelet;
pub mod operator;
pub mod space;

use std::sync::OnceLock;

use tokio::runtime::Runtime;

/// Where clients, kubelets and fronts of this process run; tests themselves are ordinary code.
pub(crate) fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(2).enable_all().build().expect("the machine has room for two threads")
    })
}
