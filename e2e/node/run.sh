#!/usr/bin/env bash
# Runs Certeus in containers on a real node: kubelet, containerd, runc, kube-proxy and a scheduler beside the control plane of the other
# tests, with the image of the Dockerfile's target `prebuilt`, installed by the chart. What happens there is in scenario.sh.
#   e2e/node/run.sh [keep]     keep: leave everything running until Ctrl-C, to look at it
# Needs root, and the optimised programs (`make build`). All of it runs in namespaces of its own for processes, mounts and the network:
# it reaches nothing outside, and when it ends, however it ends, nothing is left but a cache of programs.
set -euo pipefail
cd "$(dirname "$0")/../.."
here=$PWD/e2e/node
[ "$(id -u)" -eq 0 ] || { echo "node: containers and networks need root: run it as root" >&2; exit 1; }

# The version of a module that one of ours is about.
version_of() {
    (cd "$here/$1" && go list -mod=readonly -m -f '{{.Version}}' "$2")
}

# The programs of a node, built from their published Go modules once.
build_programs() {
    local hash flags
    hash=$(cat "$here"/*/go.mod "$here"/*/go.sum "$here/containerd/pause/main.go" | sha256sum | cut -c 1-12)
    NODE_BIN=${XDG_CACHE_HOME:-$HOME/.cache}/certeus/node/$hash
    [ -e "$NODE_BIN/complete" ] && return
    echo "node: building kubelet, kube-proxy, kube-scheduler and containerd into $NODE_BIN; this takes some ten minutes, once" >&2
    mkdir -p "$NODE_BIN"
    export GOBIN=$NODE_BIN CGO_ENABLED=0 GOFLAGS=-mod=readonly
    flags="-s -w -X k8s.io/component-base/version.gitVersion=$(version_of kubernetes k8s.io/kubernetes)"
    (cd "$here/kubernetes" && go install -trimpath -ldflags "$flags" tool)
    flags="-s -w -X github.com/containerd/containerd/v2/version.Version=$(version_of containerd github.com/containerd/containerd/v2)"
    (cd "$here/containerd" && go install -trimpath -ldflags "$flags" tool ./pause)
    touch "$NODE_BIN/complete"
}

# Writes the images that the node needs as archives, without a registry.
build_images() {
    local storage=(--root "$WORK/images/storage" --runroot "$WORK/images/run" --storage-driver vfs) container
    scripts/image.sh >/dev/null
    buildah "${storage[@]}" build --quiet --isolation chroot --target prebuilt --build-arg "TARGETARCH=$(dpkg --print-architecture)" \
        --tag docker.io/certeus/dataplane:0.1.0 . >/dev/null 2>&1
    buildah "${storage[@]}" push --quiet certeus/dataplane:0.1.0 \
        "docker-archive:$WORK/images/dataplane.tar:docker.io/certeus/dataplane:0.1.0"
    container=$(buildah "${storage[@]}" from scratch)
    buildah "${storage[@]}" copy --quiet "$container" "$NODE_BIN/pause" /pause >/dev/null
    buildah "${storage[@]}" config --entrypoint '["/pause"]' "$container"
    buildah "${storage[@]}" commit --quiet "$container" "docker-archive:$WORK/images/pause.tar:certeus.io/pause:1" >/dev/null
    rm -rf "$WORK/images/storage"
}

clean_up() {
    # Groups of processes that are gone with their namespace.
    local groups=(find /sys/fs/cgroup -depth -type d '(' -name certeus-node -o -path '*/certeus-node/*' ')') left
    # What is still there afterwards says more than rmdir, and one that goes meanwhile is no fault.
    "${groups[@]}" -exec rmdir {} + 2>/dev/null || true
    left=$("${groups[@]}" 2>/dev/null) || true
    [ -z "$left" ] || printf 'node: these control groups could not be removed:\n%s\n' "$left" >&2
    rm -rf "$WORK"
}

WORK=$(mktemp -d "${TMPDIR:-/tmp}/certeus-node-XXXXXX")
trap clean_up EXIT
trap 'exit 130' INT TERM
chmod 755 "$WORK"
mkdir "$WORK/images"
build_programs
build_images
CONTROL_PLANE=$(scripts/controlplane.sh)
export WORK NODE_BIN CONTROL_PLANE
export PROGRAMS=${CARGO_TARGET_DIR:-$PWD/target}/release
unshare --mount --net --pid --fork --kill-child --mount-proc "$here/inside.sh" "$@"
