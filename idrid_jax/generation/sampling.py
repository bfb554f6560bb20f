"""A trained generator -> images by grade, and images -> a release in IDRiD's layout."""

import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from PIL import Image

from idrid_jax.data import atomic
from idrid_jax.data.release import GRADES, ReleaseWriter
from idrid_jax.errors import UserError
from idrid_jax.images import image_grid, mirror_where, to_uint8
from idrid_jax.models import NETWORKS, Network, build_networks
from idrid_jax.models.functional import Functional, recompute_batch_stats
from idrid_jax.training import build, record, saved
from idrid_jax.training.state import generator_params

SHEET = "contact_sheet.png"
SHEET_COLUMNS, SHEET_ROWS = 12, 20


@dataclasses.dataclass(frozen=True)
class Sampler:
    """The generator of one checkpoint: its moving average where the run keeps one, and BatchNorm's statistics.

    statistics: which these are, "running" or "standing"; "none" of a network without BatchNorm.
    truncation: factor of the latents: below 1 images are more typical, and alike (Karras et al. 2019, appendix B, do
      so to a mapping network's output).
    """

    config: ml_collections.ConfigDict
    run: record.Record
    step: int
    generator: Functional
    params: dict
    stats: dict
    statistics: str
    truncation: float = 1.0

    @property
    def network(self) -> Network:
        return NETWORKS[self.config.network]

    @property
    def heard(self) -> float:
        """How much of the grades asked for it hears: less than 1 while `config.conditioning` lets them fade in."""
        return build.heard(self.config, self.step)

    def images(self, grades: np.ndarray, *, seed: int = 0) -> Iterator[np.ndarray]:
        """grades int32 [N] -> N images, uint8 [R, R, C]; image i is a function of (seed, i, its grade) alone.

        A generator that was shown photographs of one side (`config.data.canonicalize_laterality`) draws right-sided ones, of which so
        many are mirrored as of its photographs were: a coin for each image.
        """
        key, at_once, left = jax.random.key(seed), self.network.sample_batch_size, self.run.left_eye_share
        hears = build.hears(self.config)

        @jax.jit
        def draw(params, stats, first, grades):
            keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(first + jnp.arange(at_once))
            z = self.truncation * jax.vmap(lambda key: jax.random.normal(key, (self.network.latent_size,)))(keys)
            images = to_uint8(self.generator.eval(params, stats, z, hears(grades, self.step)))
            if not left:
                return images
            return mirror_where(images, jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, 1), left))(keys))

        for first in range(0, len(grades), at_once):
            part = np.zeros(at_once, np.int32)
            some = np.asarray(grades[first : first + at_once], np.int32)
            part[: len(some)] = some
            yield from np.asarray(draw(self.params, self.stats, first, part))[: len(some)]


def load(workdir: Path | str, step: int | None = None, *, statistics: str = "auto") -> Sampler:
    """The generator of a checkpoint in `workdir`: of `step`, or as `saved.read_run` chooses.

    statistics: of BatchNorm: "running", as training collected them; "standing", of the very weights that draw
      (`models.functional.recompute_batch_stats`); "auto": standing for a moving average, which no batch has passed, else running.
    Raises UserError where `saved.read_run` does.
    """
    run, state = saved.read_run(workdir, step=step)
    network = NETWORKS[run.config.network]
    generator, _ = build_networks(run.config)
    params, stats = generator_params(state), state.g.stats
    if statistics == "auto":
        statistics = "standing" if state.ema else "running"
    if stats and statistics == "standing":
        mixture = np.repeat(np.arange(len(GRADES), dtype=np.int32), run.counts)
        of = jax.jit(
            lambda params, stats: recompute_batch_stats(generator, params, stats, network.latent_size, mixture, network.sample_batch_size)
        )
        stats = of(params, stats)
    return Sampler(run.config, run, int(state.step), generator, params, stats, statistics if stats else "none")


def balancing(counts: list[int]) -> list[int]:
    """How many images of each grade it takes to level the real training set: [5] -> [5]."""
    return [max(counts) - count for count in counts]


def check_grades(sampler: Sampler) -> None:
    """Raises UserError for a generator that does not hear the grades it would be asked for."""
    if not sampler.heard:
        raise UserError(
            f"at step {sampler.step} {sampler.config.network} hears no grade yet (config.conditioning.start_kimg = "
            f"{sampler.config.conditioning.start_kimg:g}): take the --step of a later checkpoint, or train on"
        )


