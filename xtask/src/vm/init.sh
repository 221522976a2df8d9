#!/bin/sh
# Process 1 of the guest: makes the system that the kernel tests expect, runs the plan that xtask wrote, reports
# each step's result on the second serial port, and turns the machine off. The first port is the kernel's.

if [ "$1" != in-root ]; then
    # runc calls pivot_root(), which cannot leave the initial file system, but can leave a mount of it.
    mount --bind / /root
    cd /root || exit 1
    mount --move . /
    exec chroot . /init in-root
fi

export PATH=/usr/sbin:/usr/bin HOME=/root LANG=C.UTF-8
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs tracefs /sys/kernel/tracing
# Nothing is mounted on /tmp, /run or the like: the tested programs may lie there, as they do on the host.
chmod 1777 /tmp
mkdir -p /run/netns
hostname guest
ip link set lo up
ulimit -l unlimited
ulimit -n 65536
stty -F /dev/ttyS1 raw -echo
exec </dev/null >/dev/ttyS1 2>&1

seconds() {
    read -r up _ </proc/uptime
    echo "$up"
}

# step NUMBER SECONDS COMMAND...: runs it, alone.
step() {
    number=$1 limit=$2
    shift 2
    # Into the kernel's log too, so that a warning there can be assigned to a step.
    echo "<4>vm: step $number" >/dev/kmsg
    printf '\n@vm begin %s %s\n' "$number" "$(seconds)"
    timeout -s KILL "$limit" "$@"
    printf '\n@vm end %s %s %s\n' "$number" "$?" "$(seconds)"
    # The remains of a failed test must not make others fail.
    kill -KILL -1
    for namespace in /run/netns/*; do
        # Not with `ip`: in this shell that is busybox's own, which does not support namespaces.
        [ -e "$namespace" ] && umount "$namespace" && rm "$namespace"
    done
}

for module in $(cat /vm/modules); do
    insmod "/vm/$module.ko"
done
. /vm/plan
printf '\n@vm done\n'
poweroff -f
