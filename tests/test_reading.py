"""Whether the asked grades are read in generated images: planted readings."""

import numpy as np
import pytest

from idrid_jax.evaluation import reading

RNG = np.random.default_rng(0)
ASKED, TRUTH = np.repeat(np.arange(5), 12), np.repeat(np.arange(5), 6)


def test_perfect_lying_and_guessing_readings():
    perfect = reading.measure(ASKED, ASKED, TRUTH, TRUTH)
    assert (
        perfect["generated"]["kappa"] == perfect["held_out"]["kappa"] == 1 and "reads the asked" in perfect["verdict"]
    )
    assert perfect["generated"]["recall"]["MILD"] == 1 and np.trace(perfect["generated"]["confusion"]) == 60
    lies = reading.measure(4 - ASKED, ASKED, TRUTH, TRUTH)
    assert lies["generated"]["kappa"] == pytest.approx(-1) and "does not read" in lies["verdict"]
    guess = reading.measure(RNG.integers(5, size=60), ASKED, TRUTH, TRUTH)
    low, high = guess["generated"]["interval"]
    assert low < 0 < high and "does not read" in guess["verdict"]
    assert "in held-out photographs 1.00" in reading.line(guess)


def test_too_few_images_are_told():
    few = reading.measure(ASKED[:4], ASKED[:4], TRUTH[:3], TRUTH[:3])
    assert (
        few["generated"] == {"missing": "4 generated images; it takes at least 10"} and "not judged" in few["verdict"]
    )
    assert reading.line(few).endswith("at least 10.")
