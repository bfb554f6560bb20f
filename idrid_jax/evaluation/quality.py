"""Quality: the thesis's protocol, PSNR and SSIM of generated images against the data set, with reference rows.

The thesis (sections 4.2 and 4.4.2) compares one randomly picked generated image with every photograph and reports the
mean. Alone that number says little: two unrelated photographs score as high, a blurred mean image higher, and a
generator that repeats one image can beat both. So the same measures of those references are always reported next to it.
The measures are in `image_quality`. NumPy arrays in, plain Python out; no files.
"""

import numpy as np

from idrid_jax.data.release import GRADES
from idrid_jax.evaluation.image_quality import psnr_pairs, ssim_pairs

THESIS = {"ssim": 0.516, "psnr": 16.444}  # section 4.4.2; its figure 16 swaps the two columns
COLLAPSE = 0.1  # SSIM within generated images may exceed that within training images by this much
CHUNK_BYTES = 256 << 20  # float32 images of one set that are compared at a time

CAPTIONS = {  # rows of the table, in its order; keys of the result
    "generated": "generated x training, all pairs (thesis's protocol)",
    "one_generated": "one generated, picked at random, x training (thesis's figure)",
    "held_out_real": "held-out real x training, all pairs",
    "mean_image": "mean training image x training",
    "nearest_to_generated": "each generated x its nearest training image",
    "nearest_to_held_out": "each held-out real x its nearest training image",
    "within_generated": "within generated, distinct pairs",
    "within_training": "within training, distinct pairs",
}


def measure(
    generated: np.ndarray,
    generated_grades: np.ndarray | None,
    training: np.ndarray,
    training_grades: np.ndarray,
    held_out: np.ndarray,
    held_out_grades: np.ndarray,
    *,
    seed: int = 0,
    max_images: int | None = 1000,
) -> dict:
    """Measure SSIM and PSNR of generated images by the thesis's protocol, with the reference rows.

    Args:
      generated, training, held_out: uint8 [N, R, R, C], R at least 11; R and C alike. `generated` and `held_out` may be
        empty: their rows are then None. Held-out images must not be training images.
      ..._grades: int [N] in 0..4; generated_grades None (an unconditional generator): no "by_grade".
      seed: of the image of "one_generated", and of the images that are used if there are more than `max_images`.
      max_images: of each set, sampled at random; None: all. Time grows with its square: 500 generated and IDRiD's 413
        and 103 photographs take 4 s at 28x28x1 and half a minute at 64x64x3 on two busy cores.
    Returns: for json.dumps, the same for the same arguments:
      One entry for each key of CAPTIONS: "ssim" and "psnr" (dB), means over its pairs, "images" and "against" (how many
      of each); without enough images, None for both and "missing": why. The nearest image is the one with the highest
      value, for SSIM and for PSNR separately. Two equal images have PSNR 100.
      "one_generated" also has "index", its position in `generated`.
      "collapse": {"ssim_excess" (within_generated minus within_training), "threshold", "collapsed", "verdict"}.
      "images": how many of each set were used; "given": how many there were; "seed".
      "by_grade": {grade's name: {the same keys, and "collapse"}}, everything within that grade.
    Raises: ValueError for arrays of another form, no training image, or images smaller than SSIM's window.
    Source: thesis, sections 4.2 and 4.4.2.
    """
    sets = {
        "generated": (generated, generated_grades),
        "training": (training, training_grades),
        "held_out": (held_out, held_out_grades),
    }
    _check(sets, max_images)
    rng = np.random.default_rng(seed)
    index = {name: _sample(rng, len(images), max_images) for name, (images, _) in sets.items()}
    images = {name: np.asarray(sets[name][0])[index[name]] for name in sets}
    grades = {name: None if labels is None else np.asarray(labels)[index[name]] for name, (_, labels) in sets.items()}
    fake, real, held_out = images.values()
    fake_real, held_out_real, fake_fake, real_real = (
        _all_pairs(a, b) for a, b in ((fake, real), (held_out, real), (fake, fake), (real, real))
    )
    pick = rng.integers(len(fake), size=1) if len(fake) else np.zeros(0, int)
    result = _rows(fake_real, held_out_real, _all_pairs(_mean(real)[None], real), fake_fake, real_real, pick)
    result["one_generated"]["index"] = int(index["generated"][pick[0]]) if len(pick) else None
    result["images"] = {name: len(chosen) for name, chosen in index.items()}
    result["given"] = {name: len(value[0]) for name, value in sets.items()}
    result["seed"] = seed
    if generated_grades is not None:
        result["by_grade"] = {}
        for grade, name in enumerate(GRADES):
            f, r, h = (np.flatnonzero(grades[which] == grade) for which in sets)
            pick = rng.integers(len(f), size=1) if len(f) else np.zeros(0, int)
            mean = _all_pairs(_mean(real[r])[None], real[r]) if len(r) else [np.zeros((0, 0))] * 2
            matrices = (
                _take(fake_real, f, r),
                _take(held_out_real, h, r),
                mean,
                _take(fake_fake, f, f),
                _take(real_real, r, r),
            )
            result["by_grade"][name] = _rows(*matrices, pick, name)
    return result


