#!/usr/bin/env bash
# Makes MovieLens 100K available in the active environment: it lies in recbole's wheel, of which only that is read.
set -euo pipefail
python -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("recbole") is None)' ||
    python -m pip install -qq --disable-pip-version-check --no-deps recbole==1.2.1
