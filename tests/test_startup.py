"""The way to the first step: what it imports, the compilation cache, the table of layers."""

import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from conftest import assert_same
from flax import nnx

from idrid_jax import runtime
from idrid_jax.config import default_config
from idrid_jax.models import NETWORKS, layer_table
from idrid_jax.training.checkpoint import read_run

ROOT = Path(__file__).parents[1]

# -- Whole starts of the command

# It says what is imported when training is over and only the curves are left, which need matplotlib
SCRIPT = """
import sys
from idrid_jax.training import curves
curves.draw = lambda workdir: print("imported", *sorted(sys.modules))
from idrid_jax.cli import main
sys.exit(main(sys.argv[1:]))
"""

# What training in the resident way does without: seconds each, and some are not installed everywhere
UNUSED = {"tensorflow", "tensorflow_datasets", "tensorboardX", "torch", "pandas", "matplotlib", "skimage"}


def begin(data, workdir, **environment):
    """`idrid-jax train` in a process of its own: two steps of dcgan28 on two images each."""
    fields = {"batch_size": 2, "total_kimg": 0.004, "log_kimg": 0.002, "data.data_dir": data, "data.pipeline": "resident"}
    fields |= {"data.validation_folds": 0, "checkpoint.best": ""}  # no grader to train
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    return subprocess.Popen(
        [
            *(sys.executable, "-c", SCRIPT, "train", f"--config={ROOT / 'configs/dcgan28.py'}", f"--workdir={workdir}"),
            *(f"--config.{name}={value}" for name, value in fields.items()),
        ],
        env=inherited | {"PYTHONPATH": str(ROOT), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process) -> tuple[str, str]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out, err


def entries(cache) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in cache.rglob("*-cache")}


def test_a_second_start_reads_its_programs_and_trains_the_same(phantom_data, tmp_path):
    """Two processes fill an empty cache at once; a third finds all it needs in it; a fourth finds it damaged, as a
    process leaves it that was killed while it wrote. All end in the same state, bit for bit."""
    cache = tmp_path / "cache"
    first = [begin(phantom_data, tmp_path / name, XDG_CACHE_HOME=str(cache)) for name in "ab"]
    for process in first:
        _, err = end(process)
        assert "cache" not in err
    filled = entries(cache)
    (folder,) = {path.parent for path in filled}
    assert folder.parent == cache / "idrid_jax" / "jax" and folder.stat().st_mode & 0o777 == 0o700
    out, err = end(begin(phantom_data, tmp_path / "c", XDG_CACHE_HOME=str(cache)))
    assert entries(cache) == filled and "cache" not in err
    imported = {name.partition(".")[0] for name in out.partition("imported ")[2].split()}
    assert "jax" in imported and not imported & UNUSED
    for path, content in filled.items():
        path.write_bytes(content[: len(content) // 2])
    end(begin(phantom_data, tmp_path / "d", XDG_CACHE_HOME=str(cache)))
    states = [read_run(tmp_path / name)[1] for name in "abcd"]
    for state in states[1:]:
        assert_same(states[0], state)
    assert int(states[0].step) == 2


def test_a_home_that_cannot_be_written_trains_without_a_cache(phantom_data, tmp_path):
    (tmp_path / "file").write_text("")
    _, err = end(begin(phantom_data, tmp_path / "run", XDG_CACHE_HOME=str(tmp_path / "file")))
    assert "cache" not in err and "Error" not in err
    assert (tmp_path / "file").read_text() == ""


# -- The cache's place


@pytest.fixture
def before_jax(monkeypatch):
    """As before JAX is imported, without the variables that these tests themselves run under."""
    monkeypatch.delitem(sys.modules, "jax")
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)


def test_the_cache_lies_in_the_user_s_home(before_jax, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    runtime.enable_compilation_cache()
    folder = Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
    assert folder.is_dir() and folder.parent == tmp_path / ".cache" / "idrid_jax" / "jax"
    assert os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] == "0"


def test_what_the_user_set_is_left_alone(before_jax, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/elsewhere")
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "7")
    runtime.enable_compilation_cache()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "/elsewhere" and not (tmp_path / "home").exists()
    assert os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] == "7"


def test_a_program_that_has_imported_jax_is_left_alone(before_jax, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "jax", jax)
    monkeypatch.setenv("HOME", str(tmp_path))
    runtime.enable_compilation_cache()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ and not list(tmp_path.iterdir())


# -- The table of layers


@pytest.mark.parametrize("name", ["cgan32", "dcgan64"])
def test_the_table_has_every_layer_with_its_shapes(name):
    """A line for each layer that is called, its parameters adding up to the network's; nothing is compiled."""
    config = default_config()
    config.network = name
    network = NETWORKS[name]
    for table, make in zip(layer_table.networks_table(config).split("\n\n"), (network.generator, network.discriminator)):
        header, whole, *rows = [line.split() for line in table.splitlines()]
        assert header == ["layer", "type", "inputs", "output", "parameters"]
        shapes = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0)))
        count = lambda module: sum(math.prod(a.shape) for a in jax.tree.leaves(nnx.state(module, nnx.Param)))
        assert whole[0] == type(shapes).__name__ and whole[-1] == f"{count(shapes):,}"
        parts = {"/".join(map(str, path)): part for path, part in nnx.iter_modules(shapes) if path}
        layers = {name for name, part in parts.items() if not isinstance(part, nnx.List)}
        assert {row[0] for row in rows} == layers
        for row in rows:
            assert row[1] == type(parts[row[0]]).__name__
            if count(parts[row[0]]):
                assert f"{count(parts[row[0]]):,}" in row


def test_the_table_reads_a_call():
    config = default_config()
    config.network, config.dtype = "dcgan64", "bfloat16"
    lines = [line.split() for line in layer_table.networks_table(config).splitlines()]
    norm = ["norm/1", "BatchNorm", *["bfloat16[1,8,8,256]"] * 2, "512", "bias[256]", "scale[256]"]
    assert [*norm, "statistics", "mean[256]", "var[256]"] in lines
    image = ["image", "ConvTranspose", "bfloat16[1,32,32,64]", "bfloat16[1,64,64,3]", "3,072", "kernel[4,4,3,64]"]
    assert image in lines
    assert nnx.Linear.__call__.__qualname__ == "Linear.__call__"  # what records the calls is gone
