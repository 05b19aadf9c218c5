#!/bin/bash
# Runs on the execution point, in the job's scratch folder.  job.sh SCRIPT OPTION...; arguments.txt may hold further ones
set -eu
script=$1; shift
cd "${_CONDOR_SCRATCH_DIR:-$PWD}"
# nothing may write to the submitting user's home or to / (there is none here)
export HOME=$PWD TMPDIR=${TMPDIR:-$PWD/tmp} XDG_CACHE_HOME=$PWD/.cache MPLCONFIGDIR=$PWD/.cache/matplotlib
export HF_HOME=$PWD/.cache/huggingface TORCH_HOME=$PWD/.cache/torch
export HF_HUB_OFFLINE=1                      # weights come from staging; a miss is an error, not 300 downloads
export STAGING_DIR=$PWD                      # where HTCondor put them
mkdir -p "$TMPDIR" results
[ -e "$script" ] || tar -xzf code.tar.gz                             # after exit 85 the folder is the same one
[ -e results/records ] || [ ! -d previous ] || cp -r previous/. results/    # rows of an earlier try, where there are any
arguments=()
[ ! -e arguments.txt ] || mapfile -t arguments < arguments.txt
echo "$(date -Is) $* on $HOSTNAME, GPU ${CUDA_VISIBLE_DEVICES:-none}, records so far: $(find results -name '*.csv' | wc -l)"
# a machine whose GPU does not work: another try, elsewhere, instead of days on its CPU
[ "$DEVICE" = cpu ] || "$PYTHON" -c "import torch; torch.zeros(1, device='$DEVICE')" || exit 1
# exec: the program itself must get the SIGTERM of an eviction, not this shell
# its exit status: 0 done, 85 checkpointed, 2 bad request, anything else: try again
exec "$PYTHON" "$script" --chtc --results_dir results --device "$DEVICE" --stop_after "$CHUNK_SECONDS" \
    --workers "${OMP_NUM_THREADS:-1}" "$@" "${arguments[@]}"         # HTCondor sets it to request_cpus
