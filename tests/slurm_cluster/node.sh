#!/bin/bash
# PID 1 of one node's namespaces: host name, private /dev/shm and name look-up, slurmd; reaps orphans.
set -euo pipefail
root=$1 node=$2
hostname "$node"
hash -r
mount -t tmpfs -o size=2g tmpfs /dev/shm
mount --bind "$root/hosts" /etc/hosts
# files only: there is no DNS from here, and each reverse look-up of c10d would hang 10 s
{ grep -v '^hosts:' /etc/nsswitch.conf; echo 'hosts: files'; } > "$root/nsswitch.$node"
mount --bind "$root/nsswitch.$node" /etc/nsswitch.conf
slurmd -D -f "$SLURM_CONF" -N "$node" &
slurmd=$!
trap 'kill -TERM $slurmd' TERM
# `wait` alone would return for any orphan that ends
while kill -0 "$slurmd" 2>/dev/null; do wait -n || true; done
