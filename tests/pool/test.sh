#!/usr/bin/env bash
# Run the tests of a scheduler in a real pool of this machine.
#   test.sh condor|slurm VENV TEST
# KIND_install.sh unpacks Debian's build of it into VENV/KIND, and KIND_run.sh starts it. Where it
# cannot be installed, the tests are skipped and give the reason.
set -euo pipefail
kind=${1:?condor or slurm}; venv=$(realpath "${2:?VENV}"); test=${3:?a file of tests}
here=$(dirname "$(realpath "$0")")
export PATH=$venv/bin:$PATH
pytest=(python -m pytest -q -m "$kind")
if why=$("$here/${kind}_install.sh" "$venv/$kind" 2>&1); then
    pool=$(mktemp -d) && trap 'rm -rf "$pool"' EXIT
    "$here/${kind}_run.sh" "$venv/$kind" "$pool" "${pytest[@]}" --reruns 2 -p no:cacheprovider \
        --durations=5 "$test"
else
    NO_POOL=$(echo "$why" | tail -n 1) "${pytest[@]}" -rs "$test"
fi
