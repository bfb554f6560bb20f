#!/usr/bin/env bash
# Install, prepare, train, sample, evaluate and report, once and small: at most 10 minutes on two cores. A second call resumes.
#   bash launch/demo.sh
#   IDRID_DIR=DIR     a release as downloaded; without it, a phantom release is generated
#   DEMO_DIR=DIR      output [runs/demo-phantom, or demo-NAME of the release]
#   DEMO_KIMG=N       thousands of images to train on [20]
set -euo pipefail
trap 'exit 130' INT  # after Ctrl-C training saves and exits with status 0; the demo must not go on
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

Generated images, a row per grade: $out/samples/contact_sheet.png  (real ones: $out/cgan32/reals.png)
Training:                          $out/cgan32/fakes_*.png, curves.png; TensorBoard events in $out/cgan32/tensorboard
Evaluation on one page:            $out/cgan32/report.html  (its numbers: evaluation.json)
Class-balanced synthetic release:  $out/synthetic
A few minutes of training show colors and outlines only; the README has results of longer runs.
EOF
