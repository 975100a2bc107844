#!/usr/bin/env bash
# What Certeus has to stand on a real node: installed by the chart, a ledger under load through its Service while pods are added,
# drained and replaced. No client may see a fault where everything goes in order, and every acknowledged event must be stored once.
set -euo pipefail
cd "$(dirname "$0")/../.."

readonly NS=ledgers

say() {
    echo "==> $*"
}

fail() {
    echo "FAILED: $*" >&2
    kubectl -n "$NS" get ledgercluster,statefulset,pods >&2 || true
    kubectl -n "$NS" get ledgercluster ledger -o jsonpath='{range .status.conditions[*]}{.type}={.status} {.reason}: {.message}{"\n"}{end}' >&2 || true
    kubectl -n "$NS" get events --sort-by=.lastTimestamp | tail -n 20 >&2 || true
    kubectl -n certeus-system logs deployment/certeus --tail=20 >&2 || true
    exit 1
}

change() {
    kubectl -n "$NS" patch ledgercluster ledger --type=merge -p "$1" >/dev/null
}

# Waits until exactly so many pods exist, and all of them are ready, at the newest revision.
settled() {
    local pods=$1 until=$((SECONDS + 150)) now
    while :; do
        now=$(kubectl -n "$NS" get statefulset ledger \
            -o jsonpath='{.status.replicas} {.status.readyReplicas} {.status.updatedReplicas} {.metadata.generation}={.status.observedGeneration}')
        if [[ $now =~ ^$pods\ $pods\ $pods\ ([0-9]+)=([0-9]+)$ ]] && [ "${BASH_REMATCH[1]}" = "${BASH_REMATCH[2]}" ]; then return; fi
        [ "$SECONDS" -lt "$until" ] || fail "no $pods ready pods after 150 s, but (pods, ready, updated) $now"
        sleep 0.5
    done
}

uids() {
    kubectl -n "$NS" get pods -l app.kubernetes.io/instance=ledger -o jsonpath='{range .items[*]}{.metadata.uid}{"\n"}{end}' | sort
}

# Load through the Service until `load_ended`; the name says where its figures are.
load_started() {
    certeus load --url "http://$ADDRESS:8000" --target-throughput 200 --workers 6 --batch 1 --duration 10m \
        --output "$WORK/$1.json" >"$WORK/$1.log" 2>&1 &
    LOAD=$!
}

# Ends it; fails if any event's outcome stays unknown. What was due and not sent yet counts as abandoned, and is no fault.
load_ended() {
    kill -INT "$LOAD"
    # Interrupted it never ends with 0.
    wait "$LOAD" || true
    grep -q '^unknown *0 events' "$WORK/$1.log" || { tail -n 12 "$WORK/$1.log" >&2 && fail "$1: the outcome of events is unknown"; }
    acknowledged=$((acknowledged + $(sed -n 's/^acknowledged *\([0-9]*\) events.*/\1/p' "$WORK/$1.log")))
    sed -n 's/^\(acknowledged\|latency\|faults\)/    &/p' "$WORK/$1.log"
}

in_order() {
    load_ended "$1"
    if grep -q '^faults' "$WORK/$1.log"; then
        cat "$WORK/$1.log" >&2
        fail "$1: clients saw faults"
    fi
}

acknowledged=0

say "the operator, installed by the chart"
helm install certeus charts/certeus --namespace certeus-system --create-namespace --wait --timeout 2m >/dev/null

say "a ledger"
kubectl create namespace "$NS" >/dev/null
kubectl -n "$NS" create secret generic postgres --from-literal=url="$DATABASE_URL" >/dev/null
kubectl -n "$NS" apply -f - <<'EOF'
apiVersion: certeus.io/v1alpha1
kind: LedgerCluster
metadata:
  name: ledger
spec:
  image: certeus/dataplane
  database:
    secretRef: { name: postgres, key: url }
  resources:
    requests: { cpu: 100m, memory: 64Mi }
  autoscaling: { enabled: false }
  replicas: 2
