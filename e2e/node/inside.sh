#!/usr/bin/env bash
# Starts PostgreSQL, a control plane and a node in the namespaces that run.sh made, and then the scenario. When this ends, so does
# every process in them.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PATH=$PWD/.tools/bin:$CONTROL_PLANE:$NODE_BIN:$PROGRAMS:/usr/sbin:/sbin:$PATH
# Of the node, for pods and for PostgreSQL; nothing leaves this network.
readonly NODE=10.100.0.1
readonly SOCKET=/run/containerd/containerd.sock
export KUBECONFIG=$WORK/kubeconfig DATABASE_URL=postgres://certeus:certeus@$NODE:5432/certeus

fail() {
    echo "node: $*" >&2
    tail -n 5 "$WORK"/*.log >&2
    exit 1
}

start() {
    local name=$1
    shift
    "$@" >"$WORK/$name.log" 2>&1 &
}

# Until a command succeeds.
until_ok() {
    local what=$1 until=$((SECONDS + 120))
    shift
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$until" ] || fail "$what is not there after 120 s"
        sleep 0.3
    done
}

network() {
    # What programs leave in fixed places stays here.
    mount -t tmpfs tmpfs /run
    mount -t tmpfs tmpfs /var/log
    ip link set lo up
    ip link add node0 type bridge
    ip addr add "$NODE/32" dev node0
    ip link set node0 up
    # Of Services, for clients on the node; kube-proxy has changed the address before anything is sent there.
    ip route add 10.96.0.0/16 dev node0
    sysctl -q -w net.ipv4.ip_forward=1
    mkdir "$WORK/cni"
    cat >"$WORK/cni/10-pods.conflist" <<EOF
{"cniVersion": "0.4.0", "name": "pods", "plugins": [{"type": "bridge", "bridge": "pods0", "isGateway": true, "ipMasq": true,
 "hairpinMode": true, "ipam": {"type": "host-local", "dataDir": "$WORK/addresses",
 "ranges": [[{"subnet": "10.244.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}
EOF
}

postgres() {
    local bin user=postgres data=$WORK/postgres
    bin=$(dirname "$(printf '%s\n' /usr/lib/postgresql/*/bin/postgres "$(command -v postgres || true)" | grep . | sort -V | tail -n 1)")
    mkdir "$data" /run/postgresql
    chown "$user" "$data" /run/postgresql
    setpriv --reuid "$user" --regid "$user" --clear-groups "$bin/initdb" -D "$data" -A trust >/dev/null
    echo "host all all 10.0.0.0/8 scram-sha-256" >>"$data/pg_hba.conf"
    start postgresql setpriv --reuid "$user" --regid "$user" --clear-groups \
        "$bin/postgres" -D "$data" -c listen_addresses="$NODE" -c unix_socket_directories=/run/postgresql
    until_ok PostgreSQL psql -h /run/postgresql -U "$user" -c 'SELECT 1'
    psql -q -h /run/postgresql -U "$user" -c "CREATE ROLE certeus LOGIN PASSWORD 'certeus'" -c 'CREATE DATABASE certeus OWNER certeus'
}

certificates() {
    mkdir "$WORK/pki"
    cd "$WORK/pki"
    openssl genrsa -out accounts.key 2048
    openssl rsa -in accounts.key -pubout -out accounts.pub
    openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=ca -keyout ca.key -out ca.crt
    openssl req -newkey rsa:2048 -nodes -subj /CN=kube-apiserver -keyout api.key -out api.csr
    openssl x509 -req -in api.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -out api.crt \
        -extfile <(echo "subjectAltName=DNS:kubernetes.default.svc,IP:10.96.0.1,IP:$NODE")
    cd - >/dev/null
}

