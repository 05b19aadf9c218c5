#!/usr/bin/env bash
# Run CMD beside a real personal HTCondor pool on 127.0.0.1, then take the pool down.
#
#   condor_run.sh PREFIX POOLDIR CMD [ARG...]
#
# PREFIX  what condor_install.sh made.   POOLDIR  an empty or new folder (config, logs, spool).
# CMD sees CONDOR_CONFIG and the condor tools on PATH; its exit status is ours.
#
# HTCondor runs no job for uid 0. Run as root, this script enters a user namespace in which
# root's uid is mapped to an ordinary one: the daemons see an ordinary user, and the jobs can
# still read what root owns (its Python, the checkout). A PID namespace around it means
# that nothing outlives the command: when its first process ends, the kernel ends the rest.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
PREFIX=$(realpath "${1:?PREFIX}"); POOL=$(realpath -m "${2:?POOLDIR}"); shift 2
[ $# -gt 0 ] || { echo "no command" >&2; exit 2; }

if [ "$(id -u)" = 0 ]; then
    mkdir -p "$POOL"
    uid=$(id -u www-data); gid=$(id -g www-data)          # any ordinary entry of /etc/passwd
    exec unshare --user --map-user="$uid" --map-group="$gid" --pid --fork --kill-child --mount-proc \
        -- env HOME="$POOL" USER=www-data LOGNAME=www-data "$0" "$PREFIX" "$POOL" "$@"
fi

mkdir -p "$POOL"/{log,spool,execute,lock,run,tokens,passwords,staging}
chmod 700 "$POOL"/{tokens,passwords}
# A stand-in for CHTC's Pelican plugin: osdf:///chtc/X is the folder POOLDIR/X.
cat > "$POOL/osdf_plugin" <<E
#!/bin/sh
exec python3 "$here/osdf_plugin.py" "$POOL" "\$@"
E
chmod +x "$POOL/osdf_plugin"
cat > "$POOL/condor_config" <<E
RELEASE_DIR = $PREFIX/usr
LOCAL_DIR = $POOL
LOCAL_CONFIG_DIR =
LOCAL_CONFIG_FILE =
BIN = \$(RELEASE_DIR)/bin
SBIN = \$(RELEASE_DIR)/sbin
LIB = \$(RELEASE_DIR)/lib/condor
LIBEXEC = \$(RELEASE_DIR)/libexec/condor
SHARE = \$(RELEASE_DIR)/share/condor
LOG = \$(LOCAL_DIR)/log
SPOOL = \$(LOCAL_DIR)/spool
EXECUTE = \$(LOCAL_DIR)/execute
LOCK = \$(LOCAL_DIR)/lock
RUN = \$(LOCAL_DIR)/run
use ROLE: Personal
CONDOR_HOST = 127.0.0.1
NETWORK_INTERFACE = 127.0.0.1
BIND_ALL_INTERFACES = False
# port 0: the kernel picks; clients find the daemons by these files, so pools can run side by side
COLLECTOR_HOST = 127.0.0.1:0
SHARED_PORT_PORT = 0
COLLECTOR_ADDRESS_FILE = \$(LOG)/.collector_address
MASTER_ADDRESS_FILE = \$(LOG)/.master_address
SCHEDD_ADDRESS_FILE = \$(LOG)/.schedd_address
JOB_QUEUE_LOG = \$(SPOOL)/job_queue.log
# loopback only, one user, FS authentication
SEC_DEFAULT_AUTHENTICATION = REQUIRED
SEC_DEFAULT_AUTHENTICATION_METHODS = FS
SEC_TOKEN_DIRECTORY = \$(LOCAL_DIR)/tokens
SEC_TOKEN_SYSTEM_DIRECTORY = \$(LOCAL_DIR)/tokens
SEC_PASSWORD_DIRECTORY = \$(LOCAL_DIR)/passwords
ALLOW_READ = *
ALLOW_WRITE = *
ALLOW_DAEMON = *
ALLOW_NEGOTIATOR = *
ALLOW_ADMINISTRATOR = *
# quick cycles, for tests
NEGOTIATOR_INTERVAL = 1
NEGOTIATOR_MIN_INTERVAL = 1
NEGOTIATOR_CYCLE_DELAY = 1
SCHEDD_INTERVAL = 2
SCHEDD_MIN_INTERVAL = 1
PERIODIC_EXPR_INTERVAL = 2
UPDATE_INTERVAL = 1
POLLING_INTERVAL = 1
STARTER_UPDATE_INTERVAL = 2
STARTER_INITIAL_UPDATE_INTERVAL = 1
SHADOW_QUEUE_UPDATE_INTERVAL = 2
DAGMAN_USER_LOG_SCAN_INTERVAL = 1
DAGMAN_SUBMIT_DELAY = 0
RUNBENCHMARKS = 0
# DAGMan otherwise refuses to keep its node log under /tmp, where tests run
DAGMAN_USE_STRICT = 0
# one partitionable slot, bigger than the machine on paper
NUM_CPUS = ${POOL_CPUS:-8}
MEMORY = ${POOL_MEMORY_MB:-65536}
NUM_SLOTS = 1
NUM_SLOTS_TYPE_1 = 1
SLOT_TYPE_1 = 100%
SLOT_TYPE_1_PARTITIONABLE = True
# two simulated A100-40GB, so that request_gpus and gpus_minimum_* are really matched
use FEATURE: GPUs
GPU_DISCOVERY_EXTRA = -extra -simulate:${POOL_GPU:-4,2}
# CHTC's own attribute
HasCHTCStaging = True
STARTD_ATTRS = \$(STARTD_ATTRS) HasCHTCStaging
FILETRANSFER_PLUGINS = $POOL/osdf_plugin
SINGULARITY = /usr/bin/false
DOCKER =
MAIL = /bin/true
START = True
SUSPEND = False
PREEMPT = False
KILL = False
WANT_SUSPEND = False
MachineMaxVacateTime = 5
${POOL_EXTRA_CONFIG:-}
E
export CONDOR_CONFIG=$POOL/condor_config PATH=$PREFIX/usr/bin:$PREFIX/usr/sbin:$PATH
condor_master -f >"$POOL/log/master.out" 2>&1 &
master=$!
up=
for _ in $(seq 120); do
    kill -0 "$master" 2>/dev/null || break
    if [ -n "$(condor_status -af Name 2>/dev/null)" ] && [ -n "$(condor_status -schedd -af Name 2>/dev/null)" ]; then up=1; break; fi
    sleep 0.25
done
[ -n "$up" ] || { echo "the pool did not come up:" >&2; tail -n 30 "$POOL"/log/master.out "$POOL"/log/MasterLog >&2; exit 70; }
rc=0; "$@" || rc=$?
condor_off -fast -daemon master >/dev/null 2>&1 || kill -QUIT "$master" 2>/dev/null || true
for _ in $(seq 80); do kill -0 "$master" 2>/dev/null || break; sleep 0.25; done
exit "$rc"
