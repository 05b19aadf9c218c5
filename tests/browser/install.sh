#!/usr/bin/env bash
# Put a headless Chromium (Debian's package with its libraries) and axe-core (npm's) into PREFIX,
# without touching the host's packages: PREFIX/chromium starts the browser, PREFIX/axe.min.js checks
# accessibility.   usage: install.sh PREFIX
set -euo pipefail
PREFIX=$(realpath -m "${1:?usage: install.sh PREFIX}")
AXE=axe-core@4.14.1
[ -e "$PREFIX/.complete" ] && exit 0
for command in apt-get dpkg-deb npm; do
    command -v $command >/dev/null || { echo "no $command on this machine" >&2; exit 1; }
done
mkdir -p "$PREFIX/debs/partial" && cd "$PREFIX"
[ -n "$(apt-cache search --names-only '^chromium$')" ] || apt-get update -qq
# An empty Dir::State::status makes apt resolve the whole closure, not what this machine lacks.
apt-get -o Dir::State::status=/dev/null -o Dir::Cache::archives="$PREFIX/debs" \
    -o Debug::NoLocking=1 -o APT::Sandbox::User=root \
    install -qq -y --download-only --no-install-recommends chromium >/dev/null
for deb in debs/*.deb; do
    case $(basename "$deb") in
        libc6_*|libgcc-s1_*|libstdc++6_*) ;;                  # the host's
        chromium*|lib*) dpkg-deb -x "$deb" . ;;
    esac
done
rm -rf debs
npm pack --silent $AXE >/dev/null
tar xzf axe-core-*.tgz --strip-components 1 package/axe.min.js && rm axe-core-*.tgz
lib=$PREFIX/usr/lib/x86_64-linux-gnu
cat > chromium <<END
#!/bin/sh
export LD_LIBRARY_PATH=$lib:$PREFIX/lib/x86_64-linux-gnu:$lib/pulseaudio
exec $PREFIX/usr/lib/chromium/chromium "\$@"
END
chmod +x chromium
./chromium --version
touch .complete
