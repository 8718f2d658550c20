#!/usr/bin/env bash
# Installs the programs of other projects that the interop, end-to-end and benchmark runs talk to.
set -euo pipefail

packages=(openssl gnutls-bin chromium etcd-server qemu-utils qemu-system-x86 libnbd-bin python3-libnbd nbdkit fio strace util-linux-extra iproute2 e2fsprogs systemd docker.io docker-compose debootstrap man-db)

if ! command -v apt-get >/dev/null; then
  echo "setup-peers: this machine has no apt-get. Install the equivalents of: ${packages[*]}" >&2
  exit 1
fi

# A kernel and a busybox for the guest of the end-to-end tests: unpacked, not installed.
guest=${COLOBUS_TEST_GUEST:-/var/cache/colobus-test-guest}

fetch_guest() {
  [ -e "$guest/busybox" ] && return
  local scratch kernel
  scratch=$(mktemp -d)
  kernel=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image-/ { print $2; exit }')
  (cd "$scratch" && apt-get download -qq "$kernel" busybox-static && for deb in *.deb; do dpkg-deb -x "$deb" root; done)
  mkdir -p "$guest"
  cp "$scratch"/root/boot/vmlinuz-* "$guest/vmlinuz"
  for module in virtio virtio_ring virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk; do
    find "$scratch/root/lib/modules" -name "$module.ko" -exec cp {} "$guest/" \;
  done
  cp "$scratch/root/bin/busybox" "$guest/" # last: it tells that all is there
  rm -rf "$scratch"
}

# What the tests of the container image build upon: Debian with the Node of the image, from the two package registries.
base=${COLOBUS_TEST_BASE_IMAGE:-/var/cache/colobus-test-base-image.tar}

make_base() {
  [ -e "$base" ] || bash "$(dirname "$0")/../test/support/make-base-image.sh" "$base"
}

missing=()
for package in "${packages[@]}"; do
  if [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" != installed ]; then missing+=("$package"); fi
done
if [ ${#missing[@]} -eq 0 ]; then
  fetch_guest
  if [ "$(id -u)" -eq 0 ]; then make_base; fi
  echo "setup-peers: everything is installed: ${packages[*]}"
  exit 0
fi
if [ "$(id -u)" -ne 0 ]; then
  echo "setup-peers: missing: ${missing[*]}. Installing needs root: sudo apt-get install ${missing[*]}" >&2
  exit 1
fi

# Nor is anything started that is installed: the tests start what they need.
export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" </dev/null
fetch_guest
make_base
