#!/bin/sh
# Checks and measures ASAG on this machine's NVIDIA GPU: 25 minutes at most, no network. The page and the figures go to
# bench/results/. Options are those of `python -m asag bench device`, such as --only steps.
# PYTHON names the python that has torch and diffusers; otherwise it is that of .venv, and then python3.
cd "$(dirname "$0")/.." || exit 2
if [ -z "$PYTHON" ]; then
    PYTHON=python3
    [ -x .venv/bin/python ] && PYTHON=.venv/bin/python
fi
if ! command -v "$PYTHON" >/dev/null 2>&1; then
    echo "bench/device.sh: there is no $PYTHON; set PYTHON to a python 3.10 or newer that has torch and diffusers" >&2
    exit 2
fi
exec "$PYTHON" -m asag bench device "$@"
