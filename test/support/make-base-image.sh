#!/usr/bin/env bash
# Makes a root file system that stands in for the container image that the Dockerfile begins with, from Debian's and npm's
# packages, for machines that reach no container registry. $1: the tar archive to make. Needs root, debootstrap, node and npm.
set -euo pipefail
archive=$1
major=24
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

mirror=$(grep -hE '^URIs:' /etc/apt/sources.list.d/*.sources 2>/dev/null | awk '{ print $2; exit }' || true)
[ -n "$mirror" ] || mirror=$(grep -hE '^deb ' /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null | awk '{ print $2; exit }' || true)
debootstrap --variant=minbase --include=ca-certificates,libstdc++6 bookworm "$work/root" "${mirror:-http://deb.debian.org/debian}" >"$work/log" ||
  { cat "$work/log" >&2; exit 1; }

(cd "$work" && echo '{}' >package.json && npm install --silent --no-audit --no-fund "node@$major")
local="$work/root/usr/local"
mkdir -p "$local/bin" "$local/lib/node_modules" "$local/etc"
cp "$(readlink -f "$work/node_modules/.bin/node")" "$local/bin/node"
cp -r "$(npm root --global)/npm" "$local/lib/node_modules/"
ln -s ../lib/node_modules/npm/bin/npm-cli.js "$local/bin/npm"
ln -s ../lib/node_modules/npm/bin/npx-cli.js "$local/bin/npx"
# What this machine trusts, and its settings of npm, so that an install inside a build behaves as one outside.
cp -L /etc/ssl/certs/ca-certificates.crt "$work/root/etc/ssl/certs/"
for settings in /usr/etc/npmrc /etc/npmrc; do if [ -f "$settings" ]; then cp "$settings" "$local/etc/npmrc"; fi; done
chroot "$work/root" useradd --create-home --uid 1000 node
rm -rf "$work/root/var/cache/apt/archives/"*.deb "$work/root/var/lib/apt/lists/"*

mkdir -p "$(dirname "$archive")"
tar --directory "$work/root" --create --file "$archive.part" .
mv "$archive.part" "$archive"
