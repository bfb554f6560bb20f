#!/usr/bin/env python3
"""Run a sweep: several runs of one configuration, then a table and a picture of their results.

    python launch/sweep.py configs/sweeps/dcgan28_lr_batch.py --workdir runs/dcgan28_lr_batch [--jobs 2 | --slurm]

This is `idrid-jax sweep --config FILE ...`; --help lists the flags. The same command resumes an interrupted sweep.
"""

import sys

from idrid_jax.cli import main

if __name__ == "__main__":
    file, *others = sys.argv[1:] or ["--help"]
    sys.exit(main(["sweep", *([file] if file.startswith("-") else ["--config", file]), *others]))
