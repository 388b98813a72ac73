#!/usr/bin/env bash
# A real Slurm on this one machine, for `launcher=slurm` and its test: Debian's packages, munge, one node, one
# partition "debug". Needs root (or sudo bash scripts/slurm_single_node.sh); started again, it restarts the daemons.
#   bash scripts/slurm_single_node.sh         install what is missing, start
#   bash scripts/slurm_single_node.sh stop    stop the daemons
set -euo pipefail
state=/var/lib/dcp-slurm config=/etc/slurm/slurm.conf log=/var/log/slurm

stop() {
    for name in slurmd slurmctld munged; do
        pid=$(cat "$state/$name.pid" 2>/dev/null || true)
        if [ -n "$pid" ] && kill "$pid" 2>/dev/null; then
            for _ in $(seq 50); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
        fi
        rm -f "$state/$name.pid"
    done
}

[ "$(id -u)" = 0 ] || { echo "error: root expected, got $(id -un); run it with sudo" >&2; exit 2; }
if [ "${1:-}" = stop ]; then stop; exit; fi
if ! command -v slurmctld slurmd munged sinfo >/dev/null; then
    command -v apt-get >/dev/null || { echo "error: apt-get not found; install slurmctld, slurmd, slurm-client, munge" >&2; exit 2; }
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends slurmctld slurmd slurm-client munge
fi
if [ -s "$config" ] && ! grep -q '^ClusterName=dcp$' "$config"; then
    echo "error: $config belongs to another Slurm; this script is for a machine without one" >&2; exit 2
fi
stop
mkdir -p "$state/ctld" "$state/slurmd" "$log" /run/munge
chown munge: /run/munge
[ -s /etc/munge/munge.key ] || { mungekey --create; chown munge: /etc/munge/munge.key; }

memory=$(awk '/MemTotal/ {print int($2 / 1024 * 0.9)}' /proc/meminfo)
cat > "$config" <<CONF
ClusterName=dcp
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
SlurmctldPidFile=$state/slurmctld.pid
SlurmdPidFile=$state/slurmd.pid
StateSaveLocation=$state/ctld
SlurmdSpoolDir=$state/slurmd
SlurmctldLogFile=$log/slurmctld.log
SlurmdLogFile=$log/slurmd.log
# no systemd, cgroups or accounting: a container has none of them
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
NodeName=$(hostname -s) NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=$memory State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF

runuser -u munge -- munged --pid-file=/run/munge/munged.pid
ln -sf /run/munge/munged.pid "$state/munged.pid"
slurmctld
slurmd
for _ in $(seq 100); do
    if sinfo -h -o %T 2>/dev/null | grep -qE '^(idle|mixed|allocated)$'; then sinfo; exit 0; fi
    sleep 0.2
done
echo "error: the node did not come up within 20 s; see $log/slurmctld.log and $log/slurmd.log" >&2
sinfo >&2 || true
tail -n 20 "$log/slurmd.log" "$log/slurmctld.log" >&2
exit 1
