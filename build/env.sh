#!/usr/bin/env bash
# Creates or updates .venv and puts it first on PATH; does nothing when it is up to date.
#   source build/env.sh     in a script: afterwards `python` is the project's
#   build/env.sh            by hand
# Settings: PYTHON (interpreter that makes the environment, default python3), DEEPRECSYS_VENV (where, default .venv).
_drs_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
_drs_venv=${DEEPRECSYS_VENV:-$_drs_root/.venv}
_drs_wanted=$_drs_root/build/pip_requirements.txt

_drs_setup() {
    if cmp -s "$_drs_wanted" "$_drs_venv/installed_requirements.txt"; then return 0; fi
    local python=${PYTHON:-python3}
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        { echo "build/env.sh: $python is older than Python 3.11; set PYTHON to a newer one" >&2; return 2; }
    echo "Setting up $_drs_venv (once; PyTorch is large, so this can take some minutes)" >&2
    "$python" -m venv "$_drs_venv" || return 2
    "$_drs_venv/bin/python" -m pip install -qq --disable-pip-version-check -r "$_drs_wanted" ||
        { echo "build/env.sh: pip could not install $_drs_wanted; the lines above say why" >&2; return 2; }
    cp "$_drs_wanted" "$_drs_venv/installed_requirements.txt"
}

if _drs_setup; then
    export PATH="$_drs_venv/bin:$PATH"
    unset PYTHONHOME
else
    return 2 2>/dev/null || exit 2
fi
