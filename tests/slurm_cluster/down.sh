#!/bin/bash
# Stops by pid what up.sh started; removes its namespaces, bridge, mounts and state. Harmless when nothing is up.
set -uo pipefail
root=/var/lib/slurm-two-nodes

# a zombie (PID 1 of a container may reap late) counts as gone
alive() {
    local state
    state=$(sed -n 's/^State:[[:space:]]*\(.\).*/\1/p' "/proc/$1/status" 2>/dev/null)
    [ -n "$state" ] && [ "$state" != Z ]
}

stop() { # pid file, name of the process, signal
    local pid
    [ -s "$1" ] || return 0
    pid=$(cat "$1")
    # the pid of an earlier boot may be another process by now
    if alive "$pid" && [ "$(cat "/proc/$pid/comm")" = "$2" ]; then
        kill "-$3" "$pid"
        for _ in $(seq 100); do
            alive "$pid" || break
            sleep 0.05
        done
        ! alive "$pid" || kill -KILL "$pid"
    fi
    rm -f "$1"
}

# a node's first process takes its PID namespace with it: slurmd, slurmstepd and every task
for node in node1 node2; do stop "$root/node.$node.pid" unshare KILL; done
stop "$root/slurmctld.pid" slurmctld TERM
stop "$root/munged.pid" munged TERM
{
    for node in node1 node2; do
        ip netns del $node
        ip link del sl-$node
    done
    ip link del slurmbr0
    # `ip netns add` makes this folder a mount point; rmdir fails while others have namespaces in it
    [ -n "$(ls -A /run/netns)" ] || umount /run/netns
} >/dev/null 2>&1
rm -rf "$root"
exit 0
