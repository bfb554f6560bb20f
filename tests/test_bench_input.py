"""`bench input` on tiny networks: rows and table, and that slow data and slow snapshots show."""

import functools
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
    monkeypatch.setattr(
        bench, "SnapshotMetrics", lambda *_, **__: lambda *_: {}
    )  # the window of SSIM is larger than tiny images
    return changed(config, snapshot_kimg=10.0)


def test_rows_and_table_show_slow_data_and_slow_snapshots(config, capsys, monkeypatch):
    batches, image = tfdata.batches, Log.image

    def slow_batches(*args, **kwargs):
        for batch in batches(*args, **kwargs):
            time.sleep(0.02)
            yield batch

    monkeypatch.setattr(tfdata, "batches", slow_batches)
    monkeypatch.setattr(Log, "image", lambda *args: (time.sleep(0.2), image(*args)))
    monkeypatch.setattr(bench, "STEP_ROUNDS", 4)
    monkeypatch.setattr(bench, "MIN_SPANS", 3)
    before = config.to_dict()
    rows = bench.run(changed(config, data__pipeline="resident"), 0.1)
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    found = {(row["measurement"], row["pipeline"]): row for row in rows}
    assert (
        list(found)
        == [(line["measurement"], line["pipeline"]) for line in lines]
        == [
            *(("from_disk", pipeline) for pipeline in bench.PIPELINES),
            *(("steps", pipeline) for pipeline in ("bare", *bench.PIPELINES)),
            ("train_loop", "resident"),
        ]
    )
    for line in lines:
        assert line["benchmark"] == "input" and line["network"] == "tiny" and line["batch_size"] == 8
        low, high = line["images_per_s_quartiles"]
        assert 0 < low <= line["images_per_s"] <= high and line["threads"] >= 1 and line["jax"]
        reads = line["measurement"] == "steps" and line["pipeline"] != "bare"
        assert ("wait_fraction" in line) == reads
        assert ("relative_to_bare" in line) == (reads or line["measurement"] == "train_loop")
    assert f"training split of {lines[0]['release']}" in err
    table = out[out.rindex("}") + 1 :]
    assert all(f"{name}, {pipeline}" in table for name, pipeline in found) and "A snapshot costs" in table
    assert config.to_dict() == before

    assert found["steps", "tfdata"]["wait_fraction"] > 0.5 > 0.1 > found["steps", "resident"]["wait_fraction"]
    assert found["steps", "tfdata"]["relative_to_bare"] < 0.5
    assert found["train_loop", "resident"]["snapshot_s"] > 0.15
    assert found["from_disk", "tfdata"]["images_per_s"] < 8 / 0.02


def test_without_a_prepared_release_a_phantom_is_made(config, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    small = functools.partial(bench.phantom.make_release, train=(2,) * 5, test=(1,) * 5)
    monkeypatch.setattr(bench.phantom, "make_release", small)
    config = changed(config, data__data_dir="")
    found, manifest = bench._find_or_make_release(config, tmp_path / "scratch")
    assert "phantom" in capsys.readouterr().err and sum(manifest.counts["grading"]["train"]) == 10
    assert found.data.data_dir and config.data.data_dir == "" and not list(tmp_path.glob("idrid_jax"))
    with pytest.raises(UserError, match="no release has been prepared"):
        bench.run(changed(config, data__data_dir=str(tmp_path / "none")), 1.0)


@pytest.mark.parametrize("changes, says", [({"batch_size": 0}, "batch_size"), ({"network": "tinny"}, "did you mean")])
def test_a_wrong_configuration_is_refused(config, changes, says):
    with pytest.raises(UserError, match=says):
        bench.run(changed(config, **changes), 1.0)


def test_the_command(monkeypatch, capsys, tmp_path):
    calls = []
    monkeypatch.setattr(bench, "run", lambda config, seconds: calls.append((config, seconds)))
    assert cli.main(["bench", "input"]) == 0
    assert cli.main(["bench", "input", "--seconds=9", "--config=configs/cgan32.py", "--config.batch_size=16"]) == 0
    assert calls[0] == (None, 75.0) and calls[1][0].batch_size == 16 and calls[1][1] == 9.0
    assert cli.main(["bench", "input", "--seconds=1"]) == 2 and "--seconds" in capsys.readouterr().err
