#!/usr/bin/env bash
# Installs the programs of other projects that the interop, end-to-end and benchmark runs talk to.
set -euo pipefail

packages=(etcd-server qemu-utils qemu-system-x86 libnbd-bin python3-libnbd nbdkit fio strace util-linux-extra iproute2)

if ! command -v apt-get >/dev/null; then
  echo "setup-peers: this machine has no apt-get. Install the equivalents of: ${packages[*]}" >&2
  exit 1
fi

missing=()
for package in "${packages[@]}"; do
  if [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" != installed ]; then missing+=("$package"); fi
done
if [ ${#missing[@]} -eq 0 ]; then
  echo "setup-peers: everything is installed: ${packages[*]}"
  exit 0
fi
if [ "$(id -u)" -ne 0 ]; then
  echo "setup-peers: missing: ${missing[*]}. Installing needs root: sudo apt-get install ${missing[*]}" >&2
  exit 1
fi

export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" </dev/null
