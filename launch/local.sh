#!/usr/bin/env bash
# Train with N processes on this machine. They divide its GPUs (those of CUDA_VISIBLE_DEVICES if it is set), or its cores
# if there are no GPUs.
#   bash launch/local.sh N -- train --config configs/cgan32.py --workdir runs/cgan32
#   COORDINATOR_PORT=PORT   [a free one]
# Every line of output is prefixed with its process. Ctrl-C and SIGTERM reach all processes: the run saves and exits with
# status 0. When a process fails or is lost, a line names it, the others end, and its status is returned.
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
gpus=()
if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
  IFS=, read -ra gpus <<< "$CUDA_VISIBLE_DEVICES"
elif command -v nvidia-smi >/dev/null; then
  mapfile -t gpus < <(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null)
fi
[ "${JAX_PLATFORMS:-}" != cpu ] || gpus=()
if (( ${#gpus[@]} && ${#gpus[@]} < n )); then
  echo "local: $n processes and ${#gpus[@]} GPUs: choose fewer processes, or JAX_PLATFORMS=cpu" >&2
  exit 2
fi

cores=()  # that this shell may use
if command -v taskset >/dev/null; then
  mapfile -t cores < <("$python" -c 'import os; print(*sorted(os.sched_getaffinity(0)), sep="\n")')
fi
each=$(( ${#cores[@]} / n ))

declare -A running=()  # pid -> process
# Ctrl-C is forwarded as SIGTERM: background processes of a shell ignore SIGINT
trap 'kill -TERM "${!running[@]}" 2>/dev/null || :' INT TERM
for (( i = 0; i < n; i++ )); do
  own=()
  if (( ${#gpus[@]} )); then
    first=$(( i * ${#gpus[@]} / n ))
    CUDA_VISIBLE_DEVICES="$(IFS=,; echo "${gpus[*]:first:(i + 1) * ${#gpus[@]} / n - first}")"
    export CUDA_VISIBLE_DEVICES
  elif (( each )); then  # otherwise every process would start one thread per core
    own=(taskset -c "$(IFS=,; echo "${cores[*]:i * each:each}")")
  fi
  "${own[@]}" "$python" -m idrid_jax "$@" \
    --coordinator_address="127.0.0.1:$port" --num_processes="$n" --process_id="$i" \
    > >(exec sed -u "s/^/[$i] /") 2> >(exec sed -u "s/^/[$i] /" >&2) &
  running[$!]=$i
done

status=0
while (( ${#running[@]} )); do
  code=0 ended=
  { wait -n -p ended "${!running[@]}" || code=$?; } 2>/dev/null
  [ -n "${ended:-}" ] || continue  # a signal interrupted `wait`
  process="${running[$ended]}"
  unset "running[$ended]"
  if (( code && ! status )); then
    status=$code
    how="$code"
    (( code <= 128 )) || how+=", by SIG$(kill -l "$code")"
    echo "local: process $process (pid $ended) ended with status $how; the others end too" >&2
    # JAX ends them; a process that waits for the lost one in a collective operation may need to be killed
    ( sleep 30 && kill -KILL "${!running[@]}" ) >/dev/null 2>&1 &
    killer=$!
  fi
done
[ -z "${killer:-}" ] || pkill -P "$killer" 2>/dev/null || :
wait
exit "$status"
