#!/usr/bin/env bash
# Makes .venv in the project and installs into it, once: a second call with the same files and extras returns at once.
#   bash launch/install.sh [EXTRAS]        EXTRAS: comma-separated, of pyproject.toml (cuda, tpu, tpu-plan, test, peer)
#   PYTHON=python3.12                      another interpreter; VENV=DIR another place
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

extras="${1:-}"
python="${PYTHON:-python3}"
venv="${VENV:-.venv}"

if ! command -v "$python" >/dev/null; then
  echo "install: $python is not there: Python 3.11 to 3.13 is needed; name one with PYTHON=python3.12" >&2
  exit 2
fi
if ! "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'; then
  echo "install: $python is $("$python" --version 2>&1): Python 3.11 to 3.13 is needed; name one with PYTHON=python3.12" >&2
  exit 2
fi

want="$(cat pyproject.toml launch/constraints.txt | cksum) $("$python" --version)"
stamp="$venv/.installed"
missing=no
for extra in ${extras//,/ } base; do
  grep -qsxF "$extra $want" "$stamp" || missing=yes
done
[ "$missing" = yes ] || exit 0

echo "install: idrid_jax${extras:+[$extras]} into $venv (some minutes the first time)"
# of another Python, or broken half-way
if [ "$("$venv/bin/python" --version 2>/dev/null)" != "$("$python" --version)" ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
  "$python" -m venv "$venv" --clear
fi
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c launch/constraints.txt -e ".${extras:+[$extras]}"
for extra in ${extras//,/ } base; do
  echo "$extra $want" >> "$stamp"
done
