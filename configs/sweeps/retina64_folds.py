"""Five generators, each of four fifths of all graded photographs, so that together they are judged by every photograph.

    idrid-jax sweep --config configs/sweeps/retina64_folds.py --workdir runs/retina64_folds
    for run in runs/retina64_folds/*/; do set -- "$@" --workdir "$run"; done; idrid-jax evaluate --usefulness 10 "$@"

The test split alone has 5 photographs of MILD and 103 in all: too few to see what half of the training photographs are
worth (see `idrid_jax/evaluation/README.md`). Not run yet: five trainings of 165 minutes on one core.
"""

from idrid_jax.config import base


def get_config():
    return base(__file__, "../retina64.py")


def sweep():
    for fold in range(5):
        yield {"data.held_out_fold": fold}
