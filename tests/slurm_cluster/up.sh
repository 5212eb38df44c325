#!/bin/bash
# A two-node Slurm on this machine (Debian 12, root, no systemd needed). Installs what is missing.
#   up.sh          all of it, after stopping what an earlier run left; prints `export SLURM_CONF=...`
#   up.sh node2    starts that node again after its processes were killed
# Exit code 77: it can't run here (the last line of stderr says why); 1: it did not come up.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# not /run or /tmp: slurmd executes batch scripts from there, and those may be mounted noexec
root=/var/lib/slurm-two-nodes
net=10.213.77
export SLURM_CONF=$root/slurm.conf

cannot() { echo "$1" >&2; exit 77; }

install_missing() {
    for command in slurmctld slurmd sbatch munged ip nsenter; do
        command -v "$command" >/dev/null && continue
        command -v apt-get >/dev/null || cannot "$command is missing, and there is no apt-get to install it"
        export DEBIAN_FRONTEND=noninteractive
        timeout 120 apt-get update -qq </dev/null >&2 || true # an old list may do
        timeout 300 apt-get install -y -qq --no-install-recommends \
            slurmctld slurmd slurm-client munge iproute2 util-linux </dev/null >&2 ||
            cannot "$command is missing, and apt-get could not install slurmctld slurmd slurm-client munge iproute2"
        return
    done
}

# What is killed to switch the node off is the pid in node.$1.pid: with it go all its processes.
start_node() {
    setsid nsenter --net="/run/netns/$1" \
        unshare --uts --pid --mount --fork --kill-child --mount-proc \
        bash "$here/node.sh" "$root" "$1" </dev/null >>"$root/node.$1.out" 2>&1 &
    echo $! >"$root/node.$1.pid"
}

start_network() {
    ip link add slurmbr0 type bridge
    ip addr add "$net.1/24" dev slurmbr0
    ip link set slurmbr0 up
    cp /etc/hosts "$root/hosts"
    echo "$net.1 controller" >>"$root/hosts"
    for i in 1 2; do
        echo "$net.1$i node$i" >>"$root/hosts"
        ip netns add node$i
        ip link add sl-node$i type veth peer name eth0 netns node$i
        ip link set sl-node$i master slurmbr0 up
        ip -n node$i addr add "$net.1$i/24" dev eth0
        ip -n node$i link set eth0 up
        ip -n node$i link set lo up
    done
}

start_munge() {
    if munge -n 2>/dev/null | timeout 5 unmunge >/dev/null 2>&1; then return; fi # the machine has one
    install -d -o munge -g munge -m 755 /run/munge
    runuser -u munge -- /usr/sbin/munged --force
    cat /run/munge/munged.pid >"$root/munged.pid"
}

start_all() {
    "$here/down.sh"
    mkdir -p "$root"/{state,spool.node1,spool.node2}
    cp "$here/cgroup.conf" "$root/"
    sed -e "s#@ROOT@#$root#g" -e "s#@NET@#$net#g" "$here/slurm.conf.in" >"$SLURM_CONF"
    start_network
    start_munge
    # shellcheck disable=SC2016 # expanded in there
    unshare --uts --mount bash -ec \
        'hostname controller; mount --bind "$0/hosts" /etc/hosts; exec slurmctld -f "$SLURM_CONF"' "$root"
    start_node node1
    start_node node2
}

[ "$(id -u)" = 0 ] || cannot "two nodes on one machine need root (network namespaces)"
if [ $# -gt 0 ]; then
    start_node "$1"
else
    install_missing
    start_all >&2
fi
deadline=$((SECONDS + 30))
while ((SECONDS < deadline)); do
    if [ "$(timeout 5 sinfo --noheader --partition=main --states=idle --format=%D 2>/dev/null)" = 2 ]; then
        echo "export SLURM_CONF=$SLURM_CONF"
        exit 0
    fi
    sleep 0.1
done
echo "two idle nodes did not come up within 30 s" >&2
timeout 5 sinfo --Node --long >&2 || true
tail -n 20 "$root"/slurmctld.log "$root"/node.*.out >&2 || true
exit 1
