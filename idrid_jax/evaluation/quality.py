"""The thesis's protocol: PSNR and SSIM of generated images against the data set, beside what real photographs give.

The thesis (sections 4.2 and 4.4.2) compares one randomly picked generated image with every photograph and reports the
mean. Alone that figure says little: two unrelated photographs score as high, a blurred mean image higher, and a
generator that repeats one image can beat both. So the same two measures are always taken of those references too.
NumPy arrays in, plain Python out; no files.
"""

import numpy as np

from idrid_jax.data.release import GRADES
from idrid_jax.evaluation.image_quality import psnr_pairs, ssim_pairs

THESIS = {"ssim": 0.516, "psnr": 16.444}  # section 4.4.2; its figure 16 swaps the two columns
COLLAPSE = 0.1  # generated images may be this much more alike (SSIM) among themselves than real ones
CHUNK_BYTES = 256 << 20  # float32 images of one set that are measured at a time

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
    most: int | None = 1000,
) -> dict:
    """SSIM and PSNR of generated images by the thesis's protocol, with their reference rows.

    Args:
        generated, training, held_out: uint8 [N, R, R, C], R at least 11; C and R alike, N may differ. `generated` and
            `held_out` may be empty (N = 0): their rows are then None. Held-out images must be none of the training
            ones.
        generated_grades: int [N] in 0..4, or None for an unconditional generator: then there is no "by_grade".
        training_grades, held_out_grades: int [N] in 0..4.
        seed: picks the image of "one_generated", and the images kept where there are more than `most`.
        most: at most so many images of each set are used, drawn at random; None uses all. Time grows with its square:
            500 generated and IDRiD's 413 and 103 take 4 s at 28x28x1 and half a minute at 64x64x3 on two busy cores.
    Returns: a dict that json.dumps takes, the same for the same arguments.
        One entry for each key of CAPTIONS: "ssim" and "psnr" (dB), means over its pairs, "images" and "against" (how
        many of each); where there were not enough images, None for both and the reason under "missing". Nearest is the
        highest value, of SSIM and of PSNR apart. Two equal images have PSNR 100.
        "one_generated" also has "index", its place in `generated`.
        "collapse": {"ssim_excess", "threshold", "collapsed", "verdict"}, excess of within_generated over within_training.
        "images": how many of each set were used; "given": how many were handed in; "seed".
        "by_grade": {grade's name: {the same keys, and "collapse"}}, everything within that grade; only with
        `generated_grades`.
    Raises: ValueError for arrays of another form, no training image, or images smaller than SSIM's window.
    Source: thesis, sections 4.2 and 4.4.2.
    """
    sets = {
        "generated": (generated, generated_grades),
        "training": (training, training_grades),
        "held_out": (held_out, held_out_grades),
    }
    _check(sets, most)
    rng = np.random.default_rng(seed)
    kept = {name: _draw(rng, len(images), most) for name, (images, _) in sets.items()}
    images = {name: np.asarray(sets[name][0])[index] for name, index in kept.items()}
    grades = {name: None if g is None else np.asarray(g)[kept[name]] for name, (_, g) in sets.items()}
    fake, real, held = images["generated"], images["training"], images["held_out"]

    fake_real, held_real = _all_pairs(fake, real), _all_pairs(held, real)
    mean_real = _all_pairs(_mean(real)[None], real)
    fake_fake, real_real = _all_pairs(fake, fake), _all_pairs(real, real)

    one = int(rng.integers(len(fake))) if len(fake) else None
    result = {
        "generated": _mean_of(fake_real, "generated"),
        "one_generated": _mean_of([m[:0] if one is None else m[one : one + 1] for m in fake_real], "generated"),
        "held_out_real": _mean_of(held_real, "held-out"),
        "mean_image": _mean_of(mean_real, "training"),
        "nearest_to_generated": _nearest(fake_real, "generated"),
        "nearest_to_held_out": _nearest(held_real, "held-out"),
        "within_generated": _among(fake_fake, "generated"),
        "within_training": _among(real_real, "training"),
    }
    result["one_generated"]["index"] = None if one is None else int(kept["generated"][one])
    result["collapse"] = _collapse(result["within_generated"], result["within_training"])
    result["images"] = {name: len(index) for name, index in kept.items()}
    result["given"] = {name: len(value[0]) for name, value in sets.items()}
    result["seed"] = seed
    if generated_grades is not None:
        result["by_grade"] = {}
        for grade, name in enumerate(GRADES):
            f, r, h = (np.flatnonzero(grades[which] == grade) for which in ("generated", "training", "held_out"))
            pick = f[[int(rng.integers(len(f)))]] if len(f) else f
            mean = _all_pairs(_mean(real[r])[None], real[r]) if len(r) else _take(mean_real, r, r)
            rows = {
                "generated": _mean_of(_take(fake_real, f, r), "generated", name),
                "one_generated": _mean_of(_take(fake_real, pick, r), "generated", name),
                "held_out_real": _mean_of(_take(held_real, h, r), "held-out", name),
                "mean_image": _mean_of(mean, "training", name),
                "nearest_to_generated": _nearest(_take(fake_real, f, r), "generated", name),
                "nearest_to_held_out": _nearest(_take(held_real, h, r), "held-out", name),
                "within_generated": _among(_take(fake_fake, f, f), "generated", name),
                "within_training": _among(_take(real_real, r, r), "training", name),
            }
            rows["collapse"] = _collapse(rows["within_generated"], rows["within_training"])
            result["by_grade"][name] = rows
    return result


