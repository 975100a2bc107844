#!/bin/sh
# What the entrypoint of PostgreSQL's official image does, as far as a pod of the operator's needs it: as root it gives the data folder to
# an unprivileged user and goes on as that one; a folder without data becomes a database cluster whose superuser is POSTGRES_USER with
# POSTGRES_PASSWORD, open to every address with that password, with a database POSTGRES_DB; then it becomes the server. The image listens on
# every address of its own; POD_ADDRESS is all that a pod here has of its own.
set -eu

if [ "$(id -u)" = 0 ]; then
    user=postgres
    id "$user" >/dev/null 2>&1 || user=nobody
    mkdir -p "$PGDATA"
    chown -R "$user" "$PGDATA"
    exec setpriv --reuid="$user" --regid="$(id -g "$user")" --clear-groups "$0" "$@"
fi
cd /
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    # shellcheck disable=SC2086 # arguments, in words
    printf '%s\n' "${POSTGRES_PASSWORD:?}" | initdb --pgdata="$PGDATA" --username="$POSTGRES_USER" --pwfile=/dev/stdin \
        --encoding=UTF8 --locale=C $POSTGRES_INITDB_ARGS
    echo 'host all all all scram-sha-256' >>"$PGDATA/pg_hba.conf"
    echo "CREATE DATABASE \"$POSTGRES_DB\"" | postgres --single -D "$PGDATA" postgres
fi
exec postgres -D "$PGDATA" -c listen_addresses="$POD_ADDRESS" -c unix_socket_directories= "$@"
