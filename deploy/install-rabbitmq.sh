#!/bin/sh
# Make sure that a RabbitMQ server is installed. Tests and the demo start one of their own from it.
set -eu

if [ -x /usr/sbin/rabbitmq-server ] || [ -x /opt/rabbitmq/sbin/rabbitmq-server ] ||
    command -v rabbitmq-server >/dev/null; then
    exit 0
fi
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "Installing rabbitmq-server with apt-get ..."
    "$(dirname "$0")/apt-install.sh" rabbitmq-server
    exit 0
fi
cat >&2 <<'TEXT'
rabbitmq-server is not installed, and this is not root on a Debian-like system. Install it:
    Debian, Ubuntu    sudo apt-get install --no-install-recommends rabbitmq-server
    macOS             brew install rabbitmq
Nothing needs to be configured, and its service need not run.
TEXT
exit 1
