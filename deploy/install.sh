#!/usr/bin/env bash
# Makes .venv from the lock file that fits this machine. Does nothing if that is what .venv already holds.
#
#   KANABO_DEVICE=cpu|gpu  which lock file; without it, whether there is an NVIDIA driver decides
#   PYTHON=...             which Python; without it, the first of python3.12, python3.11 and python3 that will do
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH=${PATH//"$PWD/.venv/bin:"/} # .venv must not be made from itself

fail() {
    printf 'install: %s\n' "$*" >&2
    exit 2
}

detect_device() {
    if [ -e /proc/driver/nvidia ] || nvidia-smi >/dev/null 2>&1; then echo gpu; else echo cpu; fi
}

python_version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

# Prints what keeps $1 from being used, or nothing. It has to be run to know: a version manager's shim may only exist.
python_problem() {
    "$1" - 2>/dev/null <<'PY' || echo "does not run"
import os, sys, sysconfig

def problem():
    if sys.version_info[:2] not in ((3, 11), (3, 12)):
        return "is %d.%d" % sys.version_info[:2]
    try:
        import ensurepip, venv
    except ImportError:
        return "lacks venv (Debian, Ubuntu: apt-get install python%d.%d-venv)" % sys.version_info[:2]
    # DeepSpeed compiles an extension when it is first used.
    if not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")):
        return "lacks its C headers (Debian, Ubuntu: apt-get install python%d.%d-dev)" % sys.version_info[:2]

found = problem()
if found:
    print(found)
PY
}

choose_python() {
    local candidate problem problems="" candidates=(python3.12 python3.11 python3)
    [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        problem=$(python_problem "$candidate")
        if [ -z "$problem" ]; then
            echo "$candidate"
            return
        fi
        problems+="${problems:+; }$candidate $problem"
    done
    fail "needs Python 3.11 or 3.12, but $problems. Install one, or name it: PYTHON=/path/to/python3.12"
}

device=${KANABO_DEVICE:-$(detect_device)}
[[ $device == cpu || $device == gpu ]] || fail "KANABO_DEVICE is '$device'; it may be cpu or gpu."
lock=requirements-$device.lock
stamp=.venv/installed
wanted="$lock $(sha256sum <"$lock" | cut -d' ' -f1)"

# Two targets started at once install once.
exec 9<"$lock"
flock 9

pip() { .venv/bin/python -m pip -qq --disable-pip-version-check "$@"; }

# `kanabo`, as the code here defines it. An image makes .venv before it has the code.
install_command() {
    [ -x .venv/bin/kanabo ] || [ ! -e pyproject.toml ] || pip install --no-deps --no-build-isolation -e .
}

# The stamp is written last, so what an interrupted installation left counts for nothing.
if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && .venv/bin/python -c '' 2>/dev/null &&
    { [ -z "${PYTHON:-}" ] || [ "$(python_version "$PYTHON")" = "$(python_version .venv/bin/python)" ]; }; then
    install_command
    exit 0
fi

command -v g++ >/dev/null || fail "needs a C++ compiler, g++ (Debian, Ubuntu: apt-get install g++)."
python=$(choose_python)

echo "[1/3] .venv with Python $(python_version "$python"), for $device (10 s)"
"$python" -m venv --clear .venv

torch=$(grep '^torch==' "$lock")
if [ "$device" = cpu ]; then
    echo "[2/3] $torch (200 MB, 1 min)"
    # PyPI has only the CUDA build; a mirror may have this one.
    { pip install --no-deps "$torch" || pip install --no-deps --index-url https://download.pytorch.org/whl/cpu "$torch"; } \
        2>.venv/torch.log || { cat .venv/torch.log >&2; fail "$torch is neither in pip's index nor in PyTorch's own."; }
    echo "[3/3] $(grep -c == "$lock") packages of $lock (1 GB, 3 min)"
else
    echo "[2/3] $torch (1 GB, 2 min)"
    pip install --no-deps "$torch"
    echo "[3/3] $(grep -c == "$lock") packages of $lock (several GB, 10 min)"
fi
# Source distributions are built with the locked setuptools; which of the two names pip reads depends on its version.
PIP_CONSTRAINT=$lock PIP_BUILD_CONSTRAINT=$lock pip install --no-deps -r "$lock"

echo "$wanted" >"$stamp"
install_command
