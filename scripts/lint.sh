#!/usr/bin/env bash
# Checks the crate list, format, lints, dependencies and shell scripts; alerts and Dockerfile where the tools for them are there. Needs the network only to refresh the list of advisories.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.tools/bin:$HOME/.cargo/bin:$PATH"

step() {
    echo "lint: $*"
    "$@"
}

# A known weakness in a dependency fails; a database that cannot be had does not.
check_advisories() {
    local cached=("${CARGO_HOME:-$HOME/.cargo}"/advisory-dbs/advisory-db-*/)
    if timeout 120 cargo deny --log-level off fetch db >/dev/null 2>&1; then
        step cargo deny check advisories
    elif [ -d "${cached[0]}" ]; then
        echo "lint: the advisory database cannot be fetched; using the copy of $(date -r "${cached[0]}" +%F)"
        step cargo deny --offline check advisories
    else
        echo "lint: ADVISORIES NOT CHECKED: the database cannot be fetched and there is no copy of it"
    fi
}

# Folder and name of each member of the workspace, as ARCHITECTURE.md writes them.
list_crates() {
    local dir
    sed -n '/^members = \[/,/^]/s/^ *"\(.*\)",$/\1/p' Cargo.toml | while read -r dir; do
        awk -F '"' -v dir="$dir" '/^name = /{ print "### `" dir "` (" $2 ")"; exit }' "$dir/Cargo.toml"
    done
}

check_crate_list() {
    diff --label 'headings in ARCHITECTURE.md' --label 'members in Cargo.toml' -u \
        <(grep '^### `' ARCHITECTURE.md | sort) <(list_crates | sort)
}

step check_crate_list
step cargo fmt --all --check
step cargo clippy --workspace --all-targets -- -D warnings
step cargo deny check bans licenses sources
check_advisories
if command -v shellcheck >/dev/null; then
    step shellcheck scripts/*.sh .ci/run e2e/src/cluster/kubelet/*.sh e2e/node/*.sh
else
    echo "lint: shellcheck is not installed: the shell scripts were not checked"
fi
if command -v promtool >/dev/null; then
    step promtool check rules charts/certeus/files/rules/*.yaml
    step promtool test rules e2e/tests/alerts.yaml
    step promtool check config --syntax-only config/compose/prometheus.yaml
else
    echo "lint: promtool is not installed: the alerts were not tried"
fi
if command -v hadolint >/dev/null; then
    step hadolint Dockerfile
else
    echo "lint: hadolint is not installed: the Dockerfile was not checked"
fi
