#!/bin/sh
# Finds a Python 3.11 and makes the environment with it: sh tools/make_env.sh core|hear
# Shell built-ins only up to there: nothing else need be installed for the message to come.

is_311() {
    [ "$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" = 3.11 ]
}

fail() {
    echo "environment: $1" >&2
    exit 1
}

if [ -n "${PYTHON:-}" ]; then
    is_311 "$PYTHON" || fail "PYTHON=$PYTHON is not a working Python 3.11: give the path of one, or leave PYTHON empty"
elif is_311 python3.11; then
    PYTHON=python3.11
elif is_311 python3; then
    PYTHON=python3
else
    fail "Python 3.11 is missing: install it (Debian, Ubuntu: apt-get install python3.11 python3.11-venv), or give its path as PYTHON=..."
fi

exec "$PYTHON" "${0%/*}/make_env.py" "$@"
