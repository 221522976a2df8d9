#!/bin/sh
# Process 1 of the guest: makes the system that the kernel tests expect, runs the plan that xtask wrote, says on
# the second serial port how each of its steps went, and turns the machine off. The first port is the kernel's.

if [ "$1" != in-root ]; then
    # The first file system of all cannot be left by pivot_root(), which runc calls: the same as a mount can.
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
# Nothing is mounted on /tmp, /run or the like: what is tested may lie there, as it does on the host.
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
    # Into the kernel's log too, so that a complaint there has its place.
    echo "<4>vm: step $number" >/dev/kmsg
    printf '\n@vm begin %s %s\n' "$number" "$(seconds)"
    timeout -s KILL "$limit" "$@"
    printf '\n@vm end %s %s %s\n' "$number" "$?" "$(seconds)"
    # What a failed test leaves behind must not make others fail.
    kill -KILL -1
    for namespace in /run/netns/*; do
        # Not with `ip`: to this shell that is busybox's own, which knows no namespaces.
        [ -e "$namespace" ] && umount "$namespace" && rm "$namespace"
    done
}

for module in $(cat /vm/modules); do
    insmod "/vm/$module.ko"
done
. /vm/plan
printf '\n@vm done\n'
poweroff -f
