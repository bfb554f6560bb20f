#!/usr/bin/env bash
# Create .venv in the checkout and install idrid_jax into it. A second call with the same files and extras does nothing.
#   bash launch/install.sh [EXTRAS]     comma-separated extras of pyproject.toml: cuda, tpu, tpu-plan, test, peer
#   PYTHON=python3.12                   another interpreter [python3; else one that uv finds or downloads]
#   VENV=DIR                            another environment [.venv]
# Python 3.11 to 3.13 are tested; 3.14 is allowed and untested.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

extras="${1:-}"
python="${PYTHON:-python3}"
venv="${VENV:-.venv}"

supported() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null; }
if ! supported "$python"; then
  found="$("$python" --version 2>/dev/null || echo 'not found')"
  from_uv=
  if [ -z "${PYTHON:-}" ] && command -v uv >/dev/null; then
    from_uv="$(uv python find '>=3.11,<3.14' 2>/dev/null)" ||
      { uv python install 3.12 && from_uv="$(uv python find 3.12)"; } || from_uv=
  fi
  if [ -z "$from_uv" ] || ! supported "$from_uv"; then
    echo "install: $python ($found): Python 3.11 to 3.14 is needed; choose one with PYTHON=python3.12" >&2
    exit 2
  fi
  python="$from_uv"
fi
version="$("$python" --version)"
case "$version" in "Python 3.14"*) echo "install: $version is untested: 3.11 to 3.13 are tested" >&2 ;; esac

want="$(cat pyproject.toml launch/constraints.txt | cksum) $version"
stamp="$venv/.installed"
missing=no
for extra in ${extras//,/ } base; do
  grep -qsxF "$extra $want" "$stamp" || missing=yes
done
[ "$missing" = yes ] || exit 0

echo "install: idrid_jax${extras:+[$extras]} into $venv (takes minutes the first time)"
# An environment of another Python, or an incomplete one, is replaced
if [ "$("$venv/bin/python" --version 2>/dev/null)" != "$version" ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
  "$python" -m venv "$venv" --clear
fi
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c launch/constraints.txt -e ".${extras:+[$extras]}"
for extra in ${extras//,/ } base; do
  echo "$extra $want" >> "$stamp"
done
