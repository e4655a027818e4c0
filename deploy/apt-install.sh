#!/bin/sh
# Install Debian packages without questions, recommendations or started services.
set -eu

policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    # 101: "action not allowed". The packages' own services would take the standard ports.
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
    trap 'rm -f "$policy"' EXIT
fi

install() {
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet --no-install-recommends \
        -o DPkg::Lock::Timeout=120 "$@" </dev/null
}

# A list of packages may be absent or too old; fetch it only then.
install "$@" || {
    apt-get update --quiet </dev/null
    install "$@"
}
