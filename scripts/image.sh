#!/usr/bin/env bash
# Puts together below target/image what the target `prebuilt` of the Dockerfile copies: the programs as cargo left them, the
# libraries they load and nothing else of this machine, certificates, and the image's user. Only for this machine's architecture.
#   scripts/image.sh [FOLDER]    FOLDER holds the programs; default: target/release
set -euo pipefail
cd "$(dirname "$0")/.."
readonly FROM=${1:-${CARGO_TARGET_DIR:-target}/release}
readonly PROGRAMS=(certeus-dataplane certeus-operator certeus)

case $(uname -m) in
    x86_64) architecture=amd64 ;;
    aarch64) architecture=arm64 ;;
    *) echo "image: no image for $(uname -m)" >&2 && exit 1 ;;
esac
readonly ROOT=target/image/$architecture

rm -rf "$ROOT" target/image/state
mkdir -p "$ROOT/usr/local/bin" "$ROOT/etc/ssl/certs" "$ROOT/tmp" target/image/state
chmod 1777 "$ROOT/tmp"
for program in "${PROGRAMS[@]}"; do
    if [ ! -x "$FROM/$program" ]; then
        echo "image: $FROM/$program is missing: run 'make build'" >&2
        exit 1
    fi
    install -m 755 "$FROM/$program" "$ROOT/usr/local/bin"
    strip --strip-debug "$ROOT/usr/local/bin/$program"
    # Each line names a library and where it lies; the loader's own line has no arrow. The path stays the same, so that the loader
    # finds what it found here.
    ldd "$FROM/$program" | grep -oE '/[^ ]+' | while read -r library; do
        install -D -m 755 "$library" "$ROOT$library"
    done
done
install -m 644 /etc/ssl/certs/ca-certificates.crt "$ROOT/etc/ssl/certs"
echo 'nonroot:x:65532:65532:nonroot:/:/sbin/nologin' >"$ROOT/etc/passwd"
echo 'nonroot:x:65532:' >"$ROOT/etc/group"
# Without it glibc asks a resolver before it looks into /etc/hosts.
echo 'hosts: files dns' >"$ROOT/etc/nsswitch.conf"
# An empty folder is not in every build context.
touch target/image/state/.keep
echo "image: $ROOT, $(du -sh "$ROOT" | cut -f1)"
