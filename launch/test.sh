#!/usr/bin/env bash
# Makes the environment if needed and runs the tests.
#   bash launch/test.sh [pytest's arguments]
#   EXTRAS=test,peer      also installs PyTorch (CPU) and compares the networks with it
#   IDRID_DIR=DIR         also runs what needs a real release
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/install.sh "${EXTRAS:-test}"
exec "${VENV:-.venv}/bin/python" -m pytest -n "${WORKERS:-2}" --dist loadfile -q "$@"