def _rows(fake_real, held_out_real, mean_real, fake_fake, real_real, pick, grade=""):
    """Return the entries of CAPTIONS and "collapse". pick: row of "one_generated" in fake_real, int [1] or [0]."""
    rows = {
        "generated": _mean_of(fake_real, "generated", grade),
        "one_generated": _mean_of([m[pick] for m in fake_real], "generated", grade),
        "held_out_real": _mean_of(held_out_real, "held-out", grade),
        "mean_image": _mean_of(mean_real, "training", grade),
        "nearest_to_generated": _nearest(fake_real, "generated", grade),
        "nearest_to_held_out": _nearest(held_out_real, "held-out", grade),
        "within_generated": _within(fake_fake, "generated", grade),
        "within_training": _within(real_real, "training", grade),
    }
    return rows | {"collapse": _collapse(rows["within_generated"], rows["within_training"])}


# --- arrays


def _check(sets, max_images):
    shape = np.shape(sets["training"][0])
    for name, (images, grades) in sets.items():
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.ndim != 4:
            raise ValueError(f"{name} is {images.dtype} {images.shape}; images are uint8 [N, R, R, C]")
        if images.shape[1:] != shape[1:]:
            raise ValueError(f"{name} holds images of {images.shape[1:]}, training of {shape[1:]}; they must be alike")
        if grades is None and name == "generated":
            continue
        grades = np.asarray(grades)
        if grades.shape != images.shape[:1]:
            raise ValueError(f"{name}_grades has shape {grades.shape} for {len(images)} images; one grade each")
        if len(grades) and not np.isin(grades, range(len(GRADES))).all():
            raise ValueError(f"{name}_grades holds {np.unique(grades).tolist()}; grades are 0 to {len(GRADES) - 1}")
    if not shape[0]:
        raise ValueError("training holds no images; there is nothing to compare with")
    if max_images is not None and max_images < 1:
        raise ValueError(f"max_images is {max_images}; it is a number of images, at least 1, or None")


def _sample(rng, count, max_images):
    if max_images is None or count <= max_images:
        return np.arange(count)
    return np.sort(rng.choice(count, max_images, replace=False))


def _mean(images):
    """Return the mean of uint8 [N, R, R, C], float32 [R, R, C] in [0, 255], not rounded."""
    return (images.sum(axis=0, dtype=np.int64) / len(images)).astype(np.float32)


