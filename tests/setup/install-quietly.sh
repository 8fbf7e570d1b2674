#!/bin/sh
# install-quietly.sh PACKAGE...: apt-get install as root, with no service started now or at the next boot.
set -eu

policy=/usr/sbin/policy-rc.d
before=$(mktemp)
after=$(mktemp)
own_policy=

clean_up() {
    [ -z "$own_policy" ] || rm -f "$policy"
    rm -f "$before" "$after"
}
trap clean_up EXIT
trap 'exit 1' HUP INT TERM

if [ ! -e "$policy" ]; then
    own_policy=yes
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi

installed() { dpkg-query -W -f '${db:Status-Status} ${binary:Package}\n' | sed -n 's/^installed //p' | sort; }

installed >"$before"
apt_get() { apt-get -q -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "$@"; }
apt_get install -y --no-install-recommends "$@" >/dev/null 2>&1 || {
    apt_get update >/dev/null
    apt_get install -y --no-install-recommends "$@"
}
installed >"$after"

for package in $(comm -13 "$before" "$after"); do
    for file in $(dpkg -L "$package"); do
        case $file in
        */systemd/system/*.service | */systemd/system/*.socket | */systemd/system/*.timer)
            ! command -v systemctl >/dev/null || systemctl --quiet disable "${file##*/}" 2>/dev/null || true ;;
        /etc/init.d/*)
            ! command -v update-rc.d >/dev/null || update-rc.d "${file##*/}" disable 2>/dev/null || true ;;
        esac
    done
done
