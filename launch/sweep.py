#!/usr/bin/env python3
"""Runs a sweep: many runs of one configuration, as a file in configs/sweeps/ says, then a table and a picture of them.

    python launch/sweep.py configs/sweeps/dcgan28_lr_batch.py --workdir runs/dcgan28_lr_batch [--jobs 2 | --slurm]

It is `idrid-jax sweep --config FILE ...`, whose --help tells the rest. The same command again goes on.
"""

import sys

from idrid_jax.cli import main

if __name__ == "__main__":
    file, *others = sys.argv[1:] or ["--help"]
    sys.exit(main(["sweep", *([file] if file.startswith("-") else ["--config", file]), *others]))