control_plane() {
    certificates 2>"$WORK/openssl.log"
    echo 'admin,admin,admin,system:masters' >"$WORK/tokens.csv"
    cat >"$KUBECONFIG" <<EOF
apiVersion: v1
kind: Config
clusters: [{name: node, cluster: {server: "https://$NODE:6443", certificate-authority: $WORK/pki/ca.crt}}]
users: [{name: admin, user: {token: admin}}]
contexts: [{name: node, context: {cluster: node, user: admin}}]
current-context: node
EOF
    start etcd etcd --data-dir="$WORK/etcd" --unsafe-no-fsync --log-level=warn
    start kube-apiserver kube-apiserver --etcd-servers=http://127.0.0.1:2379 --bind-address=0.0.0.0 --advertise-address="$NODE" \
        --secure-port=6443 --tls-cert-file="$WORK/pki/api.crt" --tls-private-key-file="$WORK/pki/api.key" \
        --cert-dir="$WORK/pki" --token-auth-file="$WORK/tokens.csv" --authorization-mode=RBAC \
        --service-account-issuer=https://kubernetes.default.svc --service-account-signing-key-file="$WORK/pki/accounts.key" \
        --service-account-key-file="$WORK/pki/accounts.pub" --service-cluster-ip-range=10.96.0.0/16 \
        --kubelet-preferred-address-types=InternalIP
    until_ok kube-apiserver kubectl get --raw /readyz
    start kube-controller-manager kube-controller-manager --kubeconfig="$KUBECONFIG" --leader-elect=false \
        --root-ca-file="$WORK/pki/ca.crt" --service-account-private-key-file="$WORK/pki/accounts.key" --use-service-account-credentials
    start kube-scheduler kube-scheduler --kubeconfig="$KUBECONFIG" --leader-elect=false
}

container_runtime() {
    cat >"$WORK/containerd.toml" <<EOF
version = 3
root = "$WORK/containerd"
[grpc]
address = "$SOCKET"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "certeus.io/pause:1"
[plugins.'io.containerd.cri.v1.runtime']
# Allowed to root alone where it has all of its capabilities.
restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["/usr/lib/cni", "/opt/cni/bin"]
conf_dir = "$WORK/cni"
EOF
    start containerd containerd --config "$WORK/containerd.toml"
    until_ok containerd ctr --address "$SOCKET" version
    local image
    for image in "$WORK"/images/*.tar; do
        ctr --address "$SOCKET" --namespace k8s.io images import "$image" >>"$WORK/images.log" 2>&1
        rm "$image"
    done
}

node() {
    # A group of its own in every hierarchy, for run.sh to remove; with version 2 there is one.
    local hierarchy
    if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
        mkdir -p /sys/fs/cgroup/certeus-node
    else
        for hierarchy in /sys/fs/cgroup/*/; do mkdir -p "${hierarchy}certeus-node"; done
    fi
    echo 'nameserver 127.0.0.1' >"$WORK/resolv.conf"
    cat >"$WORK/kubelet.yaml" <<EOF
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
cgroupDriver: cgroupfs
cgroupRoot: /certeus-node
failCgroupV1: false
failSwapOn: false
podLogsDir: $WORK/pod-logs
containerRuntimeEndpoint: unix://$SOCKET
resolvConf: $WORK/resolv.conf
seccompDefault: true
evictionHard: {nodefs.available: "1%", imagefs.available: "1%", memory.available: 50Mi}
EOF
    start kubelet kubelet --config="$WORK/kubelet.yaml" --kubeconfig="$KUBECONFIG" --root-dir="$WORK/kubelet" \
        --hostname-override=node --node-ip="$NODE"
    cat >"$WORK/kube-proxy.yaml" <<EOF
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: $KUBECONFIG}
mode: iptables
clusterCIDR: 10.244.0.0/24
hostnameOverride: node
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
EOF
    start kube-proxy kube-proxy --config="$WORK/kube-proxy.yaml"
    until_ok "the Node" kubectl get node node
    kubectl wait --for=condition=Ready node/node --timeout=120s >/dev/null || fail "the node is not ready"
}

# Volumes of the node, one for each pod that may ask.
volumes() {
    kubectl apply -f - <<EOF
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: local, annotations: {storageclass.kubernetes.io/is-default-class: "true"}}
provisioner: kubernetes.io/no-provisioner
volumeBindingMode: WaitForFirstConsumer
EOF
    local number
    for number in 1 2 3 4; do
        mkdir -p "$WORK/volumes/$number"
        kubectl apply -f - <<EOF
apiVersion: v1
kind: PersistentVolume
metadata: {name: volume-$number}
spec:
  capacity: {storage: 100Gi}
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Retain
  storageClassName: local
  local: {path: $WORK/volumes/$number}
  nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [node]}]}]}}
EOF
    done
}

echo "node: starting PostgreSQL, a control plane and a node" >&2
network
postgres
control_plane
container_runtime
node
volumes >/dev/null
e2e/node/scenario.sh "$@"
