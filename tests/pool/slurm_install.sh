#!/usr/bin/env bash
# Unpack Debian's SLURM into PREFIX, without touching the host's packages.
#   slurm_install.sh PREFIX
set -euo pipefail
PREFIX=$(realpath -m "${1:?usage: slurm_install.sh PREFIX}")
[ -e "$PREFIX/.complete" ] && exit 0
. /etc/os-release
[ "${ID:-}" = debian ] || { echo "not Debian: this machine's packages are not read" >&2; exit 1; }
packages=(slurmctld slurmd slurm-client slurm-wlm-basic-plugins
    libmunge2 libhwloc15 libjson-c5 liblua5.1-0 libnuma1 libyaml-0-2)
mkdir -p "$PREFIX/debs"
cd "$PREFIX/debs"
download() { apt-get download -qq "${packages[@]}" 2>&1; }
why=$(download) || { apt-get update -qq >/dev/null 2>&1 || true; why=$(download); } ||
    { echo "SLURM cannot be downloaded: $(echo "$why" | tail -n 1)" >&2; exit 1; }
for deb in *.deb; do dpkg-deb -x "$deb" "$PREFIX"; done
rm -rf "$PREFIX/debs"
libraries=$PREFIX/usr/lib/x86_64-linux-gnu
LD_LIBRARY_PATH=$libraries:$libraries/slurm-wlm "$PREFIX/usr/sbin/slurmctld-wlm" -V
touch "$PREFIX/.complete"
