#!/usr/bin/env bash
# Shows a ledger on this machine scale with its load and lose nothing: starts config/samples with a private PostgreSQL,
# sends events until pods are added, lets the load fall until they are gone again, and then counts every acknowledged
# event in the database. Exit status 0 only if all of that was so. Leaves nothing behind, also when interrupted.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.tools/bin:$HOME/.cargo/bin:$PATH"

# The heavy load: small requests, as they cost the pods much and the disk little.
readonly HEAVY=(--workers 32 --batch 5 --duration 40s --ramp-up 5s)
# The light load that goes on while pods are taken away: a drain must not disturb it.
readonly LIGHT=(--workers 4 --batch 1 --target-throughput 100 --duration 5m)
readonly READY_WITHIN=60 SCALE_IN_WITHIN=90

work=
operator=
load=
follower=

say() {
    printf '\n==> %s\n' "$*"
}

fail() {
    printf '\ndemo: FAILED: %s\n' "$*" >&2
    if [ -n "$work" ] && [ -s "$work/operator.log" ]; then
        echo "the operator's last words:" >&2
        tail -n 5 "$work/operator.log" >&2
    fi
    exit 1
}

# Asks a process to end and waits for it.
end() {
    if [ -n "$1" ] && kill -TERM "$1" 2>/dev/null; then wait "$1" 2>/dev/null || true; fi
}

clean_up() {
    trap '' INT TERM
    end "$load"
    if [ -n "$operator" ]; then
        end "$operator"
        # Only finds something when the operator could not end in order.
        "$bin/certeus-operator" down --purge --state-dir "$work/state" >/dev/null 2>&1 || true
    fi
    if [ -n "$follower" ]; then wait "$follower" 2>/dev/null || true; fi
    if [ -n "$work" ]; then rm -rf "$work"; fi
}
trap clean_up EXIT
trap 'echo; echo "demo: interrupted, cleaning up"; exit 130' INT TERM

is_free() {
    ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}

# One field of the operator's status; the JSON has one field a line.
status() {
    "$bin/certeus-operator" status -o json --state-dir "$work/state" 2>/dev/null >"$work/status.json" || return 1
    sed -n "s/^ *\"$1\": \"\{0,1\}\([^\",]*\)\"\{0,1\},\{0,1\}$/\1/p" "$work/status.json" | head -n 1
}

ready_pods() {
    status phase >/dev/null || true
    grep -c '"ready": true' "$work/status.json" || true
}

# Tells how many pods there are whenever that changes, which the operator's log explains; leaves the number in `pods`
# and the highest in `most`.
watch_pods() {
    local before=$pods
    kill -0 "$operator" 2>/dev/null || fail "the operator ended"
    pods=$(ready_pods)
    if [ "$pods" -gt "$most" ]; then most=$pods; fi
    if [ "$pods" != "$before" ]; then say "pods: $before -> $pods"; fi
}

bin=${CARGO_TARGET_DIR:-target}/release
for program in certeus certeus-dataplane certeus-operator; do
    [ -x "$bin/$program" ] || fail "$bin/$program is missing: run 'make demo', which builds it"
done

work=$(mktemp -d "${TMPDIR:-/tmp}/certeus-demo.XXXXXX")
# PostgreSQL runs as another user when this is run as root, and has to reach its folder.
chmod 711 "$work"
api_port=8000
admin_port=9090
if ! is_free $api_port; then api_port=0; fi
for port in $(seq $admin_port $((admin_port + 20))); do
    if ! is_free "$port"; then admin_port=0; fi
done

say "starting PostgreSQL and the LedgerCluster of config/samples"
: >"$work/operator.log"
# In a session of its own: Ctrl-C reaches this script, which then ends the operator in order.
setsid "$bin/certeus-operator" local -f config/samples --state-dir "$work/state" \
    --api-listen "127.0.0.1:$api_port" --admin-port "$admin_port" >"$work/operator.log" 2>&1 &
operator=$!
tail --pid="$operator" -n +1 -f "$work/operator.log" 2>/dev/null | sed -u 's/^/    operator | /' &
follower=$!

pods=0
most=0
deadline=$((SECONDS + READY_WITHIN))
until [ "$pods" -gt 0 ]; do
    if [ $SECONDS -ge $deadline ]; then fail "no pod was ready within $READY_WITHIN s"; fi
    sleep 0.5
    watch_pods
done
least=$pods
url="http://$(status apiAddress)"
# The password goes to psql through the environment: command lines can be read by every user.
database_url=$(cat "$(status databaseUrlFile)")
credentials=${database_url#*://}
credentials=${credentials%%@*}
export PGPASSWORD=${credentials#*:}
database_url=${database_url/":$PGPASSWORD@"/"@"}

start_load() {
    local name=$1
    shift
    "$bin/certeus" load --url "$url" --run-id "$name" --acks "$work/$name.tsv" --output "$work/$name.json" "$@" \
        >"$work/$name.summary" 2> >(sed -u "s/^/    $name load | /" >&2) &
    load=$!
}

say "load rises: certeus load ${HEAVY[*]}
    a pod is added while CPU or queue depth is above the scaleUpThreshold of config/samples/ledgercluster.yaml"
start_load heavy "${HEAVY[@]}"
while kill -0 "$load" 2>/dev/null; do
    sleep 1
    watch_pods
done
wait "$load" || fail "the heavy load ended with status $?: $(cat "$work/heavy.summary")"
load=
sed 's/^/    heavy load | /' "$work/heavy.summary"
if [ "$most" -le "$least" ]; then fail "the load did not add a pod to the $least there were"; fi

say "load falls: certeus load ${LIGHT[*]}
    pods are drained and stopped once both have been below their scaleDownThreshold for the cooldown"
start_load light "${LIGHT[@]}"
deadline=$((SECONDS + SCALE_IN_WITHIN))
until [ "$pods" -le "$least" ]; do
    if [ $SECONDS -ge $deadline ]; then fail "still $pods pods, not $least, $SCALE_IN_WITHIN s after the load fell"; fi
    kill -0 "$load" 2>/dev/null || fail "the light load ended early: $(cat "$work/light.summary")"
    sleep 1
    watch_pods
done
kill -INT "$load"
code=0
wait "$load" || code=$?
load=
sed 's/^/    light load | /' "$work/light.summary"
if [ $code -ne 130 ]; then fail "the light load ended with status $code"; fi
for name in heavy light; do
    if ! grep -q '^unknown *0 events' "$work/$name.summary"; then fail "the $name load has events of unknown outcome"; fi
done

say "counting every acknowledged event in PostgreSQL"
for name in heavy light; do
    sed "s/^/$name\t/" "$work/$name.tsv"
done >"$work/acks.tsv"
psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --set acks="$work/acks.tsv" "$database_url" -f scripts/demo.sql \
    >"$work/count" || fail "the events could not be counted"
cat "$work/count"
grep -q '^verdict: exact$' "$work/count" || fail "the database does not hold exactly what was acknowledged"

say "went from $least to $most pods and back to $pods; every acknowledged event is there exactly once"
