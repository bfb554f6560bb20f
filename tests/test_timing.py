"""Interleaved rounds, and the matrix-product rate."""

import json

import jax
import jax.numpy as jnp

from idrid_jax.bench import report, timing


def test_sides_take_turns():
    calls = []
    times = timing.time_interleaved(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3, warm_up=2
    )
    assert "".join(calls) == "abab" + "ab" + "ba" + "ab"
    assert set(times) == {"a", "b"} and all(len(side.seconds) == 3 for side in times.values())


def test_median_and_quartiles():
    times = timing.Times((5.0, 1.0, 2.0, 4.0, 3.0))
    assert times.median == 3 and times.quartiles == (2, 4)
    assert timing.Times((2.0,)).quartiles == (2, 2)


def test_matrix_rate_counts_two_operations_per_product(monkeypatch):
    """If every product takes one second, the rate is the number of operations of the largest product."""
    monkeypatch.setattr(timing, "time_interleaved", lambda sides, rounds: {"product": timing.Times((2.0, 1.0))})
    monkeypatch.setattr(jax.random, "normal", lambda key, shape, dtype: jnp.zeros(shape, dtype))
    assert timing.matrix_flops_per_s("bfloat16") == 2 * 2048**3


def test_rows_are_json_lines_and_the_table_is_aligned(capsys):
    report.print_row({"images_per_s": 1.5, "device": "cpu"})
    assert json.loads(capsys.readouterr().out) == {"images_per_s": 1.5, "device": "cpu"}
    assert report.format_table(["what", "ms"], [["a", 1.25], ["long name", None]]).splitlines() == [
        "what         ms",
        "a          1.25",
        "long name     -",
    ]
    assert {"device", "threads", "jax"} <= set(report.describe_machine())
