"""The thesis's protocol and its reference rows, against loops over pairs and cases whose answer is known."""

import json

import numpy as np
import pytest

from idrid_jax.data.release import GRADES
from idrid_jax.evaluation import quality
from idrid_jax.evaluation.image_quality import psnr, ssim
from idrid_jax.evaluation.quality import CAPTIONS, measure, table


def images(seed, count, size=16, channels=1):
    """A common pattern, and noise of each image's own."""
    common = np.random.default_rng(99).integers(60, 180, (size, size, channels))
    noise = np.random.default_rng(seed).normal(0, 25, (count, size, size, channels))
    return np.clip(common + noise, 0, 255).astype(np.uint8)


def arguments(generated=6, training=10, held_out=5, conditional=True):
    return (
        images(1, generated),
        np.arange(generated) % 5 if conditional else None,
        images(2, training),
        np.arange(training) % 5,
        images(3, held_out),
        np.arange(held_out) % 5,
    )


def by_loops(measure_pair, a, b):
    a, b = a.astype(np.float32) / 255, b.astype(np.float32) / 255
    return np.array([[float(measure_pair(x[None], y[None])[0]) for y in b] for x in a])


@pytest.mark.parametrize("name, measure_pair", [("ssim", ssim), ("psnr", psnr)])
def test_every_row_against_loops_over_pairs(name, measure_pair):
    fake, fake_grades, real, real_grades, held, held_grades = arguments()
    result = measure(fake, fake_grades, real, real_grades, held, held_grades)
    fake_real, held_real = by_loops(measure_pair, fake, real), by_loops(measure_pair, held, real)
    fake_fake, real_real = by_loops(measure_pair, fake, fake), by_loops(measure_pair, real, real)
    mean_real = by_loops(measure_pair, real.mean(axis=0, keepdims=True), real)
    pairs = lambda m: np.mean([m[i, j] for i in range(len(m)) for j in range(i + 1, len(m))])
    want = {
        "generated": fake_real.mean(),
        "one_generated": fake_real[result["one_generated"]["index"]].mean(),
        "held_out_real": held_real.mean(),
        "mean_image": mean_real.mean(),
        "nearest_to_generated": fake_real.max(axis=1).mean(),
        "nearest_to_held_out": held_real.max(axis=1).mean(),
        "within_generated": pairs(fake_fake),
        "within_training": pairs(real_real),
    }
    assert set(want) == set(CAPTIONS)
    for key, value in want.items():
        assert result[key][name] == pytest.approx(value, abs=1e-4), key
    for grade, grade_name in enumerate(GRADES):
        rows, f, r, h = result["by_grade"][grade_name], fake_grades == grade, real_grades == grade, held_grades == grade
        assert rows["generated"][name] == pytest.approx(fake_real[f][:, r].mean(), abs=1e-4)
        assert rows["held_out_real"][name] == pytest.approx(held_real[h][:, r].mean(), abs=1e-4)
        assert rows["nearest_to_generated"][name] == pytest.approx(fake_real[f][:, r].max(axis=1).mean(), abs=1e-4)
        assert rows["within_training"][name] == pytest.approx(pairs(real_real[r][:, r]), abs=1e-4)


def test_counts_and_json():
    result = measure(*arguments())
    assert result["images"] == result["given"] == {"generated": 6, "training": 10, "held_out": 5}
    sides = {key: (result[key]["images"], result[key]["against"]) for key in CAPTIONS}
    assert sides["generated"] == sides["nearest_to_generated"] == (6, 10)
    assert sides["one_generated"] == sides["mean_image"] == (1, 10)
    assert sides["held_out_real"] == sides["nearest_to_held_out"] == (5, 10)
    assert sides["within_generated"] == (6, 6) and sides["within_training"] == (10, 10)
    of_grade = result["by_grade"]["NO_DR"]["generated"]
    assert of_grade["images"] == of_grade["against"] == 2
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert "by_grade" not in measure(*arguments(conditional=False))


def test_the_same_arguments_give_the_same_result():
    given = arguments(generated=30)
    assert measure(*given, seed=3) == measure(*given, seed=3)
    picked = {measure(*given, seed=seed)["one_generated"]["index"] for seed in range(6)}
    assert len(picked) > 1


def test_max_images_samples_without_mixing_up_grades():
    given = arguments(generated=30, training=20)
    result = measure(*given, max_images=8)
    assert result["images"] == {"generated": 8, "training": 8, "held_out": 5}
    assert result["given"] == {"generated": 30, "training": 20, "held_out": 5}
    assert sum(rows["generated"]["images"] for rows in result["by_grade"].values()) == 8
    assert 0 <= result["one_generated"]["index"] < 30
    assert "8 of 30 generated" in table(result)


