"""The start of a command: imports, process-wide settings, the compilation cache."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from conftest import assert_same

from idrid_jax import cli, runtime
from idrid_jax.training.checkpoint import read_run

ROOT = Path(__file__).parents[1]

# -- Whole starts of the command

# Prints the imported modules at the end of training, in place of drawing curves, which need matplotlib
SCRIPT = """
import sys
from idrid_jax import runtime
runtime.enable_compilation_cache()  # as main does, before JAX is imported
from idrid_jax.training import logging
logging.plot_curves = lambda workdir: print("imported", *sorted(sys.modules))
from idrid_jax.cli import main
sys.exit(main(sys.argv[1:]))
"""

# Modules that training with the resident pipeline does not need: each takes seconds, some are not installed everywhere
UNUSED = {"tensorflow", "tensorflow_datasets", "tensorboardX", "torch", "pandas", "matplotlib", "skimage"}


def start_training(data, workdir, **environment):
    """Start `idrid-jax train` in a process of its own: two steps of dcgan28 on two images each."""
    fields = {
        "batch_size": 2,
        "total_kimg": 0.004,
        "log_kimg": 0.002,
        "data.data_dir": data,
        "data.pipeline": "resident",
    }
    fields |= {"data.validation_folds": 0, "checkpoint.best": ""}  # no features
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


def finish(process) -> tuple[str, str]:
    """Return stdout and stderr of a process that must succeed."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out, err


def entries(cache) -> dict[Path, bytes]:
    """Return the content of every file of a compilation cache."""
    return {path: path.read_bytes() for path in cache.rglob("*-cache")}


def test_a_start_imports_what_it_needs_and_fills_the_cache(phantom_data, tmp_path):
    cache = tmp_path / "cache"
    out, err = finish(start_training(phantom_data, tmp_path / "run", XDG_CACHE_HOME=str(cache)))
    imported = {name.partition(".")[0] for name in out.partition("imported ")[2].split()}
    assert "jax" in imported and not imported & UNUSED
    (folder,) = {path.parent for path in entries(cache)}
    assert folder.parent == cache / "idrid_jax" / "jax" and folder.stat().st_mode & 0o777 == 0o700
    assert "cache" not in err


@pytest.mark.slow  # four processes that train
def test_the_cache_serves_concurrent_second_and_damaged_starts(phantom_data, tmp_path):
    """All starts end in the same state, bit for bit.

    Two processes fill an empty cache concurrently; a third finds all its programs; a fourth finds them truncated, as a
    process leaves them that is killed while it writes.
    """
    cache = tmp_path / "cache"
    first = [start_training(phantom_data, tmp_path / name, XDG_CACHE_HOME=str(cache)) for name in "ab"]
    for process in first:
        assert "cache" not in finish(process)[1]
    filled = entries(cache)
    _, err = finish(start_training(phantom_data, tmp_path / "c", XDG_CACHE_HOME=str(cache)))
    assert entries(cache) == filled and "cache" not in err
    for path, content in filled.items():
        path.write_bytes(content[: len(content) // 2])
    finish(start_training(phantom_data, tmp_path / "d", XDG_CACHE_HOME=str(cache)))
    states = [read_run(tmp_path / name)[1] for name in "abcd"]
    for state in states[1:]:
        assert_same(states[0], state)
    assert int(states[0].step) == 2


# -- Settings of the process


@pytest.mark.parametrize(
    ("words", "platforms", "expected"),
    [("train", "cpu", True), ("bench step", "cpu", True), ("train", "cuda", False), ("evaluate", "cpu", False)],
)
def test_malloc_is_set_for_training_on_cpu_only(words, platforms, expected, monkeypatch):
    called = []
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setattr(runtime, "keep_freed_memory", lambda: called.append(True))
    assert cli.main([*words.split(), "--help"]) == 0
    assert bool(called) == expected


# -- The folder of the compilation cache


@pytest.fixture
def before_jax(monkeypatch):
    """The state before JAX is imported, without the variables that the tests themselves run with."""
    monkeypatch.delitem(sys.modules, "jax")
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "")  # so that monkeypatch restores it
        monkeypatch.delenv(name)


def test_the_cache_is_in_the_home_directory(before_jax, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    runtime.enable_compilation_cache()
    folder = Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
    assert folder.is_dir() and folder.parent == tmp_path / ".cache" / "idrid_jax" / "jax"
    assert os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] == "0"


def test_variables_that_the_user_set_stay(before_jax, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/elsewhere")
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "7")
    runtime.enable_compilation_cache()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "/elsewhere" and not (tmp_path / "home").exists()
    assert os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] == "7"


def test_a_home_that_cannot_be_written_means_no_cache(before_jax, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    runtime.enable_compilation_cache()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ and (tmp_path / "file").read_text() == ""


def test_a_program_that_has_imported_jax_keeps_its_settings(before_jax, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "jax", jax)
    monkeypatch.setenv("HOME", str(tmp_path))
    runtime.enable_compilation_cache()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ and not list(tmp_path.iterdir())
