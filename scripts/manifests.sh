#!/usr/bin/env bash
# Writes what follows from something else, so that nothing is written twice:
#   charts/certeus/files/crds  copies of crds/*.yaml, because a chart holds no files from outside
#   config/crd, config/default what the chart renders with its default values, for `kubectl apply -k`
# With --check it writes nothing, and fails if anything would change. Needs helm, see scripts/setup.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.tools/bin:$PATH"

case ${1-} in
    --check) into=$(mktemp -d) && trap 'rm -rf "$into"' EXIT ;;
    '') into=. ;;
    *) echo "usage: scripts/manifests.sh [--check]" >&2 && exit 2 ;;
esac

readonly CRDS=charts/certeus/files/crds

# The chart, rendered without what only Helm uses: hooks, and labels that say Helm manages the objects.
render() {
    echo "# Written by scripts/manifests.sh from charts/certeus."
    helm template certeus "$chart" --namespace certeus-system --no-hooks "$@" |
        sed -e '/^ *annotations:$/{
            N
            /helm\.sh\/resource-policy: keep$/d
        }' -e '/^ *helm\.sh\//d' -e '/^ *app\.kubernetes\.io\/managed-by: Helm$/d' -e '/^# Source: /d' |
        # Templates leave an empty line at their end.
        awk '/^---$/ { gap = 0 } gap { print ""; gap = 0 } /^$/ { gap = 1; next } { print }'
}

mkdir -p "$into/$CRDS" "$into/config/crd" "$into/config/default"
for definition in crds/*.yaml; do
    install -m 644 "$definition" "$into/$CRDS/${definition##*/}"
done
chart=charts/certeus
if [ "$into" != . ]; then
    # Render with the definitions as they should be, not with an old copy.
    cp -R charts/certeus "$into/chart"
    rm "$into/chart/files/crds"/*
    cp "$into/$CRDS"/* "$into/chart/files/crds"
    chart=$into/chart
fi
render --show-only templates/crds.yaml >"$into/config/crd/crds.yaml"
render --set crds.install=false >"$into/config/default/operator.yaml"

if [ "$into" != . ]; then
    status=0
    for file in "$CRDS" config/crd/crds.yaml config/default/operator.yaml; do
        diff -ru "$file" "$into/$file" || status=1
    done
    [ "$status" -eq 0 ] || echo "manifests: out of date; run 'make manifests'" >&2
    exit "$status"
fi