def test_large_sets_are_measured_in_parts(monkeypatch):
    given = arguments()
    whole = measure(*given)
    monkeypatch.setattr(quality, "CHUNK_BYTES", 4 * 16 * 16 * 4)
    for key in CAPTIONS:
        assert measure(*given)[key]["psnr"] == pytest.approx(whole[key]["psnr"], abs=1e-4)


def test_a_generator_of_one_image_has_collapsed():
    real = images(2, 10)
    grades = np.zeros(10, int)
    honest = measure(images(1, 8), None, real, grades, images(3, 4), grades[:4])
    assert honest["collapse"]["collapsed"] is False and abs(honest["collapse"]["ssim_excess"]) < 0.1
    blurred = np.repeat(np.round(real.mean(axis=0, keepdims=True)).astype(np.uint8), 8, axis=0)
    collapsed = measure(blurred, None, real, grades, images(3, 4), grades[:4])
    assert collapsed["generated"]["ssim"] > honest["held_out_real"]["ssim"]  # it wins by the protocol
    among = collapsed["within_generated"]
    assert among == {"ssim": pytest.approx(1), "psnr": pytest.approx(100), "images": 8, "against": 8}
    assert collapsed["collapse"]["collapsed"] is True
    assert collapsed["collapse"]["verdict"].startswith("collapsed") and "collapsed" in table(collapsed)


def test_a_generator_that_copies_shows_in_the_nearest_row():
    given = arguments()
    result = measure(given[2][:6], *given[1:])
    assert result["nearest_to_generated"]["ssim"] == pytest.approx(1) and result["nearest_to_generated"]["psnr"] == 100


def test_too_few_images_are_named_and_not_averaged():
    fake, _, real, real_grades, held, held_grades = arguments()
    result = measure(fake[:1], np.array([4]), real, np.zeros(10, int), held[:0], held_grades[:0])
    assert result["generated"]["ssim"] is not None and result["mean_image"]["ssim"] is not None
    assert result["held_out_real"]["ssim"] is None and result["held_out_real"]["missing"] == "no held-out images"
    assert result["within_generated"]["missing"] == "one generated image, no pair"
    assert result["collapse"]["collapsed"] is None and "not judged" in result["collapse"]["verdict"]
    grades = result["by_grade"]
    assert grades["PROLIFERATIVE"]["generated"]["missing"] == "no training images of grade PROLIFERATIVE"
    assert grades["MILD"]["generated"]["missing"] == "no generated images of grade MILD"
    json.dumps(result, allow_nan=False)
    text = table(result)
    assert "no held-out images" in text and "nan" not in text
    none = measure(fake[:0], None, real, real_grades, held, held_grades)
    assert none["generated"]["psnr"] is None and none["one_generated"]["index"] is None
    assert none["held_out_real"]["psnr"] is not None
    table(none)


def test_table_has_every_row_in_order():
    result = measure(*arguments())
    text = table(result)
    overall = text.split("\n\n")[0]
    places = [overall.index(caption) for caption in CAPTIONS.values()]
    assert places == sorted(places)
    assert f"{result['generated']['ssim']:.3f}" in overall and f"{result['generated']['psnr']:.2f}" in overall
    assert all(name in text for name in GRADES)
    assert "0.516" not in text and "two unrelated photographs" in text.replace("\n", " ").lower()
    asked = table(json.loads(json.dumps(result)), thesis=True)
    assert "0.516    16.44" in asked and max(map(len, asked.splitlines())) <= 120


@pytest.mark.parametrize(
    "place, value, message",
    [
        (0, np.zeros((6, 16, 16, 1), np.float32), "generated is float32"),
        (0, np.zeros((6, 16, 16, 3), np.uint8), r"generated holds images of \(16, 16, 3\), training of \(16, 16, 1\)"),
        (1, np.zeros(4, int), r"generated_grades has shape \(4,\) for 6 images"),
        (3, np.full(10, 5), r"training_grades holds \[5\]; grades are 0 to 4"),
        (5, None, "held_out_grades has shape"),
    ],
)
def test_refusals(place, value, message):
    given = list(arguments())
    given[place] = value
    with pytest.raises(ValueError, match=message):
        measure(*given)


def test_refuses_no_training_images():
    fake, fake_grades, real, real_grades, held, held_grades = arguments()
    with pytest.raises(ValueError, match="training holds no images"):
        measure(fake, fake_grades, real[:0], real_grades[:0], held, held_grades)
