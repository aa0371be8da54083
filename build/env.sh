#!/usr/bin/env bash
# Creates or updates .venv, puts it first on PATH and makes the project importable from any folder.
# Nothing is installed while everything is up to date.
#   source build/env.sh                           in a script: afterwards `python` is the project's
#   DEEPRECSYS_TESTS=1 source build/env.sh        with what tests and checks need
#   build/env.sh                                  by hand
# Settings: PYTHON (interpreter that makes the environment, default python3), DEEPRECSYS_VENV (where, default .venv).
_drs_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
_drs_venv=${DEEPRECSYS_VENV:-$_drs_root/.venv}

_drs_install() { # a file of requirements, which stays in the environment as the mark that it is installed
    local wanted=$_drs_root/build/$1 python=${PYTHON:-python3}
    if cmp -s "$wanted" "$_drs_venv/installed_$1"; then return 0; fi
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        { echo "build/env.sh: $python is older than Python 3.11; set PYTHON to a newer one" >&2; return 2; }
    echo "Installing build/$1 into $_drs_venv (once; PyTorch is large, so this can take some minutes)" >&2
    "$python" -m venv "$_drs_venv" || return 2
    "$_drs_venv/bin/python" -m pip install -qq --disable-pip-version-check -r "$wanted" ||
        { echo "build/env.sh: pip could not install $wanted; the lines above say why" >&2; return 2; }
    cp "$wanted" "$_drs_venv/installed_$1"
}

_drs_setup() {
    _drs_install pip_requirements.txt || return 2
    if [[ -n ${DEEPRECSYS_TESTS:-} ]]; then _drs_install test_requirements.txt || return 2; fi
    if [[ $_drs_venv == "$_drs_root/.venv" ]]; then # an environment of several trees belongs to none
        local packages
        for packages in "$_drs_venv"/lib/python3.*/site-packages; do
            echo "$_drs_root" >"$packages/deeprecsys.pth" || return 2
        done
    fi
}

if _drs_setup; then
    export PATH="$_drs_venv/bin:$PATH"
    if [[ :${PYTHONPATH:-}: != *":$_drs_root:"* ]]; then
        export PYTHONPATH="$_drs_root${PYTHONPATH:+:$PYTHONPATH}"
    fi
    unset PYTHONHOME
else
    return 2 2>/dev/null || exit 2
fi
