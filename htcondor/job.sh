#!/bin/bash
# job.sh SCRIPT OPTION...   runs where the job runs, in its scratch folder.
# arguments.txt, if it exists, holds further options, one per line.
set -eu
script=$1; shift
cd "${_CONDOR_SCRATCH_DIR:-$PWD}"
# nothing may write to / or to the user's home, which does not exist here
export HOME=$PWD TMPDIR=${TMPDIR:-$PWD/tmp} XDG_CACHE_HOME=$PWD/.cache
export MPLCONFIGDIR=$PWD/.cache/matplotlib
export HF_HOME=$PWD/.cache/huggingface TORCH_HOME=$PWD/.cache/torch
export HF_HUB_OFFLINE=1    # weights come from staging; a missing one is an error, not 300 downloads
# SLURM's jobs read and write shared folders; HTCondor puts the staged files here
export STAGING_DIR=${STAGING_DIR:-$PWD}
results=${RESULTS_DIR:-results}
mkdir -p "$TMPDIR" "$results"
[ -e "$script" ] || tar -xzf code.tar.gz    # after exit 85 the folder has the code already
# rows of an earlier try, if there are any
[ -e "$results/records" ] || [ ! -d previous ] || cp -r previous/. "$results/"
arguments=()
[ ! -e arguments.txt ] || mapfile -t arguments < arguments.txt
records=$(find "$results" -name '*.csv' | wc -l)
echo "$(date -Is) $* on $HOSTNAME, GPU ${CUDA_VISIBLE_DEVICES:-none}, records so far: $records"
# sweep_status shows the error of the last try
echo "# $(date -Is) begin" >&2
# if the GPU does not work, fail and try again elsewhere, instead of days on this CPU
[ "$DEVICE" = cpu ] || "$PYTHON" -c "import torch; torch.zeros(1, device='$DEVICE')" || exit 1
# exec: the program itself must get the SIGTERM of an eviction, not this shell
# its exit status: 0 done, 85 checkpointed, 2 bad request, anything else: try again
# HTCondor sets OMP_NUM_THREADS to request_cpus
exec "$PYTHON" "$script" --chtc --results_dir "$results" --device "$DEVICE" \
    --stop_after "$CHUNK_SECONDS" --workers "${OMP_NUM_THREADS:-1}" "$@" "${arguments[@]}"
