#!/bin/bash
# step.sh merge|plot|report DAG_STATUS FAILED_COUNT
# The steps of sweep.dag that follow the models; runs in a job's scratch folder.
set -eu
step=$1 failed=$(( $2 != 0 || $3 != 0 ))
cd "${_CONDOR_SCRATCH_DIR:-$PWD}"
export HOME=$PWD TMPDIR=${TMPDIR:-$PWD/tmp} XDG_CACHE_HOME=$PWD/.cache
export MPLCONFIGDIR=$PWD/.cache/matplotlib
mkdir -p "$TMPDIR" out/results
tar -xzf code.tar.gz
run() { "$PYTHON" "$@"; }
merge() { run utilities.py merge "$@" && cp results/evaluation_results.csv out/results/; }
# status 2: this threat has no figure; plot.err says so
plot() { run plotting.py --results_dir results --figures_dir out/figures || [ $? = 2 ]; }

case $step in
merge) merge ;;
plot) plot ;;
report)
    # MERGE and PLOT do not run when a model failed: summarise and draw the others here
    if [ $failed = 1 ]; then
        { merge --allow_partial && plot; } || echo "no summary: nothing is finished"
    fi
    run utilities.py sweep_status --sweep . --out out/report.txt
    exit $failed    # the status of the FINAL node becomes the DAG's
    ;;
esac
