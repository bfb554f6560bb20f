#!/usr/bin/env bash
# Train on a Cloud TPU slice, from a machine with gcloud. The same command again resumes. JAX finds the hosts by the
# slice's metadata. Untested: no TPU was available.
#   bash launch/tpu_pod.sh create NAME TYPE          request a slice such as v5litepod-16 (queued; SPOT=1: spot)
#   bash launch/tpu_pod.sh status NAME
#   bash launch/tpu_pod.sh install NAME              copy this checkout's HEAD to every host and install it
#   bash launch/tpu_pod.sh run NAME -- train --config configs/dcgan128.py --workdir /mnt/shared/run
#   bash launch/tpu_pod.sh stop NAME                 save and end the run
#   bash launch/tpu_pod.sh delete NAME
#   ZONE=us-central1-a   RUNTIME=v2-alpha-tpuv5-lite   DRY_RUN=1: only print the commands
# `run` starts `train` on every host, and other commands on host 0 with JAX_PLATFORMS=cpu. The run directory and the
# prepared release must be on a file system that every host mounts: Filestore, or a bucket by gcsfuse.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
zone="${ZONE:-us-central1-a}"

usage() { sed -n '2,/^set/{/^#   bash/s/^#   //p}' launch/tpu_pod.sh >&2; exit 2; }
gcloud_() { if [ -n "${DRY_RUN:-}" ]; then echo "gcloud $*"; else gcloud "$@"; fi; }
on_hosts() { gcloud_ compute tpus tpu-vm ssh "$name" --zone="$zone" --worker="$1" --command="$2"; }

[ $# -ge 2 ] || usage
action="$1" name="$2"
shift 2
case "$action" in
  create)
    [ $# = 1 ] || usage
    spot=()
    [ -z "${SPOT:-}" ] || spot=(--spot)
    gcloud_ compute tpus queued-resources create "$name" --node-id="$name" --zone="$zone" --accelerator-type="$1" \
      --runtime-version="${RUNTIME:-v2-alpha-tpuv5-lite}" "${spot[@]}"
    ;;
  status) gcloud_ compute tpus queued-resources describe "$name" --zone="$zone" --format='value(state.state)' ;;
  install)
    archive="$(mktemp -d)/idrid_jax.tar.gz"
    git archive --prefix=idrid_jax/ -o "$archive" HEAD
    gcloud_ compute tpus tpu-vm scp "$archive" "$name:idrid_jax.tar.gz" --zone="$zone" --worker=all
    on_hosts all 'tar xzf idrid_jax.tar.gz && bash idrid_jax/launch/install.sh tpu'
    ;;
  run)
    [ "${1:-}" = -- ] || usage
    shift
    [ $# -ge 1 ] || usage
    words="$(printf '%q ' "$@")"
    hosts=all platform=
    [ "$1" = train ] || { hosts=0 platform="JAX_PLATFORMS=cpu "; }  # libtpu on one host would wait for the others
    # ssh forwards neither Ctrl-C nor a lost connection: end a run with `stop`
    on_hosts "$hosts" "cd idrid_jax && source launch/env.sh && ${platform}exec .venv/bin/python -m idrid_jax $words"
    ;;
  stop) on_hosts all "pkill -TERM -f '[p]ython -m idrid_jax'" ;;
  delete) gcloud_ compute tpus queued-resources delete "$name" --zone="$zone" --force --quiet ;;
  *) usage ;;
esac
