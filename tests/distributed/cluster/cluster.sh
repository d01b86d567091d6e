#!/usr/bin/env bash
# Several machines on one: each has a network, a host name, processes, /etc/hosts, /run and /dev/shm of its own, and an sshd.
#
#   cluster.sh DIR up N             starts `head` and node1 ... nodeN and stays; DIR/ready exists once all answer
#   cluster.sh DIR exec NODE CMD    runs a command there, in this folder and with this environment
#   cluster.sh DIR cut NODE         pulls its network cable        cluster.sh DIR plug NODE   puts it back
#   cluster.sh DIR halt NODE        switches it off
#
# All of it lives in one process id namespace, whose first process is a child of `up`: once that process ends, however it ends,
# the kernel ends every daemon and every rank and takes the namespaces, interfaces and mounts away. Nothing outside DIR is written.
set -euo pipefail

dir=$(realpath "$1") what=$2 net=10.77.0
shift 2
namespaces=(--net --mount --uts --ipc --pid --fork --mount-proc --kill-child=KILL)

up() {
    mkdir -p "$dir/ssh" "$dir/log"
    rm -f "$dir/ready"
    ssh-keygen -q -t ed25519 -N '' -f "$dir/ssh/id_ed25519"
    ssh-keygen -q -t ed25519 -N '' -f "$dir/host_key"
    cp "$dir/ssh/id_ed25519.pub" "$dir/ssh/authorized_keys"
    cat >"$dir/ssh/config" <<-'END'
	Host *
	    StrictHostKeyChecking no
	    UserKnownHostsFile /dev/null
	    LogLevel ERROR
	    ServerAliveInterval 5
	    ServerAliveCountMax 3
	END
    chmod 700 "$dir/ssh"
    chmod 600 "$dir/ssh"/*
    cat >"$dir/sshd_config" <<-END
	HostKey $dir/host_key
	UsePAM no
	PermitRootLogin prohibit-password
	PasswordAuthentication no
	UseDNS no
	MaxStartups 100
	PidFile none
	END
    echo $$ >"$dir/up.pid"
    # ends with the process that called this, even where that one is killed
    exec setpriv --pdeathsig KILL unshare "${namespaces[@]}" bash "${BASH_SOURCE[0]}" "$dir" be_head "$1"
}

# Debian gives a host's own name the address 127.0.1.1; so does each node here.
own_places() { # name, number of nodes
    hostname "$1"
    ip link set lo up
    mount -t tmpfs tmpfs /run
    mount -t tmpfs tmpfs /dev/shm
    mkdir -p /run/sshd /run/lock /root/.ssh
    mount --bind "$dir/ssh" /root/.ssh
    {
        echo "127.0.0.1 localhost"
        echo "$net.100 head"
        for i in $(seq "$2"); do
            if [ "node$i" = "$1" ]; then echo "127.0.1.1 node$i"; else echo "$net.$i node$i"; fi
        done
    } >"$dir/hosts.$1"
    mount --bind "$dir/hosts.$1" /etc/hosts
}

be_head() {
    own_places head "$1"
    ip link add br0 type bridge
    ip addr add "$net.100/24" dev br0
    ip link set br0 up
    local i
    for i in $(seq "$1"); do
        unshare "${namespaces[@]}" bash "${BASH_SOURCE[0]}" "$dir" be_node "$i" "$1" </dev/null >"$dir/log/node$i" 2>&1 &
        echo $! >"$dir/node$i.pid" # as seen from the head
        until [ "$(readlink /proc/$!/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.01; done
        ip link add "link$i" type veth peer name eth0 netns $!
        ip link set "link$i" master br0 up
    done
    for i in $(seq "$1"); do until ssh -o ConnectTimeout=1 "node$i" true 2>/dev/null; do sleep 0.1; done; done
    touch "$dir/ready"
    while :; do sleep 3600 & wait $!; done # the first process collects orphans
}

be_node() {
    own_places "node$1" "$2"
    until ip link show eth0 >/dev/null 2>&1; do sleep 0.01; done
    ip addr add "$net.$1/24" dev eth0
    ip link set eth0 up
    exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin /usr/sbin/sshd -D -e -f "$dir/sshd_config"
}

first_child() { awk '{print $1}' "/proc/$1/task/$1/children"; }

enter() { # process CMD...
    local pid=$1
    shift
    exec nsenter --target "$pid" --mount --uts --ipc --net --pid -- env --chdir="$PWD" "$@"
}

case $what in
    up) up "$1" ;;
    be_head) be_head "$1" ;;
    be_node) be_node "$1" "$2" ;;
    exec)
        if [ "$1" = head ]; then enter "$(first_child "$(cat "$dir/up.pid")")" "${@:2}"; fi
        enter "$(first_child "$(cat "$dir/up.pid")")" bash "${BASH_SOURCE[0]}" "$dir" from_head "$@"
        ;;
    from_head) enter "$(first_child "$(cat "$dir/$1.pid")")" "${@:2}" ;;
    cut) "${BASH_SOURCE[0]}" "$dir" exec head ip link set "link${1#node}" down ;;
    plug) "${BASH_SOURCE[0]}" "$dir" exec head ip link set "link${1#node}" up ;;
    halt) "${BASH_SOURCE[0]}" "$dir" exec head kill -KILL "$(cat "$dir/$1.pid")" ;;
    *) sed -n '3,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2 ;;
esac
