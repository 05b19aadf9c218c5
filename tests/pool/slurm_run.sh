#!/usr/bin/env bash
# Run CMD beside a real SLURM cluster of one node on 127.0.0.1, then take it down.
#   slurm_run.sh PREFIX FOLDER CMD [ARG...]
# PREFIX is what slurm_install.sh made, FOLDER an empty or new one (configuration, logs, spool).
# CMD sees SLURM_CONF and SLURM's tools on PATH; its exit status is ours.
set -euo pipefail
PREFIX=$(realpath "${1:?PREFIX}"); FOLDER=$(realpath -m "${2:?FOLDER}"); shift 2
[ $# -gt 0 ] || { echo "no command" >&2; exit 2; }
mkdir -p "$FOLDER"/{state,spool,log}
libraries=$PREFIX/usr/lib/x86_64-linux-gnu
export LD_LIBRARY_PATH=$libraries:$libraries/slurm-wlm PATH=$PREFIX/usr/bin:$PREFIX/usr/sbin:$PATH
export SLURM_CONF=$FOLDER/slurm.conf
port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
node=$(hostname -s)
cat > "$SLURM_CONF" <<E2
ClusterName=test
SlurmctldHost=$node(127.0.0.1)
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
SlurmctldPort=$(port)
SlurmdPort=$(port)
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=5
PluginDir=$libraries/slurm-wlm
StateSaveLocation=$FOLDER/state
SlurmdSpoolDir=$FOLDER/spool
SlurmctldPidFile=$FOLDER/slurmctld.pid
SlurmdPidFile=$FOLDER/slurmd.pid
SlurmctldLogFile=$FOLDER/log/slurmctld.log
SlurmdLogFile=$FOLDER/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
# a job of urgent preempts those of main, which get SIGTERM and GraceTime
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_interval=2,bf_interval=2
ReturnToService=2
SlurmdParameters=config_overrides
NodeName=$node NodeAddr=127.0.0.1 CPUs=${SLURM_TEST_CPUS:-2} RealMemory=65536 State=UNKNOWN
PartitionName=main Nodes=$node Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=30
PartitionName=urgent Nodes=$node MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=off
E2
slurmctld-wlm -D -i > "$FOLDER/log/slurmctld.out" 2>&1 & controller=$!
slurmd-wlm -D -N "$node" -d "$PREFIX/usr/sbin/slurmstepd-wlm" > "$FOLDER/log/slurmd.out" 2>&1 & daemon=$!
up=
for _ in $(seq 120); do
    kill -0 "$controller" "$daemon" 2>/dev/null || break
    if sinfo -h -o %T 2>/dev/null | grep -q idle; then up=1; break; fi
    sleep 0.25
done
[ -n "$up" ] || { echo "the cluster did not come up:" >&2; tail -n 20 "$FOLDER"/log/* >&2; kill "$controller" "$daemon" 2>/dev/null; exit 70; }
rc=0; "$@" || rc=$?
scancel --user="$(id -un)" >/dev/null 2>&1 || true
for _ in $(seq 20); do [ -n "$(squeue -h 2>/dev/null)" ] || break; sleep 0.25; done
kill "$daemon" "$controller" 2>/dev/null || true
wait "$daemon" "$controller" 2>/dev/null || true
exit "$rc"
