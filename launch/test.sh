#!/usr/bin/env bash
# Install what is missing and run the tests.
#   bash launch/test.sh [--all] [pytest arguments]
#   --all             every test: slow ones, several processes, PyTorch and Keras peers, real data where it is
#   IDRID_DIR=DIR     a real release, all of parts A and B, for the tests marked real_data (IDRID_SAMPLE_DIR: full-size
#                     photographs of A, B and C; IDRID_FACTS_DIR: known duplicates)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
extras=test marks=()
if [ "${1:-}" = --all ]; then
  shift
  extras=test,peer marks=(-m "")
fi
bash launch/install.sh "${EXTRAS:-$extras}"
exec "${VENV:-.venv}/bin/python" -m pytest -n "${WORKERS:-2}" --dist loadfile --no-loadscope-reorder -q "${marks[@]}" "$@"
