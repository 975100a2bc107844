#!/usr/bin/env bash
# Makes sure that what a make target needs is there; quick when it is. Run as
#   scripts/setup.sh [rust] [postgres] [faketime] [go] [controlplane] [helm] [node] [deny] [shellcheck] [promtool]
# rust:     cargo and a C compiler
# postgres: the server programs (postgres, initdb) and psql; installed with apt where that is possible
# faketime: libfaketime, for the tests of clocks that jump; without it these are skipped, so that its absence is no failure
# go:       Go, to build verifiers of the log that are not ours, from their published modules
# controlplane: etcd, kube-apiserver, kube-controller-manager and kubectl, see scripts/controlplane.sh; after go
# helm:     helm, built from its published Go module below .tools when it is missing or of another version; after go
# node:     what e2e/node/run.sh needs of the system to run containers: runc, network plugins, iptables, and buildah for the image
# deny:     cargo-deny, installed below .tools when it is missing or too old
# promtool, shellcheck: for the alerts and the shell scripts; without them these are not checked, so that their absence is no failure
set -euo pipefail
cd "$(dirname "$0")/.."

# The version that deny.toml is written for.
readonly DENY_VERSION=0.20.2
# The version that the tests of the chart run.
readonly HELM_MODULE=helm.sh/helm/v4 HELM_VERSION=v4.3.1
export PATH="$PWD/.tools/bin:$HOME/.cargo/bin:$PATH"

fail() {
    echo "setup: $*" >&2
    exit 1
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo -n "$@"; fi
}

can_apt() {
    command -v apt-get >/dev/null && { [ "$(id -u)" -eq 0 ] || sudo -n true 2>/dev/null; }
}

apt_updated=
apt_update() {
    [ -z "$apt_updated" ] || return 0
    as_root apt-get update -q || echo "setup: apt-get update failed; trying with the package lists there are"
    apt_updated=yes
}

apt_install() {
    apt_update
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$@"
}

need_rust() {
    command -v cargo >/dev/null || fail "cargo is missing: install Rust from https://rustup.rs"
    command -v cc >/dev/null && return
    can_apt || fail "a C compiler is missing: install it, for example with 'apt-get install build-essential'"
    echo "setup: installing a C compiler"
    apt_install build-essential
}

has_postgres() {
    local dir
    command -v psql >/dev/null || return 1
    # Debian keeps the server's programs out of PATH.
    for dir in ${PATH//:/ } /usr/lib/postgresql/*/bin; do
        if [ -x "$dir/postgres" ] && [ -x "$dir/initdb" ]; then return 0; fi
    done
    return 1
}

need_postgres() {
    has_postgres && return
    can_apt || fail "PostgreSQL is missing: install it, for example with 'apt-get install postgresql'"
    echo "setup: installing PostgreSQL"
    # Debian's package would create a database cluster and start it; Certeus starts private servers only.
    apt_install postgresql-common
    local conf=/etc/postgresql-common/createcluster.conf
    if [ -e "$conf" ]; then
        as_root cp -p "$conf" "$conf.certeus-setup"
        as_root sed -i '1i create_main_cluster = false' "$conf"
    fi
    local status=0
    apt_install postgresql || status=$?
    if [ -e "$conf.certeus-setup" ]; then as_root mv "$conf.certeus-setup" "$conf"; fi
    [ "$status" -eq 0 ] || fail "apt-get could not install postgresql"
    has_postgres || fail "postgresql is installed, but postgres and initdb are not in /usr/lib/postgresql/*/bin"
}

has_faketime() {
    local library
    for library in /usr/lib/*/faketime/libfaketimeMT.so.1 /usr/lib64/faketime/libfaketimeMT.so.1; do
        if [ -e "$library" ]; then return 0; fi
    done
    return 1
}

need_faketime() {
    has_faketime && return
    if can_apt && echo "setup: installing libfaketime" && apt_install libfaketime; then return; fi
    echo "setup: libfaketime is missing: the tests of clocks that jump will be skipped"
}

has_deny() {
    local found
    found=$(cargo-deny --version 2>/dev/null) || return 1
    printf '%s\n' "$DENY_VERSION" "${found##* }" | sort -V -C
}

need_go() {
    # Any Go from 1.21 on fetches the release that a module asks for by itself.
    local found
    found=$(go env GOVERSION 2>/dev/null) || found=
    if [ -n "$found" ] && printf '%s\n' go1.21 "$found" | sort -V -C; then return; fi
    can_apt || fail "Go 1.21 or newer is missing: install it from https://go.dev/dl"
    echo "setup: installing Go"
    apt_install golang-go
    found=$(go env GOVERSION)
    printf '%s\n' go1.21 "$found" | sort -V -C || fail "$found is too old: install Go 1.21 or newer from https://go.dev/dl"
}

need_controlplane() {
    # With an existing cluster the tests need kubectl alone.
    if [ "${USE_EXISTING_CLUSTER:-}" = 1 ]; then
        command -v kubectl >/dev/null || fail "kubectl is missing: install it from https://kubernetes.io/docs/tasks/tools"
        return
    fi
    scripts/controlplane.sh >/dev/null
}

has_helm() {
    # What helm says of its own version when it was built from a module is not exact.
    go version -m .tools/bin/helm 2>/dev/null | grep -qP "^\tmod\t$HELM_MODULE\t$HELM_VERSION\t"
}

need_helm() {
    has_helm && return
    echo "setup: building helm $HELM_VERSION below .tools; this takes some minutes, once"
    GOBIN="$PWD/.tools/bin" GOFLAGS=-trimpath go install -ldflags='-s -w' "$HELM_MODULE/cmd/helm@$HELM_VERSION"
}

need_node() {
    if command -v runc && command -v buildah && command -v iptables && [ -x /usr/lib/cni/bridge ]; then return; fi >/dev/null
    can_apt || fail "runc, buildah, iptables and the CNI plugins in /usr/lib/cni are needed: install them"
    echo "setup: installing runc, buildah, iptables and CNI plugins"
    apt_install runc buildah iptables iproute2 containernetworking-plugins openssl
}

need_deny() {
    has_deny && return
    echo "setup: building cargo-deny $DENY_VERSION below .tools; this takes a minute or two, once"
    # Optimised it would take more than twice as long to build, to save two seconds of a check.
    cargo install cargo-deny --locked --version "$DENY_VERSION" --root .tools --debug
}

need_shellcheck() {
    command -v shellcheck >/dev/null && return
    if can_apt && echo "setup: installing shellcheck" && apt_install shellcheck; then return; fi
    echo "setup: shellcheck is missing: the shell scripts will not be checked"
}

need_promtool() {
    command -v promtool >/dev/null && return
    # Debian's package of it would start a Prometheus: only this program is taken out of it.
    local dir
    dir=$(mktemp -d)
    if can_apt && echo "setup: unpacking promtool below .tools" && apt_update \
        && (cd "$dir" && apt-get -o APT::Sandbox::User=root download -q prometheus && dpkg -x prometheus_*.deb .); then
        install -D "$dir/usr/bin/promtool" .tools/bin/promtool
    else
        echo "setup: promtool is missing: the alerts will not be tried"
    fi
    rm -rf "$dir"
}

for need in "$@"; do
    case $need in
        rust | postgres | faketime | go | controlplane | helm | node | deny | shellcheck | promtool) "need_$need" ;;
        *) fail "unknown need '$need'" ;;
    esac
done