EOF
kubectl -n "$NS" wait --for=condition=Ready ledgercluster/ledger --timeout=3m >/dev/null || fail "the ledger is not ready"
ADDRESS=$(kubectl -n "$NS" get service ledger -o jsonpath='{.spec.clusterIP}')
CERTEUS_API_KEY=$(kubectl -n "$NS" get secret ledger-api-key -o jsonpath='{.data.api-key}' | base64 -d)
export CERTEUS_API_KEY
# Kubernetes needs a moment to send clients to pods that are ready.
until (exec 3<>"/dev/tcp/$ADDRESS/8000") 2>/dev/null; do
    [ "$SECONDS" -lt 300 ] || fail "the Service leads nowhere"
    sleep 0.2
done

say "scale out to 3 and in to 1 under load"
load_started scale
sleep 5
kubectl -n "$NS" scale ledgercluster/ledger --replicas=3 >/dev/null
settled 3
sleep 5
kubectl -n "$NS" scale ledgercluster/ledger --replicas=1 >/dev/null
settled 1
sleep 5
in_order scale

say "all pods replaced under load, one by one, for a new setting"
kubectl -n "$NS" scale ledgercluster/ledger --replicas=2 >/dev/null
settled 2
before=$(uids)
load_started replace
sleep 5
change '{"spec":{"resources":{"requests":{"memory":"65Mi"}}}}'
until [ -z "$(comm -12 <(echo "$before") <(uids))" ]; do sleep 1; done
settled 2
sleep 5
in_order replace

say "a pod deleted, and one killed, under load"
load_started kill
sleep 5
kubectl -n "$NS" delete pod ledger-0 --wait=false >/dev/null
sleep 15
settled 2
pkill -KILL --oldest --full '^certeus-dataplane --config /etc/certeus' || fail "no pod to kill"
sleep 10
settled 2
load_ended kill

say "what ends the pods of another ledger is told in its status"
kubectl -n "$NS" create secret generic bucket --from-literal=AWS_ACCESS_KEY_ID=x --from-literal=AWS_SECRET_ACCESS_KEY=x \
    --from-literal=AWS_REGION=x --from-literal=AWS_ALLOW_HTTP=perhaps >/dev/null
kubectl -n "$NS" apply -f - <<'EOF' >/dev/null
apiVersion: certeus.io/v1alpha1
kind: LedgerCluster
metadata:
  name: crashing
spec:
  image: certeus/dataplane
  database:
    secretRef: { name: postgres, key: url }
  security:
    objectStoreSecretRef: { name: bucket }
  retention:
    archive: s3://bucket/ledger
  autoscaling: { enabled: false }
  replicas: 1
EOF
kubectl -n "$NS" wait ledgercluster/crashing --timeout=90s >/dev/null \
    --for=jsonpath='{.status.conditions[?(@.type=="Degraded")].reason}'=PodsCrashing || fail "no pod crashes"
told=$(kubectl -n "$NS" get ledgercluster crashing -o jsonpath='{.status.conditions[?(@.type=="Degraded")].message}')
echo "    $told"
grep -q 'exit code 1.*perhaps' <<<"$told" || fail "the reason is missing: $told"
kubectl -n "$NS" delete ledgercluster crashing >/dev/null

say "the operator is gone, the ledger stays"
helm uninstall certeus --namespace certeus-system --wait >/dev/null
load_started alone
sleep 5
in_order alone

stored=$(psql "$DATABASE_URL" -At -c 'SELECT count(*) || $$/$$ || count(DISTINCT id) FROM certeus.event_log')
[ "$stored" = "$acknowledged/$acknowledged" ] || fail "acknowledged $acknowledged events; stored/distinct $stored"
say "every one of $acknowledged acknowledged events is stored once"
if [ "${1:-}" = keep ]; then
    say "it all stays until Ctrl-C: nsenter --all --target $(ps -o pid= -C kube-apiserver | head -n 1 | tr -d ' ')"
    sleep infinity
fi
