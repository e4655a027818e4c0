#!/bin/sh
# Check that a Python can make our virtual environment; on Debian, as root, install what it lacks.
set -eu

python=${1:-}
if [ -z "$python" ] || ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "Python 3.11 or newer is needed, and none was found (looked for: ${python:-python3.11 ... python3})." >&2
    echo "Install one, or name it: make setup PYTHON=/path/to/python3.11" >&2
    exit 1
fi
if "$python" -c 'import venv, ensurepip' 2>/dev/null; then
    exit 0
fi
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    "$(dirname "$0")/apt-install.sh" python3-venv
    "$python" -c 'import venv, ensurepip' && exit 0
fi
echo "$python lacks the modules venv and ensurepip. On Debian or Ubuntu: apt-get install python3-venv" >&2
exit 1
