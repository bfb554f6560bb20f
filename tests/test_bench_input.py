"""`bench input` on tiny networks: what it prints, and that it finds what is slow."""

import json
import time

import pytest
from conftest import changed

from idrid_jax import cli
from idrid_jax.bench import input as bench
from idrid_jax.data.pipeline import tfdata
from idrid_jax.errors import UserError
from idrid_jax.training.logging import Log

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture
def config(config, monkeypatch):
    monkeypatch.setattr(bench, "SnapshotMetrics", lambda *_, **__: lambda *_: {})  # SSIM's window is larger than tiny images
    return changed(config, snapshot_kimg=10.0)


def test_each_thing_is_a_line_and_then_a_table(config, capsys):
    before = config.to_dict()
    bench.run(changed(config, data__pipeline="resident"), 1.0)
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    things = [(line["what"], line["way"]) for line in lines]
    assert things == [
        *(("from disk", way) for way in bench.WAYS),
        *(("steps", way) for way in ("bare", *bench.WAYS)),
        ("loop", "resident"),
    ]
    for line in lines:
        assert line["bench"] == "input" and line["network"] == "tiny" and line["batch"] == 8
        low, high = line["quartiles"]
        assert 0 < low <= line["images_per_s"] <= high and line["threads"] >= 1 and line["jax"]
        assert ("waiting" in line) == (line["what"] == "steps" and line["way"] != "bare")
        assert ("of_bare" in line) == (line["what"] == "loop" or "waiting" in line)
    resident = next(line for line in lines if line["way"] == "resident" and line["what"] == "steps")
    assert resident["waiting"] < 0.02
    assert f"training split of {lines[0]['release']}" in err
    table = out[out.rindex("}") + 1 :]
    assert all(f"{what}, {way}" in table for what, way in things) and "A snapshot costs" in table
    assert config.to_dict() == before


def test_slow_data_and_slow_snapshots_are_found(config, capsys, monkeypatch):
    batches, image = tfdata.batches, Log.image

    def slowly(*args, **kwargs):
        for batch in batches(*args, **kwargs):
            time.sleep(0.02)
            yield batch

    monkeypatch.setattr(tfdata, "batches", slowly)
    monkeypatch.setattr(Log, "image", lambda *args: (time.sleep(0.2), image(*args)))
    rows = bench.run(changed(config, data__pipeline="resident"), 1.0)
    found = {(row["what"], row["way"]): row for row in rows}
    assert found["steps", "tfdata"]["waiting"] > 0.7 and found["steps", "tfdata"]["of_bare"] < 0.3
    assert found["steps", "resident"]["waiting"] < 0.02
    assert 0.15 < found["loop", "resident"]["snapshot_s"] < 1.5
    assert found["from disk", "tfdata"]["images_per_s"] < 8 / 0.02


def test_without_a_prepared_release_one_is_drawn(config, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    config = changed(config, data__data_dir="")
    found, manifest = bench._release(config, tmp_path / "scratch")
    assert "drawing one" in capsys.readouterr().err and sum(manifest.counts["grading"]["train"]) > 100
    assert found.data.data_dir and config.data.data_dir == "" and not list(tmp_path.glob("idrid_jax"))
    with pytest.raises(UserError, match="no release has been prepared"):
        bench.run(changed(config, data__data_dir=str(tmp_path / "none")), 1.0)


@pytest.mark.parametrize("changes, says", [({"batch_size": 0}, "batch_size"), ({"network": "tinny"}, "did you mean")])
def test_mistakes(config, changes, says):
    with pytest.raises(UserError, match=says):
        bench.run(changed(config, **changes), 1.0)


def test_the_command(monkeypatch, capsys, tmp_path):
    asked = []
    monkeypatch.setattr(bench, "run", lambda config, seconds: asked.append((config, seconds)))
    assert cli.main(["bench", "input"]) == 0
    assert cli.main(["bench", "input", "--seconds=9", "--config=configs/cgan32.py", "--config.batch_size=16"]) == 0
    assert asked[0] == (None, 75.0) and asked[1][0].batch_size == 16 and asked[1][1] == 9.0
    assert cli.main(["bench", "input", "--seconds=1"]) == 2 and "--seconds" in capsys.readouterr().err