def table(result: dict, *, thesis: bool = False) -> str:
    """Renders what `measure` returned for a console.

    Args:
        result: of `measure`, also when read back from JSON.
        thesis: adds the thesis's own numbers as a row: they are of its DCGAN at 28x28, so only `dcgan28` compares with
        them.
    Returns: lines of text without a newline at the end.
    """
    rows = [(caption, result[key]) for key, caption in CAPTIONS.items()]
    if thesis:
        rows.insert(2, ("the thesis's own DCGAN, as it reports it", THESIS))
    lines = _rows(rows)
    if "by_grade" in result:
        lines += ["", *_by_grade(result["by_grade"])]
    used, given = result["images"], result["given"]
    of = {name: f"{used[name]}" + (f" of {given[name]}" if used[name] != given[name] else "") for name in used}
    lines += [
        "",
        f"Images used: {of['generated']} generated, {of['training']} training, {of['held_out']} held-out real.",
        f"Diversity: {result['collapse']['verdict']}.",
        "Higher is more alike, not better. Two unrelated photographs give what the held-out row says, a blurred mean",
        "image gives more, and a generator that repeats one image can beat both: read each row against the others.",
    ]
    if thesis:
        lines.append("The thesis's 0.516 and 16.444 dB are about what two unrelated photographs give, or less.")
    return "\n".join(lines)


# --- arrays


def _check(sets, most):
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
    if most is not None and most < 1:
        raise ValueError(f"most is {most}; it is a number of images, at least 1, or None")


def _draw(rng, count, most):
    if most is None or count <= most:
        return np.arange(count)
    return np.sort(rng.choice(count, most, replace=False))


def _mean(images):
    """-> float32 [R, R, C] in [0, 255], not rounded."""
    return (images.sum(axis=0, dtype=np.int64) / len(images)).astype(np.float32)


def _all_pairs(a, b):
    """-> [SSIM, PSNR], each float64 [N, M]; a, b [N or M, R, R, C] in [0, 255], made float a part at a time."""
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
    """`missing` says why there is nothing to average, or is empty."""
    images, against = pairs[0].shape
    entry = dict(zip(("ssim", "psnr"), (None, None) if missing else (float(np.mean(v)) for v in values)))
    entry |= {"images": images, "against": against}
    return entry | {"missing": missing} if missing else entry


def _lacking(pairs, who, grade):
    if not pairs[0].shape[0]:
        return f"no {who} images{_of(grade)}"
    return "" if pairs[0].shape[1] else f"no training images{_of(grade)}"


def _of(grade):
    return f" of grade {grade}" if grade else ""


def _mean_of(pairs, who, grade=""):
    return _entry(pairs, pairs, _lacking(pairs, who, grade))


def _nearest(pairs, who, grade=""):
    missing = _lacking(pairs, who, grade)
    return _entry(pairs, [] if missing else [m.max(axis=1) for m in pairs], missing)


def _among(pairs, who, grade=""):
    count = len(pairs[0])
    missing = "" if count > 1 else _lacking(pairs, who, grade) or f"one {who} image{_of(grade)}, no pair"
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


def _rows(rows):
    width = max(len(caption) for caption in CAPTIONS.values())
    lines = [f"{'':<{width}}   SSIM  PSNR dB  images x against"]
    for caption, entry in rows:
        if entry["ssim"] is None:
            lines.append(f"{caption:<{width}}      -        -  {entry['missing']}")
            continue
        counts = f"{entry['images']} x {entry['against']}" if "images" in entry else ""
        lines.append(f"{caption:<{width}}  {entry['ssim']:.3f}   {entry['psnr']:6.2f}  {counts}".rstrip())
    return lines


def _by_grade(by_grade):
    """One line a grade, SSIM/PSNR in each column; images are generated/training/held-out."""
    columns = {  # the rows of the table above, in short
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
