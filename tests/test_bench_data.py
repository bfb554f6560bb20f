"""`bench prepare` and `bench evaluate`, through the command line on little data."""

import json
import sys

import pytest
from made_run import write_release

from idrid_jax import cli


def lines(capsys):
    out = capsys.readouterr().out
    rows = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    return {row["side"]: row for row in rows}, out


def test_prepare_compares_with_decoding(tmp_path, capsys):
    release = write_release(tmp_path / "release")
    assert cli.main(["bench", "prepare", f"--release={release}", "--size=16", "--rounds=3"]) == 0
    rows, out = lines(capsys)
    assert set(rows) == {"prepare", "decode at that scale", "decode in full"}
    alone = rows["decode at that scale"]["ms_per_photograph"]
    for row in rows.values():
        assert row["photographs"] == 21
        assert row["images_per_s"] == pytest.approx(1000 / row["ms_per_photograph"], rel=0.02)
        assert row["ratio_to_decoding"] == pytest.approx(row["ms_per_photograph"] / alone, rel=0.02)
    assert out.splitlines()[-3].startswith("prepare ")  # the table


def test_evaluate_compares_with_scikit_image(capsys):
    pytest.importorskip("skimage")
    assert cli.main(["bench", "evaluate", "--size=16", "--count=4", "--rounds=3"]) == 0
    rows, _ = lines(capsys)
    ours, theirs = rows["idrid_jax"], rows["scikit-image"]
    assert ours["speedup"] == pytest.approx(theirs["us_per_pair"] / ours["us_per_pair"], rel=0.02)
    assert ours["max_ssim_difference"] < 1e-6 and ours["max_psnr_difference_db"] < 1e-4
    assert ours["pairs_per_s"] == pytest.approx(4 * ours["images_per_s"], rel=0.02)


@pytest.mark.parametrize(
    "arguments, line",
    [
        (["prepare", "--release=/nowhere/at/all"], "/nowhere/at/all"),
        (["prepare", "--size=0"], "size 0 is not between 1 and 8192"),
        (["prepare", "--crop=round"], "crop 'round' is unknown"),
        (["evaluate", "--size=8"], "--size 8: "),
        (["evaluate", "--channels=2"], "--channels 2: "),
    ],
)
def test_bad_input_is_refused_in_one_line(arguments, line, capsys):
    pytest.importorskip("skimage")
    assert cli.main(["bench", *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and line in error[0]


def test_without_scikit_image_the_extra_is_named(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["bench", "evaluate"]) == 2
    assert "pip install 'idrid_jax[test]'" in capsys.readouterr().err