def _all_pairs(a, b):
    """Return [SSIM, PSNR], each float64 [N, M], of images in [0, 255]; CHUNK_BYTES of each set are floats at a time."""
    step = max(1, CHUNK_BYTES // (4 * int(np.prod(a.shape[1:]))))
    out = np.zeros((2, len(a), len(b)))
    for i in range(0, len(a), step):
        x = a[i : i + step].astype(np.float32) / 255
        for j in range(0, len(b), step):
            y = b[j : j + step].astype(np.float32) / 255
            out[0, i : i + step, j : j + step] = ssim_pairs(x, y)
            out[1, i : i + step, j : j + step] = psnr_pairs(x, y)
    return list(out)


def _take(pairs, rows, columns):
    return [m[np.ix_(rows, columns)] for m in pairs]


# --- entries: pairs are [SSIM, PSNR], each [N, M]


def _entry(pairs, values, missing):
    """missing: why there is nothing to average, or empty."""
    images, against = pairs[0].shape
    entry = dict(zip(("ssim", "psnr"), (None, None) if missing else (float(np.mean(v)) for v in values)))
    entry |= {"images": images, "against": against}
    return entry | {"missing": missing} if missing else entry


def _missing(pairs, name, grade):
    suffix = f" of grade {grade}" if grade else ""
    if not pairs[0].shape[0]:
        return f"no {name} images{suffix}"
    return "" if pairs[0].shape[1] else f"no training images{suffix}"


def _mean_of(pairs, name, grade):
    return _entry(pairs, pairs, _missing(pairs, name, grade))


def _nearest(pairs, name, grade):
    missing = _missing(pairs, name, grade)
    return _entry(pairs, [] if missing else [m.max(axis=1) for m in pairs], missing)


def _within(pairs, name, grade):
    count = len(pairs[0])
    single = f"one {name} image" + (f" of grade {grade}" if grade else "")
    missing = "" if count > 1 else _missing(pairs, name, grade) or f"{single}, no pair"
    upper = np.triu_indices(count, 1)
    return _entry(pairs, [m[upper] for m in pairs], missing)


def _collapse(generated, real):
    entry = {"ssim_excess": None, "threshold": COLLAPSE, "collapsed": None}
    missing = generated.get("missing") or real.get("missing")
    if missing:
        return entry | {"verdict": f"not judged: {missing}"}
    excess = generated["ssim"] - real["ssim"]
    collapsed = excess > COLLAPSE
    verdict = (
        f"{'collapsed' if collapsed else 'no collapse'}: SSIM within generated minus within training images is "
        f"{excess:+.3f}, {'above' if collapsed else 'at most'} {COLLAPSE}"
    )
    return entry | {"ssim_excess": excess, "collapsed": collapsed, "verdict": verdict}


# --- text


def table(result: dict, *, thesis: bool = False) -> str:
    """Render what `measure` returned as text, without a newline at the end.

    thesis: adds the thesis's own numbers as a row. They are of its DCGAN at 28x28, so only `dcgan28` compares with
      them.
    """
    rows = [(caption, result[key]) for key, caption in CAPTIONS.items()]
    if thesis:
        rows.insert(2, ("the thesis's own DCGAN, as it reports it", THESIS))
    lines = _row_lines(rows)
    if "by_grade" in result:
        lines += ["", *_grade_lines(result["by_grade"])]
    used, given = result["images"], result["given"]
    counts = {n: f"{used[n]}" + (f" of {given[n]}" if used[n] != given[n] else "") for n in used}
    lines += [
        "",
        f"Images: {counts['generated']} generated, {counts['training']} training, {counts['held_out']} held-out real.",
        f"Diversity: {result['collapse']['verdict']}.",
        "Higher is more alike, not better. Two unrelated photographs have the values of the held-out row, a blurred",
        "mean image has higher ones, and a generator that repeats one image can beat both: compare the rows.",
    ]
    if thesis:
        lines.append("The thesis's 0.516 and 16.444 dB are about the values of two unrelated photographs, or less.")
    return "\n".join(lines)


def _row_lines(rows):
    width = max(len(caption) for caption in CAPTIONS.values())
    lines = [f"{'':<{width}}   SSIM  PSNR dB  images x against"]
    for caption, entry in rows:
        if entry["ssim"] is None:
            lines.append(f"{caption:<{width}}      -        -  {entry['missing']}")
            continue
        counts = f"{entry['images']} x {entry['against']}" if "images" in entry else ""
        lines.append(f"{caption:<{width}}  {entry['ssim']:.3f}   {entry['psnr']:6.2f}  {counts}".rstrip())
    return lines


def _grade_lines(by_grade):
    """One line per grade, SSIM/PSNR in each column; images are generated/training/held-out."""
    columns = {  # short captions of the rows above
        "generated": "gen x train",
        "held_out_real": "held x train",
        "nearest_to_generated": "gen, nearest",
        "within_generated": "within gen",
        "within_training": "within train",
    }
    first = "within a grade"
    lines = [first + "".join(f"{title:>14}" for title in columns.values()) + f"{'images':>14}  collapse"]
    for name, rows in by_grade.items():
        cells = [rows[key] for key in columns]
        shown = ["-" if e["ssim"] is None else f"{e['ssim']:.3f}/{e['psnr']:.2f}" for e in cells]
        images = f"{cells[0]['images']}/{cells[0]['against']}/{cells[1]['images']}"
        collapsed = {None: "not judged", True: "collapsed", False: "no"}[rows["collapse"]["collapsed"]]
        lines.append(f"{name:<{len(first)}}" + "".join(f"{x:>14}" for x in shown) + f"{images:>14}  {collapsed}")
    return lines
