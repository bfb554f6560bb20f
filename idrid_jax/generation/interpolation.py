"""Interpolate between latents and between grades, as a strip (PNG) or an animation (GIF).

Latents are interpolated on the sphere; grades by mixing their embeddings.
"""

import io
from pathlib import Path

import jax
import numpy as np

from idrid_jax.batching import map_in_batches
from idrid_jax.data import atomic
from idrid_jax.data.layout import GRADES
from idrid_jax.errors import UserError
from idrid_jax.generation.sampling import Sampler, check_conditioned, sample_latents
from idrid_jax.images import encode_image, image_grid, to_uint8
from idrid_jax.training.optimizers import grade_conditioning

FRAMES = {".png": 9, ".gif": 24}  # default number of images from one end to the other; a GIF also goes back
FRAME_MILLISECONDS = 80  # of a GIF


def slerp(a: np.ndarray, b: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Interpolate spherically between latents a and b [L] at t float [T] in [0, 1]: float32 [T, L].

    t = 0 gives `a` and t = 1 gives `b` exactly. Directions follow the great circle and norms change linearly: normal
    latents lie near a sphere of radius sqrt(L), and a straight line would cross its inside, where the generator was not
    trained. Falls back to a straight line if a and b are parallel or one is 0.

    Source: Shoemake 1985, "Animating rotation with quaternion curves", section 3.3; for latents White 2016, "Sampling
    generative networks", section 2.1.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    t = np.asarray(t, np.float64)[:, None]
    norms = np.linalg.norm(a), np.linalg.norm(b)
    path = (1 - t) * a + t * b
    if min(norms) > 0:
        angle = np.arccos(np.clip(a @ b / (norms[0] * norms[1]), -1, 1))
        if np.sin(angle) > 1e-6:
            parts = np.sin((1 - t) * angle) * a / norms[0] + np.sin(t * angle) * b / norms[1]
            path = parts / np.sin(angle) * ((1 - t) * norms[0] + t * norms[1])
    return np.where(t == 0, a, np.where(t == 1, b, path)).astype(np.float32)


def grade_path(grades: list[int], frames: int) -> np.ndarray:
    """Interpolate linearly from each of the grades [K] to the next: weights of the five grades, float32 [frames, 5].

    Rows sum to 1; the first and the last row hold one grade alone. Raises ValueError for fewer than 2 grades or frames.
    """
    if len(grades) < 2 or frames < 2:
        raise ValueError(f"{len(grades)} grades and {frames} frames: at least two of each are needed")
    position = np.linspace(0, len(grades) - 1, frames)
    weights = np.maximum(0, 1 - np.abs(position[:, None] - np.arange(len(grades))))  # [frames, K]
    return (weights @ np.eye(len(GRADES))[np.asarray(grades)]).astype(np.float32)


def latents(sampler: Sampler, count: int, *, seed: int = 0) -> np.ndarray:
    """Return the latents of the first `count` images of `Sampler.images`, float32 [count, L]."""
    return np.asarray(sample_latents(jax.random.key(seed), np.arange(count), sampler.network.latent_size))


def generate(sampler: Sampler, z: np.ndarray, grade_weights: np.ndarray) -> np.ndarray:
    """Generate images, uint8 [N, R, R, C], from latents [N, L] and weights of the five grades [N, 5].

    An unconditional generator ignores the weights. Unlike `Sampler.images`, no image is mirrored under
    `config.data.canonicalize_laterality`, so that neighboring frames show the same eye.
    """
    condition = grade_conditioning(sampler.config)

    @jax.jit
    def forward(params, stats, z, weights):
        return to_uint8(sampler.generator.eval(params, stats, z, condition(weights, sampler.step)))

    return map_in_batches(
        lambda z, weights: forward(sampler.params, sampler.stats, z, weights),
        np.asarray(z, np.float32),
        np.asarray(grade_weights, np.float32),
        batch_size=sampler.network.sample_batch_size,
    )


def interpolate_latents(sampler: Sampler, grades: list[int], frames: int, *, seed: int = 0) -> np.ndarray:
    """Generate one row for each of the grades [N], from latent 2n to latent 2n + 1: uint8 [N, frames, R, R, C].

    Latents are those of `idrid-jax sample --seed`. Raises UserError for a conditional generator that is not conditioned
    on grades yet.
    """
    if sampler.network.conditional:
        check_conditioned(sampler)
    rows, t = len(grades), np.linspace(0, 1, frames)
    ends = latents(sampler, 2 * rows, seed=seed)
    z = np.concatenate([slerp(a, b, t) for a, b in zip(ends[::2], ends[1::2])])
    weights = np.repeat(np.eye(len(GRADES), dtype=np.float32)[np.asarray(grades)], frames, axis=0)
    return _as_rows(generate(sampler, z, weights), rows)


def interpolate_grades(sampler: Sampler, grades: list[int], rows: int, frames: int, *, seed: int = 0) -> np.ndarray:
    """Generate rows of one latent each, its grade interpolated through `grades`: uint8 [rows, frames, R, R, C].

    Latents are those of `idrid-jax sample --seed`. Raises UserError for an unconditional generator, or one that is not
    conditioned on grades yet.
    """
    if not sampler.network.conditional:
        raise UserError(f"{sampler.config.network} is unconditional: it has no grades to interpolate between")
    check_conditioned(sampler)
    z = np.repeat(latents(sampler, rows, seed=seed), frames, axis=0)
    return _as_rows(generate(sampler, z, np.tile(grade_path(grades, frames), (rows, 1))), rows)


def _as_rows(images: np.ndarray, rows: int) -> np.ndarray:
    return images.reshape(rows, -1, *images.shape[1:])


def save(images: np.ndarray, out: Path | str) -> None:
    """Write uint8 [rows, frames, R, R, C] to `out`, atomically; replaces an existing file.

    A .png shows one row of frames below the other. A .gif shows the rows side by side and plays the frames forwards and
    backwards, repeatedly. Raises UserError for another suffix, or a file that cannot be written.
    """
    out = Path(out)
    check_out(out)
    if out.suffix.lower() == ".png":
        flat = images.reshape(-1, *images.shape[2:])
        content = encode_image(np.asarray(image_grid(flat, images.shape[1])), "png")
    else:
        order = [*range(images.shape[1]), *range(images.shape[1] - 2, 0, -1)]
        first, *others = [image_grid(images[:, frame], len(images)) for frame in order]
        buffer = io.BytesIO()
        first.save(buffer, "GIF", save_all=True, append_images=others, duration=FRAME_MILLISECONDS, loop=0)
        content = buffer.getvalue()
    atomic.write_bytes(out, content)


def check_out(out: Path | str) -> None:
    """Raise UserError if `save` cannot write to a file of this name."""
    out = Path(out)
    if out.suffix.lower() not in FRAMES:
        raise UserError(f"{out}: choose a name that ends in .png (a strip) or .gif (an animation)")
    if out.is_dir():
        raise UserError(f"{out}: is a folder; name a file")
