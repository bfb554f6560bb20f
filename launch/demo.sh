#!/usr/bin/env bash
# The whole way once, small: install, prepare, train, sample, evaluate, report. At most 10 minutes on two cores; a second call goes on.
#   bash launch/demo.sh
#   IDRID_DIR=DIR     the release to take (as downloaded); without it a phantom one is drawn
#   DEMO_DIR=DIR      where everything goes [runs/demo-phantom, or the release's name]
#   DEMO_KIMG=N       thousands of images to train on [20]
set -euo pipefail
trap 'exit 130' INT  # Ctrl-C in training saves and ends it well: the demo ends there too
[ -z "${IDRID_DIR:-}" ] || IDRID_DIR="$(realpath "$IDRID_DIR")"
[ -z "${DEMO_DIR:-}" ] || DEMO_DIR="$(realpath -m "$DEMO_DIR")"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/install.sh
idrid="${VENV:-.venv}/bin/idrid-jax"
out="${DEMO_DIR:-runs/demo-$(basename "${IDRID_DIR:-phantom}")}"
kimg="${DEMO_KIMG:-20}"
export TFDS_DATA_DIR="$out/data"

release="${IDRID_DIR:-}"
if [ -z "$release" ]; then
  release="$out/phantom"
  [ -d "$release" ] || "$idrid" phantom --out "$release"
fi

"$idrid" prepare --release "$release"
"$idrid" train --config configs/cgan32.py --workdir "$out/cgan32" --config.total_kimg="$kimg" --config.snapshot_kimg=4
rm -rf "$out/samples" "$out/synthetic"  # of an earlier demo
"$idrid" sample --workdir "$out/cgan32" --out "$out/samples" --per_grade 12 --format png
"$idrid" sample --workdir "$out/cgan32" --out "$out/synthetic" --balance
"$idrid" evaluate --workdir "$out/cgan32"
"$idrid" report --workdir "$out/cgan32"

cat <<EOF

Images by grade, a row each:   $out/samples/contact_sheet.png  (real ones: $out/cgan32/reals.png)
While training:                $out/cgan32/fakes_*.png, curves.png; events for TensorBoard in $out/cgan32/tensorboard
What they are worth, one page: $out/cgan32/report.html  (its numbers: evaluation.json)
Class-balancing release:       $out/synthetic
A few minutes of training show colours and outlines, no more: README, Results, has what longer runs give.
EOF
