#!/usr/bin/env bash
# A run on a Cloud TPU slice, from a machine with gcloud. The same command again resumes; nothing here needs a launcher
# on the slice, as JAX finds its hosts by the slice's metadata.
#   bash launch/tpu_pod.sh create NAME TYPE          asks for a slice such as v5litepod-16 (queued; SPOT=1: a spot one)
#   bash launch/tpu_pod.sh status NAME
#   bash launch/tpu_pod.sh install NAME              this checkout's HEAD and its environment, on every host
#   bash launch/tpu_pod.sh run NAME -- train --config configs/dcgan128.py --workdir /mnt/shared/run
#   bash launch/tpu_pod.sh stop NAME                 saves and ends the run
#   bash launch/tpu_pod.sh delete NAME
#   ZONE=us-central1-a   RUNTIME=v2-alpha-tpuv5-lite   DRY_RUN=1: only print what would be run
# The workdir and the prepared release lie on a file system that every host mounts: Filestore, or a bucket by gcsfuse.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
zone="${ZONE:-us-central1-a}"

usage() { sed -n '2,/^set/{/^#   bash/s/^#   //p}' launch/tpu_pod.sh >&2; exit 2; }
gcloud_() { if [ -n "${DRY_RUN:-}" ]; then echo "gcloud $*"; else gcloud "$@"; fi; }
every_host() { gcloud_ compute tpus tpu-vm ssh "$1" --zone="$zone" --worker=all --command="$2"; }

[ $# -ge 2 ] || usage
action="$1" name="$2"
shift 2
case "$action" in
  create)
    [ $# = 1 ] || usage
    spot=()
    [ -z "${SPOT:-}" ] || spot=(--spot)
    # --guaranteed ones wait for capacity, too: a queued resource is granted when there is room
    gcloud_ compute tpus queued-resources create "$name" --node-id="$name" --zone="$zone" --accelerator-type="$1" \
      --runtime-version="${RUNTIME:-v2-alpha-tpuv5-lite}" "${spot[@]}"
    ;;
  status) gcloud_ compute tpus queued-resources describe "$name" --zone="$zone" --format='value(state.state)' ;;
  install)
    archive="$(mktemp -d)/idrid_jax.tar.gz"
    git archive --prefix=idrid_jax/ -o "$archive" HEAD
    gcloud_ compute tpus tpu-vm scp "$archive" "$name:idrid_jax.tar.gz" --zone="$zone" --worker=all
    every_host "$name" 'tar xzf idrid_jax.tar.gz && bash idrid_jax/launch/install.sh tpu'
    ;;
  run)
    [ "${1:-}" = -- ] || usage
    shift
    words="$(printf '%q ' "$@")"
    # ssh hands on neither Ctrl-C nor a lost connection: `stop` below is how a run is told to save and leave
    every_host "$name" "cd idrid_jax && source launch/env.sh && exec .venv/bin/python -m idrid_jax $words"
    ;;
  stop) every_host "$name" "pkill -TERM -f '[p]ython -m idrid_jax'" ;;  # one would do: they agree on the step
  delete) gcloud_ compute tpus queued-resources delete "$name" --zone="$zone" --force --quiet ;;
  *) usage ;;
esac
