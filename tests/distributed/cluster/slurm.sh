#!/usr/bin/env bash
# A real Slurm on the machines of cluster.sh: munge and slurmctld on `head`, where this runs, and a slurmd on every node.
#
#   cluster.sh DIR exec head slurm.sh DIR N
#
# Programs find it through SLURM_CONF=DIR/slurm/slurm.conf. Nothing to stop: the daemons end with the machines.
set -euo pipefail

dir=$1 count=$2 home=$1/slurm
here=$(dirname "${BASH_SOURCE[0]}")
mkdir -p "$home/state"
{
    # half the real memory for jobs of all nodes; a node's name is a loopback address on itself, so addresses are stated
    for i in $(seq "$count"); do echo "NodeName=node$i NodeAddr=10.77.0.$i CPUs=2 RealMemory=1000 Gres=gpu:2 State=UNKNOWN"; done
} >"$home/nodes"
# Slurm hands out device files and asks no driver what they are: two that every machine has
printf 'Name=gpu File=/dev/%s\n' null zero >"$home/gres.conf"
sed -e "s#@DIR@#$dir#g" -e "s#@COUNT@#$count#g" -e "/@NODES@/{r $home/nodes
d}" "$here/slurm.conf.in" >"$home/slurm.conf"
printf 'CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n' >"$home/cgroup.conf" # without the file slurmd looks for systemd
(umask 077 && head -c 1024 /dev/urandom >"$home/munge.key")

export PATH=/usr/sbin:/usr/bin:/sbin:/bin SLURM_CONF=$home/slurm.conf
munged --force --key-file="$home/munge.key" --socket="$home/munge.socket" --pid-file="$home/munged.pid" \
    --log-file="$home/munged.log" --seed-file="$home/munge.seed"
slurmctld -c
for i in $(seq "$count"); do ssh "node$i" "SLURM_CONF=$SLURM_CONF PATH=$PATH slurmd"; done
until [ "$(sinfo -h -t idle -o %D)" = "$count" ]; do sleep 0.2; done
sinfo
