#!/usr/bin/env bash
# One run by N processes on this machine: GPU i for process i where there are GPUs, else a share of the cores each.
#   bash launch/local.sh N -- train --config configs/cgan32.py --workdir runs/cgan32
#   COORDINATOR_PORT=PORT   [a free one]
# Each line of output begins with its process. Ctrl-C and SIGTERM reach all: the run saves and ends well. The first
# process that fails ends the others, and its status is returned.
set -euo pipefail
here="$(dirname "${BASH_SOURCE[0]}")"
if [[ ! "${1:-}" =~ ^[1-9][0-9]*$ || "${2:-}" != -- || -z "${3:-}" ]]; then
  echo "local: usage: bash launch/local.sh N -- train --config FILE --workdir DIR" >&2
  exit 2
fi
if (( BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 501 )); then
  echo "local: bash $BASH_VERSION is too old: 5.1 is needed (on a Mac, Homebrew's)" >&2
  exit 2
fi
n="$1"
shift 2
# shellcheck source=/dev/null
source "$here/env.sh"
python="${PYTHON:-$here/../${VENV:-.venv}/bin/python}"
free='import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
port="${COORDINATOR_PORT:-$("$python" -c "$free")}"
gpus="$( { nvidia-smi --list-gpus 2>/dev/null || :; } | wc -l)"

cores=()  # those this shell may use
if command -v taskset >/dev/null; then
  mapfile -t cores < <("$python" -c 'import os; print(*sorted(os.sched_getaffinity(0)), sep="\n")')
fi
each=$(( ${#cores[@]} / n ))

declare -A running=()  # pid -> process
for (( i = 0; i < n; i++ )); do
  own=()
  if (( gpus >= n )); then
    export CUDA_VISIBLE_DEVICES="$i"
  elif (( each )); then  # else every process would start a thread for each core
    own=(taskset -c "$(IFS=,; echo "${cores[*]:i * each:each}")")
  fi
  "${own[@]}" "$python" -m idrid_jax "$@" \
    --coordinator_address="127.0.0.1:$port" --num_processes="$n" --process_id="$i" \
    > >(exec sed -u "s/^/[$i] /") 2> >(exec sed -u "s/^/[$i] /" >&2) &
  running[$!]=$i
done

# The terminal's Ctrl-C reaches the processes by itself; this shell only waits on
trap : INT
trap 'kill -TERM "${!running[@]}" 2>/dev/null || :' TERM

status=0
while (( ${#running[@]} )); do
  code=0 ended=
  { wait -n -p ended "${!running[@]}" || code=$?; } 2>/dev/null
  [ -n "${ended:-}" ] || continue  # a signal, not an end
  process="${running[$ended]}"
  unset "running[$ended]"
  if (( code && ! status )); then
    status=$code
    how="$code"
    (( code <= 128 )) || how+=", by SIG$(kill -l "$code")"
    echo "local: process $process (pid $ended) ended with status $how; so do the others" >&2
    # They know by themselves, and say so; whoever does not end is ended after half a minute
    ( sleep 30 && kill -KILL "${!running[@]}" ) >/dev/null 2>&1 &
    killer=$!
  fi
done
[ -z "${killer:-}" ] || pkill -P "$killer" 2>/dev/null || :
wait
exit "$status"
