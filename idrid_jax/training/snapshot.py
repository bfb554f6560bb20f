"""What a snapshot shows of the networks: a grid of images from fixed latents, and numbers that measure more of them."""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from PIL import Image

from idrid_jax import config as config_lib
from idrid_jax.data.cache import Split
from idrid_jax.data.layout import GRADES
from idrid_jax.errors import UserError, suggest_name
from idrid_jax.images import image_grid
from idrid_jax.models import NETWORKS
from idrid_jax.models.functional import Functional
from idrid_jax.training import build, multihost
from idrid_jax.training import sharding as mesh_lib
from idrid_jax.training.state import TrainState
from idrid_jax.training.update import draw

GRID_ROWS = len(GRADES)  # a conditional generator gets one grade a row
GRID_COLUMNS, GRID_PIXELS = 12, 4096  # columns, fewer where the picture would be wider than so many pixels
MEASURED = 200  # images that a snapshot is measured by at 128 pixels and below, fewer above

# (fakes uint8 [N, R, R, C], their grades int32 [N], what is trained on, the validation photographs) -> numbers to log;
# "rejected" above 0: not to be chosen. `names`, an attribute, lists them, so that a misspelt one is met before training.
OnSnapshot = Callable[[np.ndarray, np.ndarray, Split, Split], dict[str, float]]


class Views:
    """The same latents and grades at every snapshot, so that two pictures of a run can be laid side by side."""

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        generator: Functional,
        mesh: jax.sharding.Mesh,
        split: Split,
        validation: Split,
        on_snapshot: tuple[OnSnapshot, ...],
    ):
        self._network = network = NETWORKS[config.network]
        self._split, self._validation, self._on_snapshot = split, validation, on_snapshot
        hears, left = build.hears(config), split.left_eye_share
        latents = lambda stream, count: jax.random.normal(
            jax.random.fold_in(jax.random.key(config.seed), stream), (count, network.latent_size)
        )

        def drawn(z, grades):
            return jax.jit(
                lambda state: draw(generator, state, z, hears(jnp.asarray(grades), state.step), network.sample_batch_size, left),
                out_shardings=mesh_lib.replicated(mesh),
            )

        self._columns = max(2, min(GRID_COLUMNS, GRID_PIXELS // network.size))
        self._grid_grades = np.repeat(np.arange(GRID_ROWS, dtype=np.int32), self._columns)
        self._grid = drawn(latents(0x6121D, len(self._grid_grades)), self._grid_grades)
        # grades as often as photographs have them
        mixture = np.random.default_rng(config.seed).permutation(split.grades)
        self._measured_grades = np.resize(mixture, max(40, int(MEASURED * min(1, 128 / network.size))))
        self._measured = drawn(latents(0x3EA5, len(self._measured_grades)), self._measured_grades)

    def fakes(self, state: TrainState) -> Image.Image:
        """Generated images, a row a grade where the network knows grades."""
        return image_grid(np.asarray(self._grid(state)), self._columns)

    def reals(self) -> Image.Image:
        """Photographs for the same places: by grade where the network knows grades, else as they come."""
        if not self._network.conditional:
            return image_grid(np.asarray(self._split.images[: len(self._grid_grades)]), self._columns)
        images = np.zeros((len(self._grid_grades), *self._split.images.shape[1:]), np.uint8)
        for grade in range(GRID_ROWS):
            members = np.flatnonzero(self._split.grades == grade)[: self._columns]
            images[grade * self._columns :][: len(members)] = self._split.images[members]
        return image_grid(images, self._columns)

    def measures(self, state: TrainState) -> dict[str, float]:
        """What `on_snapshot` says, {} where there is none. Every process draws, process 0 measures, all are told."""
        fakes = np.asarray(self._measured(state)) if self._on_snapshot else None

        def measured():
            found = {}
            for measure in self._on_snapshot:
                found |= measure(fakes, self._measured_grades, self._split, self._validation)
            return found

        return multihost.run_on_first(measured)


def fakes_name(step: int, config: ml_collections.ConfigDict) -> str:
    """Of the grid at `step`: the kimg shown until then, to the image where whole ones would not tell it from others: no
    two grids of a run have one name, and they sort as they were drawn."""
    between, kimg = config_lib.steps(config.snapshot_kimg, config), step * config.batch_size / 1000
    if between * config.batch_size < 1000:
        return f"fakes_{kimg:010.3f}"
    if step % between == 0:
        return f"fakes_{round(kimg):06d}"
    return f"fakes_{kimg:010.3f}".replace(".", "_")  # the last one; a dot would sort before that of .png


def told(measures: dict[str, float]) -> str:
    """One line of them."""
    return ", ".join(f"{name} {value:.4f}" for name, value in measures.items() if name != "rejected")


def score(config: ml_collections.ConfigDict, measures: dict[str, float], step: int) -> float | None:
    """The measure that chooses the checkpoint; None where there is none or it is not to be chosen: copies, or the
    networks do not yet hear their grades in full, so that a release of it would be mislabelled."""
    if measures.get("rejected") or build.heard(config, step) < 1:
        return None
    return measures.get(config.checkpoint.best)


def check_best(config: ml_collections.ConfigDict, names: Iterable[str]) -> None:
    """Raises UserError where `config.checkpoint.best` is none of the measures that there are. names: theirs; none where
    they are not known."""
    best = config.checkpoint.best
    if names and best and best not in names:
        raise UserError(f"config.checkpoint.best = {best!r}: {suggest_name(best, sorted(names))}")
