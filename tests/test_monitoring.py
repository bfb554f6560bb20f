"""Collapse: mode collapse and discriminator saturation are found, and warn about or stop a run."""

import numpy as np
import pytest
from conftest import changed, stats, steps, train

from idrid_jax.training.monitoring import TrainingCollapsed, find_collapse


def rows(*diversity, real=0.7, fake=0.3, loss=0.5):
    """Return rows of stats.jsonl with two plain ones before each snapshot."""
    plain = {"d_real": real, "d_fake_after": fake, "loss_d": loss}
    return [row for value in diversity for row in (plain, plain, plain | {"diversity": value})]


def test_mode_collapse_needs_an_earlier_diversity():
    assert find_collapse(rows(0.01), "bce") is None  # the first images are all alike
    assert find_collapse(rows(0.01, 0.2, 0.6, 0.5), "bce") is None
    assert "0.10" in find_collapse(rows(0.01, 0.6, 0.1), "bce")
    assert find_collapse(rows(0.6, 0.1)[:-1], "bce") is None and find_collapse([], "bce") is None  # not at a snapshot


def test_discriminator_saturation():
    assert "saturated" in find_collapse(rows(0.5, real=0.998, fake=0.001), "bce")
    assert find_collapse(rows(0.5, real=0.998, fake=0.05), "bce") is None
    assert find_collapse(rows(0.5, real=0.998, fake=0.001) + rows(0.5), "bce") is None  # no longer


def test_saturation_depends_on_what_the_loss_makes_of_logits():
    """A relativistic discriminator with a lead of 9 is saturated wherever its logits are; a critic has no boundary."""
    loss = lambda lead: float(np.log1p(np.exp(-lead)))
    assert "saturated" in find_collapse(rows(0.5, loss=loss(9)), "relativistic")
    assert find_collapse(rows(0.5, loss=loss(4)), "relativistic") is None
    assert find_collapse(rows(0.5, real=0.999, fake=0.001, loss=loss(3)), "relativistic") is None
    assert find_collapse(rows(0.5, real=0.999, fake=0.001, loss=-9.0), "wasserstein") is None


def test_a_collapse_warns_or_stops(config, tmp_path, capsys):
    def collapsing():
        values = iter([0.8, 0.1, 0.1])
        return lambda *_: {"diversity": next(values)}

    train(config, tmp_path / "warned", collapsing())
    assert capsys.readouterr().err.count("warning at") == 2  # at the second and the third snapshot
    with pytest.raises(TrainingCollapsed, match="^step 8: .*on_collapse"):
        train(changed(config, on_collapse="stop"), tmp_path / "stopped", collapsing())
    assert steps(tmp_path / "stopped") == [4, 8] and stats(tmp_path / "stopped")[-1]["step"] == 8
    train(changed(config, on_collapse="ignore"), tmp_path / "ignored", collapsing())
    assert "warning" not in capsys.readouterr().err
