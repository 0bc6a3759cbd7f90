#!/bin/sh
# Does what the compose file relies on in the entry points of the official images postgres and redis.
set -eu

as() { # as USER COMMAND...: become that user, for good
  user=$1
  shift
  exec setpriv --reuid "$user" --regid "$user" --init-groups "$@"
}

if [ "${1:-}" = redis-server ]; then
  mkdir -p /data
  chown redis: /data
  cd /data
  as redis "$@"
fi

PATH=$(echo /usr/lib/postgresql/*/bin):$PATH
data=/var/lib/postgresql/18/docker
cd /
if [ ! -s "$data/PG_VERSION" ]; then
  install -d -o postgres -g postgres "$data"
  install -m 600 -o postgres /dev/null /tmp/password
  printf '%s' "$POSTGRES_PASSWORD" >/tmp/password
  (as postgres initdb -D "$data" -U "$POSTGRES_USER" --pwfile=/tmp/password --auth=scram-sha-256 --locale=C.UTF-8 --no-sync)
  rm /tmp/password
  echo 'host all all all scram-sha-256' >>"$data/pg_hba.conf"
  echo "CREATE DATABASE \"$POSTGRES_DB\"" | (as postgres postgres --single -D "$data" postgres)
fi
install -d -o postgres -g postgres /run/postgresql
as postgres postgres -D "$data" -c 'listen_addresses=*'
