"""Ways between latents and between grades, as a strip (PNG) or an animation (GIF) for people to look at.

A latent goes to another along the sphere that both lie on; a grade goes to another along the line between their
embeddings.
"""

import functools
import io
from pathlib import Path

import jax
import numpy as np

from idrid_jax.batching import map_in_batches
from idrid_jax.data import atomic
from idrid_jax.data.release import GRADES
from idrid_jax.errors import UserError
from idrid_jax.generation.sampling import Sampler, check_grades, encode
from idrid_jax.images import image_grid, to_uint8
from idrid_jax.training import build

FRAMES = {".png": 9, ".gif": 24}  # images of one way; a GIF also goes back
MILLISECONDS = 80  # of a GIF's frame


def slerp(a, b, t) -> np.ndarray:
    """Between latents a and b [L] at t float [T] in [0, 1]: float32 [T, L], `a` at 0 and `b` at 1 exactly.

    Directions follow the great circle, norms change linearly: a normal latent lies near a sphere of radius sqrt(L),
    and a straight line between two would cut through the inside, which training never visits. Along a straight line
    where a and b point the same way or opposite ways, or one is 0. Source: Shoemake, "Animating rotation with
    quaternion curves", SIGGRAPH 1985, section 3.3; for latents White, "Sampling Generative Networks",
    arXiv:1609.04468, section 2.1.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    t = np.asarray(t, np.float64)[:, None]
    norms = np.linalg.norm(a), np.linalg.norm(b)
    way = (1 - t) * a + t * b
    if min(norms) > 0:
        angle = np.arccos(np.clip(a @ b / (norms[0] * norms[1]), -1, 1))
        if np.sin(angle) > 1e-6:
            parts = np.sin((1 - t) * angle) * a / norms[0] + np.sin(t * angle) * b / norms[1]
            way = parts / np.sin(angle) * ((1 - t) * norms[0] + t * norms[1])
    return np.where(t == 0, a, np.where(t == 1, b, way)).astype(np.float32)


def mixtures(grades, frames: int) -> np.ndarray:
    """The way through grades [K], two at least, in equal steps: shares of the five grades, float32 [frames, 5].

    Each row sums to 1; the first and the last hold one grade alone. ValueError for fewer grades or frames than two.
    """
    if len(grades) < 2 or frames < 2:
        raise ValueError(f"{len(grades)} grades and {frames} frames; a way needs two of each")
    at = np.linspace(0, len(grades) - 1, frames)
    shares = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(len(grades))))  # [frames, K], of each stop
    return (shares @ np.eye(len(GRADES))[np.asarray(grades)]).astype(np.float32)


def latents(sampler: Sampler, count: int, *, seed: int = 0) -> np.ndarray:
    """The latents of `Sampler.images`'s first `count` images: float32 [count, L]."""
    key = jax.random.key(seed)
    draw = lambda i: jax.random.normal(jax.random.fold_in(key, i), (sampler.network.latent_size,))
    return np.asarray(jax.vmap(draw)(np.arange(count)))


def draw(sampler: Sampler, z: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Latents [N, L] and shares of the five grades [N, 5] -> uint8 [N, R, R, C]; `shares` is ignored by an
    unconditional generator. Nothing is mirrored, as `Sampler.images` does where `config.data.canonicalize_laterality` was on: a way is
    not to jump."""
    at_once, hears = sampler.network.sample_batch_size, build.hears(sampler.config)
    of = jax.jit(
        lambda params, stats, z, shares: to_uint8(sampler.generator.eval(params, stats, z, hears(shares, sampler.step)))
    )
    drawn = functools.partial(of, sampler.params, sampler.stats)
    return map_in_batches(drawn, np.asarray(z, np.float32), np.asarray(shares, np.float32), batch_size=at_once)


def between_latents(sampler: Sampler, grades, frames: int, *, seed: int = 0) -> np.ndarray:
    """Row r, of grade grades[r], goes from latent 2r of `sample --seed SEED` to latent 2r + 1: uint8
    [rows, frames, R, R, C]. Raises UserError where it does not hear grades yet."""
    if sampler.network.conditional:
        check_grades(sampler)
    rows, t = len(grades), np.linspace(0, 1, frames)
    ends = latents(sampler, 2 * rows, seed=seed)
    z = np.concatenate([slerp(a, b, t) for a, b in zip(ends[::2], ends[1::2])])
    shares = np.repeat(np.eye(len(GRADES), dtype=np.float32)[np.asarray(grades)], frames, axis=0)
    return _in_rows(draw(sampler, z, shares), rows)


def between_grades(sampler: Sampler, grades, rows: int, frames: int, *, seed: int = 0) -> np.ndarray:
    """Row r draws latent r of `sample --seed SEED` while its grade goes through `grades`: uint8
    [rows, frames, R, R, C]. Raises UserError for an unconditional generator, or one that does not hear grades yet."""
    if not sampler.network.conditional:
        raise UserError(f"{sampler.config.network} is unconditional: it has no grades to go between")
    check_grades(sampler)
    z = np.repeat(latents(sampler, rows, seed=seed), frames, axis=0)
    return _in_rows(draw(sampler, z, np.tile(mixtures(grades, frames), (rows, 1))), rows)


def _in_rows(images, rows):
    return images.reshape(rows, -1, *images.shape[1:])


def write(images: np.ndarray, out: Path | str) -> None:
    """uint8 [rows, frames, R, R, C] -> `out`, whole or not at all, in place of what was there.

    A PNG shows every row. A GIF shows the rows side by side, each going on and back, for ever. Raises UserError for
    another suffix, or a file that cannot be written.
    """
    out = Path(out)
    check(out)
    if out.suffix.lower() == ".png":
        flat = images.reshape(-1, *images.shape[2:])
        content = encode(np.asarray(image_grid(flat, images.shape[1])), "png")
    else:
        shown = [*range(images.shape[1]), *range(images.shape[1] - 2, 0, -1)]
        first, *others = [image_grid(images[:, frame], len(images)) for frame in shown]
        buffer = io.BytesIO()
        first.save(buffer, "GIF", save_all=True, append_images=others, duration=MILLISECONDS, loop=0)
        content = buffer.getvalue()
    atomic.write_bytes(out, content)


def check(out: Path | str) -> None:
    """Raises UserError where `write` would for the name alone."""
    out = Path(out)
    if out.suffix.lower() not in FRAMES:
        raise UserError(f"--out {out}: its name ends in neither .png (a strip) nor .gif (an animation)")
    if out.is_dir():
        raise UserError(f"--out {out}: is a folder; name a file")
