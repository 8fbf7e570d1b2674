# Sourced by the other scripts: messages, and commands that need root.

say() { echo "setup: $*" >&2; }
die() { say "$*"; exit 1; }

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "this needs root: $*; run make as root, or install sudo"
    fi
}

# Prints those of the named Debian packages that are not installed.
missing_packages() {
    for package; do
        dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || echo "$package"
    done
}

# Installs the named Debian packages without starting or enabling any service they bring along.
install_packages() {
    command -v apt-get >/dev/null || die "apt-get is not here; install by hand what this offers in Debian: $*"
    say "installing $*"
    as_root env DEBIAN_FRONTEND=noninteractive sh "$(dirname "$0")/install-quietly.sh" "$@"
}
