#!/usr/bin/env bash
# Installs what the system tests need and this machine lacks: a browser, Prometheus, two proxies, Java, and a container
# engine with compose.
# For Debian 12 or later; as root or with sudo. A second run finds everything there and ends at once.
set -euo pipefail

PLUGINS=/usr/local/lib/docker/cli-plugins # one of the places where every docker client looks for its plugins

say() { echo "system tests: $*"; }
fail() {
  echo "system tests: $*" >&2
  exit 1
}

missing_packages() {
  local what package
  while read -r what package; do
    case $what in
      /*) [ -e "$what" ] || echo "$package" ;;
      *) command -v "$what" >/dev/null || echo "$package" ;;
    esac
  done <<'LIST' | sort -u
chromium chromium
prometheus prometheus
promtool prometheus
/usr/sbin/nginx nginx-light
/usr/sbin/haproxy haproxy
javac default-jdk-headless
dockerd docker.io
docker docker.io
iptables iptables
mmdebstrap mmdebstrap
/usr/share/keyrings/debian-archive-trixie-stable.gpg debian-archive-keyring
/etc/ssl/certs/ca-certificates.crt ca-certificates
LIST
}

missing_plugins() {
  local plugin
  for plugin in buildx compose; do
    docker "$plugin" version >/dev/null 2>&1 || echo "$plugin"
  done
}

become_root() {
  [ "$(id -u)" = 0 ] && return
  command -v sudo >/dev/null || fail "needs root to install packages, and there is no sudo; run as root: $0"
  say "asking sudo for root"
  exec sudo -- "$0" "$@"
}

apt_install() {
  # Nothing that is installed here shall start as a service of the machine.
  if [ ! -e /usr/sbin/policy-rc.d ]; then
    policy=/usr/sbin/policy-rc.d
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
  fi
  apt-get -qq update
  DEBIAN_FRONTEND=noninteractive apt-get -qq -y install --no-install-recommends "$@" >"$work/apt.log" 2>&1 || {
    tail -20 "$work/apt.log" >&2
    fail "apt-get could not install: $*"
  }
}

# Debian 12 has no compose plugin; that of Debian 13 is one static binary and runs there as well. It comes through a
# package list of its own, so that the machine's other packages stay what they are.
unpack_plugins() {
  local plugin list=$work/trixie.sources
  local apt=(apt-get -qq -o "Dir::Etc::SourceList=$list" -o "Dir::Etc::SourceParts=/dev/null"
    -o "Dir::State::Lists=$work/lists" -o "Dir::Cache=$work/cache" -o "APT::Sandbox::User=root")
  mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/debs"
  printf '%s\n' 'Types: deb' 'URIs: http://deb.debian.org/debian' 'Suites: trixie' 'Components: main' \
    'Signed-By: /usr/share/keyrings/debian-archive-trixie-stable.gpg' >"$list"
  "${apt[@]}" update
  for plugin in "$@"; do
    (cd "$work/debs" && "${apt[@]}" download "docker-$plugin")
    dpkg -x "$work/debs/docker-$plugin"_*.deb "$work/root"
    install -D -m 755 "$work/root/usr/libexec/docker/cli-plugins/docker-$plugin" "$PLUGINS/docker-$plugin"
  done
}

mapfile -t packages < <(missing_packages)
mapfile -t plugins < <(missing_plugins)
if [ ${#packages[@]} -eq 0 ] && [ ${#plugins[@]} -eq 0 ]; then
  say "everything is installed"
  exit
fi

command -v apt-get >/dev/null || fail "needs a Debian machine; missing here: ${packages[*]} ${plugins[*]/#/docker-}"
become_root "$@"
work=$(mktemp -d)
policy=
trap 'rm -rf "$work" $policy' EXIT
if [ ${#packages[@]} -gt 0 ]; then
  say "installing ${packages[*]}"
  apt_install "${packages[@]}"
fi
mapfile -t plugins < <(missing_plugins) # newer Debians bring them along
if [ ${#plugins[@]} -gt 0 ]; then
  say "installing ${plugins[*]/#/docker-}"
  unpack_plugins "${plugins[@]}"
  [ -z "$(missing_plugins)" ] || fail "docker does not find its plugins ${plugins[*]}"
fi
say "ready"
