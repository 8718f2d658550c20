#!/usr/bin/env bash
# Boots systemd as the first process of a machine of its own: namespaces, a control group, devices, and no network but
# loopback. /usr is this machine's and cannot be written; all else is what lies in ROOT. Needs root, and a cgroup2.
# boot-systemd.sh ROOT CONTROL_GROUP NODE NODE_MODULES
set -euo pipefail
root=$1 group=$2 node=$3 modules=$4

if [ "${5:-}" != inside ]; then
  mkdir "$group"
  echo $$ >"$group/cgroup.procs"
  exec unshare --mount --pid --fork --kill-child --cgroup --ipc --uts --net bash "$0" "$@" inside
fi

read_only() { mount -o remount,bind,ro "$1"; }

mount --bind "$root" "$root"
mount --bind "$root/run" "$root/run" # over one of systemd's own nobody outside could see the sockets
mount --bind /usr "$root/usr"
read_only "$root/usr"
mount --bind "$root/local" "$root/usr/local"
mount --bind "$node" "$root/usr/local/bin/node"
mount --bind "$modules" "$root/usr/local/lib/node_modules/colobus/node_modules"
# What this machine's packages would have systemd do at a start.
mount --bind "$root/empty" "$root/usr/lib/systemd/system-generators"

mount -t proc proc "$root/proc"
# The kernel's settings are everybody's.
mount --bind "$root/proc/sys" "$root/proc/sys"
read_only "$root/proc/sys"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755 devices "$root/dev"
for device in null zero full random urandom tty; do
  touch "$root/dev/$device"
  mount --bind "/dev/$device" "$root/dev/$device"
done
ln -s /proc/self/fd "$root/dev/fd"
ln -s pts/ptmx "$root/dev/ptmx" # systemd mounts the rest
ip link set lo up

cd "$root"
pivot_root . old
cd /
umount --lazy /old
mount --make-rshared / # as a real machine has it: what systemd mounts for a service has to arrive there
exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin container=colobus-test \
  setpriv --bounding-set=-sys_module,-sys_rawio,-sys_time,-syslog /usr/lib/systemd/systemd
