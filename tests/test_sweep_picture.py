"""The text and picture of a sweep's results."""

import os

import numpy as np
import pandas as pd

from idrid_jax.sweep import plot, results


def frame(rows, **columns):
    """A table like that of `results.results_table`, with SSIM 0.5, 0.51, ..."""
    count = len(rows)
    made = pd.DataFrame(rows)
    made.insert(0, "number", range(1, count + 1))
    made["name"] = [",".join(f"{key}={value}" for key, value in row.items()) for row in rows]
    made["status"], made["reason"] = "finished", ""
    for column in ("kimg", "loss_d", "loss_g", "images_per_s", *results.METRICS):
        made[column] = np.linspace(0.5, 0.5 + 0.01 * (count - 1), count)
    return made.assign(**{results.KID: float("nan")} | columns)


def texts(axes):
    return {(round(text.get_position()[0]), round(text.get_position()[1])): text.get_text() for text in axes.texts}


PAIRS = [{"g": rate, "d": rate, "batch": batch} for rate in (1e-4, 1e-3) for batch in (4, 8, 16)]


def test_fields_that_change_together_are_one_axis():
    found = plot.find_axes(frame(PAIRS, constant=3), ["batch", "constant", "d", "g"])
    assert [(axis.fields, axis.caption, axis.order) for axis in found] == [
        (("batch",), "batch", ["4", "8", "16"]),
        (("d", "g"), "d = g", ["0.0001", "0.001"]),
    ]
    unlike = plot.find_axes(frame([{"a": 2, "b": "x"}, {"a": 1, "b": "y"}]), ["a", "b"])
    assert [(axis.caption, axis.labels, axis.order) for axis in unlike] == [
        ("a / b", ["2 / x", "1 / y"], ["1 / y", "2 / x"])
    ]


def test_two_axes_make_a_heat_map_with_the_numbers_in_it():
    table = frame(PAIRS)
    table.loc[5, ["status", "ssim", "psnr"]] = "failed", None, None
    first, *others = plot.sweep_figure(table, ["batch", "d", "g"]).axes[:6]
    assert texts(first) == {
        (0, 0): "0.500",
        (1, 0): "0.510",
        (2, 0): "0.520",
        (0, 1): "0.530",
        (1, 1): "0.540",
        (2, 1): "(failed)",
    }
    assert (first.get_xlabel(), first.get_ylabel()) == (
        "batch",
        "d = g",
    ) and "held-out real photographs: 0.5" in first.get_title("left")
    assert [label.get_text() for label in first.get_xticklabels()] == ["4", "8", "16"]
    assert texts(others[0])[0, 0] == "0.50"


def test_seeds_are_repetitions():
    rows = [{"seed": seed, **row} for row in PAIRS[:3] for seed in (0, 1)]
    (first, *_) = plot.sweep_figure(frame(rows), ["batch", "seed"]).axes
    (dots, means, *_) = first.lines
    assert len(dots.get_xdata()) == 6 and np.allclose(means.get_ydata(), [0.505, 0.525, 0.545])
    rows = [{"seed": seed, **row} for row in PAIRS for seed in (0, 1)]
    (first, *_) = plot.sweep_figure(frame(rows), ["batch", "d", "g", "seed"]).axes
    assert texts(first)[0, 0] == "0.505\n0.500 to 0.510"


def test_more_axes_make_sorted_dots_and_nothing_finished_is_no_error():
    rows = [{"a": a, "b": b, "c": c} for a in (1, 2) for b in (1, 2) for c in (1, 2)]
    table = frame(rows, ssim=[0.3, 0.1, 0.2, None, 0.5, 0.4, 0.7, 0.6])
    (first, *_) = plot.sweep_figure(table, ["a", "b", "c"]).axes
    values = first.lines[0].get_xdata()
    assert np.isnan(values[0]) and list(values[1:]) == sorted(values[1:])
    assert first.get_yticklabels()[-1].get_text() == "a 2\nb 2\nc 1"
    for fields in (["a"], ["a", "b"], ["a", "b", "c"], []):
        empty = frame(rows).assign(
            status="waiting", **{name: float("nan") for name in ("ssim", "loss_d", "ssim_held_out", "ssim_excess")}
        )
        plot.sweep_figure(empty, fields).savefig(os.devnull, format="png")
        assert "waiting" in results.format_results(empty, fields)
