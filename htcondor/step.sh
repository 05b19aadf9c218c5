#!/bin/bash
# step.sh merge|plot|report DAG_STATUS FAILED_COUNT: what sweep.dag does after the models, in a job's scratch folder.
set -eu
step=$1 failed=$(( $2 != 0 || $3 != 0 ))
cd "${_CONDOR_SCRATCH_DIR:-$PWD}"
export HOME=$PWD TMPDIR=${TMPDIR:-$PWD/tmp} XDG_CACHE_HOME=$PWD/.cache MPLCONFIGDIR=$PWD/.cache/matplotlib
mkdir -p "$TMPDIR" out/results
tar -xzf code.tar.gz
run() { "$PYTHON" "$@"; }
merge() { run utilities.py merge "$@" && cp results/evaluation_results.csv out/results/; }
# 2: there is nothing to draw in a sweep of that threat; plot.err says so
plot() { run plotting.py --results_dir results --figures_dir out/figures || [ $? = 2 ]; }

case $step in
merge) merge ;;
plot) plot ;;
report)
    # models that failed kept MERGE and PLOT from running: the others are summarised and drawn here
    if [ $failed = 1 ]; then { merge --allow_partial && plot; } || echo "no summary: nothing is finished"; fi
    run utilities.py sweep_status --sweep . --out out/report.txt
    exit $failed                             # the FINAL node's status becomes the DAG's
    ;;
esac
