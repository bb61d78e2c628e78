# Machines out of network namespaces, for the scripts of this folder: source it first of all, set `work` to a folder of
# your own, then `make_machines 2`. Needs root, and Debian's iproute2 and util-linux.
#
# A machine is a namespace on a bridge, with a /dev/shm and a folder for Ray of its own; other files are shared, as on
# machines with a network file system. The script runs with processes, mounts and a network of its own: whatever it started
# ends with it, and a `ray stop` on one of its machines reaches no other Ray.
# shellcheck shell=bash

[ "$(id -u)" = 0 ] || { echo "must run as root"; exit 1; }
[ -n "${IN_NAMESPACES:-}" ] \
    || exec unshare --net --pid --fork --mount-proc --kill-child env IN_NAMESPACES=yes bash "$0" "$@"
trap 'exit 143' INT TERM  # process 1 of a namespace has no default action for them

net=10.78.0  # machine I has address $net.I

need() { # TOOL...
    for tool in ip "$@"; do
        command -v "$tool" > /dev/null || { echo "$tool is missing: see the head of this script"; exit 1; }
    done
}

make_machines() { # NUMBER [FOLDER OF EACH ITS OWN]
    local i own=${2:-/tmp/ray}
    ip link set lo up
    mkdir -p /run/netns && mount -t tmpfs tmpfs /run/netns  # names for this script alone
    ip link add zsbridge type bridge
    ip address add $net.254/24 dev zsbridge
    ip link set zsbridge up
    for ((i = 1; i <= $1; i++)); do
        ip netns add "zs$i"
        ip link add "zsveth$i" type veth peer name eth0 netns "zs$i"
        ip link set "zsveth$i" master zsbridge up
        ip -n "zs$i" address add "$net.$i/24" dev eth0
        ip -n "zs$i" link set eth0 up
        ip -n "zs$i" link set lo up
        ip -n "zs$i" route add default via $net.254  # Ray finds a machine's address by its default route
        # one process holds the machine's mounts and its name
        ip netns exec "zs$i" unshare --mount --uts sh -c "hostname zs$i && mkdir -p $own && mount -t tmpfs tmpfs $own \
            && mount -t tmpfs tmpfs /dev/shm && echo \$\$ > ${work:?}/machine$i && exec sleep infinity" &
        disown
        until [ -s "$work/machine$i" ]; do sleep 0.1; done
    done
}

on() { # MACHINE COMMAND...
    nsenter --target "$(cat "$work/machine$1")" --net --mount --uts --wd="$PWD" "${@:2}"
}

trains_packs() { # MACHINE: whether an actor that trains packs runs on it
    local pid
    for pid in $(ip netns pids "zs$1"); do
        tr '\0' ' ' 2> /dev/null < "/proc/$pid/cmdline" | grep -q '^ray::[A-Za-z]*Trainable' && return 0
    done
    return 1
}

stop_machine() { # MACHINE: kill -9 for all that runs on it, as when it is taken away
    local pids
    pids=$(ip netns pids "zs$1")
    # shellcheck disable=SC2086  # one word for each process
    [ -z "$pids" ] || kill -9 $pids 2> /dev/null || true
    ip link set "zsveth$1" down
}
