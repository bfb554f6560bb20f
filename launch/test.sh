#!/usr/bin/env bash
# Makes the environment if needed and runs the tests.
#   bash launch/test.sh [pytest's arguments]
#   EXTRAS=test,peer      also installs PyTorch (CPU) and compares the networks with it
#   IDRID_DIR=DIR         a real release, all of parts A and B: also runs what needs one (IDRID_SAMPLE_DIR: full-size
#                         photographs of A, B and C; IDRID_FACTS_DIR: what is known of copies)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/install.sh "${EXTRAS:-test}"
exec "${VENV:-.venv}/bin/python" -m pytest -n "${WORKERS:-2}" --dist loadfile --no-loadscope-reorder -q "$@"
