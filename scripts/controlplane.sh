#!/usr/bin/env bash
# Prints the folder that holds etcd, kube-apiserver, kube-controller-manager and kubectl; the tests against a real control plane
# use it. The first of these that has all four: KUBEBUILDER_ASSETS, PATH, our cache. If none has, the programs are built into the
# cache from their published Go modules (e2e/controlplane); that takes some five minutes, once.
set -euo pipefail
cd "$(dirname "$0")/../e2e/controlplane"

readonly PROGRAMS=(etcd kube-apiserver kube-controller-manager kubectl)
# The Go release that Kubernetes 1.36 is made with: with a newer one's JSON package the server's OpenAPI is broken.
readonly GO=go1.26

has_all() {
    local program
    for program in "${PROGRAMS[@]}"; do [ -x "$1/$program" ] || return 1; done
}

# Succeeds when the folder has all programs, and ends the script then.
use() {
    if [ -n "$1" ] && has_all "$1"; then
        (cd "$1" && pwd)
        exit 0
    fi
}

build() {
    local version=$1 folder=$2 found
    # Not local: what is to be cleaned up is named when the script ends.
    building='' compiler=''
    found=$(go env GOVERSION 2>/dev/null) || { echo "controlplane: Go is missing: run scripts/setup.sh go" >&2; exit 1; }
    case $found in
        "$GO" | "$GO".*) export GOTOOLCHAIN=local ;;
        *) export GOTOOLCHAIN=$GO.0 ;;
    esac
    echo "controlplane: building etcd and Kubernetes $version into $folder; this takes some minutes, once" >&2
    local started=$SECONDS
    mkdir -p "$folder"
    # Under a name of its own, so that nobody takes a part of a program for one.
    building=$(mktemp "$folder/building.XXXXXX")
    local set=k8s.io/component-base/version minor=${version#v1.}
    local flags="-s -w -X $set.gitVersion=$version -X $set.gitMajor=1 -X $set.gitMinor=${minor%%.*}"
    CGO_ENABLED=0 GOFLAGS=-mod=readonly go build -trimpath -buildvcs=false -ldflags "$flags" -o "$building" . >&2 &
    compiler=$!
    # Whoever stops this stops the compiler, too.
    trap 'kill "$compiler" 2>/dev/null; rm -f "$building"' EXIT
    while kill -0 "$compiler" 2>/dev/null; do
        sleep 5
        if [ $(((SECONDS - started) / 5 % 6)) -eq 0 ]; then echo "controlplane: building for $((SECONDS - started)) s" >&2; fi
    done
    wait "$compiler" || { echo "controlplane: the build failed" >&2; exit 1; }
    trap - EXIT
    chmod 755 "$building"
    mv "$building" "$folder/controlplane"
    local program
    for program in "${PROGRAMS[@]}"; do ln -sf controlplane "$folder/$program"; done
}

use "${KUBEBUILDER_ASSETS:-}"
path=$(command -v kube-apiserver || true)
use "${path%/*}"
version=$(sed -n 's/^\tk8s.io\/kubernetes //p' go.mod)
hash=$(cat go.mod go.sum main.go | sha256sum | cut -c 1-12)
folder=${XDG_CACHE_HOME:-$HOME/.cache}/certeus/controlplane/$version-$hash
if has_all "$folder"; then use "$folder"; fi
# One at a time: whoever waited finds what the other built.
mkdir -p "${folder%/*}"
exec 9>"${folder%/*}/lock"
if command -v flock >/dev/null; then
    flock 9
    # What a build that was killed left behind.
    rm -f "$folder"/building.*
fi
has_all "$folder" || build "$version" "$folder" 9>&-
use "$folder"
