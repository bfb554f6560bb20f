"""Interleaved rounds, and the matrix-product rate."""

import json

from idrid_jax.bench import report, timing


def test_sides_take_turns():
    calls = []
    times = timing.interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3, warm_up=2)
    assert "".join(calls) == "abab" + "ab" + "ba" + "ab"
    assert set(times) == {"a", "b"} and all(len(side.seconds) == 3 for side in times.values())


def test_median_and_quartiles():
    times = timing.Times((5.0, 1.0, 2.0, 4.0, 3.0))
    assert times.median == 3 and times.quartiles == (2, 4)
    assert timing.Times((2.0,)).quartiles == (2, 2)


def test_matrix_rate_counts_two_operations_per_product(monkeypatch):
    """With a clock that says one second for every product, the rate is the largest product's operations."""
    monkeypatch.setattr(timing, "interleaved", lambda sides, rounds: {"product": timing.Times((2.0, 1.0))})
    assert timing.matrix_rate("bfloat16") == 2 * 2048**3


def test_rows_are_json_lines_and_the_table_is_aligned(capsys):
    report.emit({"images_per_s": 1.5, "device": "cpu"})
    assert json.loads(capsys.readouterr().out) == {"images_per_s": 1.5, "device": "cpu"}
    assert report.table(["what", "ms"], [["a", 1.25], ["long name", None]]).splitlines() == [
        "what         ms",
        "a          1.25",
        "long name     -",
    ]
    assert {"device", "threads", "jax"} <= set(report.machine())