def write_release(
    sampler: Sampler, out: Path | str, counts: list[int], *, seed: int = 0, suffix: str = "jpg", quality: int = 95
) -> Path:
    """counts[g] images of grade g as part B's training set of a release in IDRiD's layout, with a contact sheet.

    Oedema risk is unknown and stays an empty cell. Whole or not at all. Raises UserError for an unconditional
    generator, one that does not hear grades yet, counts that come to nothing, or a folder that exists or cannot be
    written.
    """
    network, name = sampler.network, sampler.config.network
    if not network.conditional:
        raise UserError(f"{name} is unconditional: it has no grades; use --count N alone")
    check_grades(sampler)
    if not any(counts):
        raise UserError("no image is asked for: the counts by grade are all 0")
    out = Path(out)
    grades = np.repeat(np.arange(len(GRADES)), counts)
    sheet = _Sheet(grades)
    with ReleaseWriter(out, _notice(sampler, seed)) as writer:
        for image, grade in zip(sampler.images(grades, seed=seed), grades):
            writer.add_graded("train", encode(image, suffix, quality), int(grade), suffix=f".{suffix}")
            sheet.add(image, grade)
        writer.add_file(SHEET, sheet.png())
    return out


def write_images(
    sampler: Sampler, out: Path | str, count: int, *, seed: int = 0, suffix: str = "jpg", quality: int = 95
) -> Path:
    """`count` images of an unconditional generator in `out`, numbered, with a contact sheet. Whole or not at all.

    Raises UserError where `out` exists or cannot be written.
    """
    out = Path(out)
    grades = np.zeros(count, np.int32)
    sheet = _Sheet(grades)
    with atomic.new_folder(out) as folder:
        for number, image in enumerate(sampler.images(grades, seed=seed), 1):
            (folder / f"{number:0{max(4, len(str(count)))}d}.{suffix}").write_bytes(encode(image, suffix, quality))
            sheet.add(image, 0)
        (folder / "README.txt").write_text(_notice(sampler, seed))
        (folder / SHEET).write_bytes(sheet.png())
    return out


def encode(image: np.ndarray, suffix: str, quality: int = 95) -> bytes:
    """uint8 [H, W] or [H, W, C] -> JPEG (4:4:4: at these sizes halved colour would blur lesions) or PNG bytes."""
    picture = Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image)
    buffer = io.BytesIO()
    if suffix == "png":
        picture.save(buffer, "PNG")
    else:
        picture.save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


class _Sheet:
    """The first images of each grade: all of them, or as many as SHEET_ROWS rows shared among the grades hold. Each
    grade begins a row."""

    def __init__(self, grades: np.ndarray):
        """grades int [N]: of all images that are to come."""
        self._shown = {grade: [] for grade in np.unique(grades).tolist()}
        self._most = SHEET_COLUMNS * max(1, SHEET_ROWS // len(self._shown))

    def add(self, image: np.ndarray, grade: int) -> None:
        """image uint8 [R, R, C], the next of its grade."""
        mine = self._shown[int(grade)]
        if len(mine) < self._most:
            mine.append(image.copy())  # what was drawn is a view of its whole batch

    def png(self) -> bytes:
        rows = []
        for mine in self._shown.values():
            rows += mine + [np.full_like(mine[0], 255)] * (-len(mine) % SHEET_COLUMNS)
        return encode(np.asarray(image_grid(np.stack(rows), SHEET_COLUMNS)), "png")


def _notice(sampler, seed):
    truncated = f", truncation {sampler.truncation:g}" if sampler.truncation != 1 else ""
    pools = sampler.config.data.merge_classes
    fading = f"It heard them by {sampler.heard:.1%} only, as they were fading in. " if sampler.heard < 1 else ""
    pooled = f"Grades that are joined by + were one and the same to it: {' '.join(pools.split())}. " if pools else ""
    return (
        "Synthetic images: no photograph of any patient. Drawn by idrid_jax "
        f"({sampler.config.network}, step {sampler.step}, seed {seed}{truncated}), "
        f"trained on release {sampler.run.release} ({sampler.run.fingerprint}).\n"
        "Grades are those the generator was asked for; nobody has graded the images. "
        f"{fading}{pooled}"
        "Oedema risk is unknown and left empty.\n"
        "Not for diagnosis. If the training release is IDRiD: (c) P. Porwal, S. Pachade, M. Kokare, "
        "CC BY 4.0, DOI 10.21227/H25W98.\n"
    )
