"""`bench step`: the compiler's figures, rows and table, batches that do not fit, and refused arguments."""

import contextlib
import json
from pathlib import Path

import jax
import pytest
from conftest import changed, make_config

from idrid_jax import cli
from idrid_jax.bench import memory, peer, program, step
from idrid_jax.config import default_config
from idrid_jax.errors import UserError

CONFIG = """
from idrid_jax.config import default_config
from idrid_jax.errors import UserError

def get_config():
    config = default_config()
    config.network, config.batch_size, config.mesh.data = "tiny", 8, 1
    return config
"""


@pytest.fixture
def tiny_file(tiny, tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(CONFIG)
    return str(path)


@pytest.fixture
def quick_rate(monkeypatch):
    """A fixed rate of matrix products, short rounds, and compiled programs that tests share."""
    monkeypatch.setattr(step.timing, "matrix_flops_per_s", lambda dtype: 1e9)
    monkeypatch.setattr(step, "MIN_ROUND_S", 0.01)
    monkeypatch.setattr(program, "no_persistent_cache", contextlib.nullcontext)


# The compiler's figures


def taps(size, kernel, stride, padding):
    """Pairs of an output row and a kernel row that lie within the image."""
    rows = (size + 2 * padding - kernel) // stride + 1
    return sum(0 <= out * stride + tap - padding < size for out in range(rows) for tap in range(kernel))


def test_model_flops_are_those_of_the_convolutions():
    """dcgan64's layers by hand. D: three forward passes, two kernel gradients, three image gradients (one in the first
    layer). G: a forward pass, a kernel gradient, and an image gradient (none in the first layer)."""
    layers = [(64, 3, 64), (32, 64, 128), (16, 128, 256), (8, 256, 512)]  # rows, channels in and out, of 4/2/1
    d = [2 * taps(rows, 4, 2, 1) ** 2 * i * o for rows, i, o in layers] + [2 * 16 * 512]
    g = [2 * 16 * 100 * 512] + d[3:0:-1] + d[:1]
    by_hand = sum(d) * (3 + 2 + 3) - 2 * d[0] + sum(g) * 3 - g[0]
    config = default_config()
    config.network, config.batch_size, config.mesh.data = "dcgan64", 64, 1
    assert 1 < program.model_flops(config) / config.batch_size / by_hand < 1.05


def test_memory_counts_donated_arguments_once():
    shape = jax.ShapeDtypeStruct((256, 1024), "float32")
    one = jax.jit(lambda x: x + 1, donate_argnums=0).lower(shape).compile()
    two = jax.jit(lambda x: x + 1).lower(shape).compile()
    assert memory.program_bytes(one) == 2**20 and memory.program_bytes(two) == 2 * 2**20


# The command


def test_rows_and_table(tiny_file, quick_rate, capsys):
    arguments = ["bench", "step", "--config", tiny_file, "--batch=64", "--config.dtype=bfloat16", "--rounds=3"]
    assert cli.main(arguments) == 0
    *rows, blank, header, line = capsys.readouterr().out.splitlines()
    rows = [json.loads(row) for row in rows]
    assert [(row["batch_size"], row["dtype"]) for row in rows] == [(64, "bfloat16")]
    assert line.split()[:3] == ["tiny", "64", "bfloat16"] and not blank
    for row in rows:
        assert row["images_per_s"] == pytest.approx(row["batch_size"] / row["ms_per_step"] * 1e3)
        assert row["s_per_kimg"] == pytest.approx(1e3 / row["images_per_s"])
        assert row["matrix_rate_fraction"] == pytest.approx(row["flops_per_image"] * row["images_per_s"] / 1e9)
        low, high = row["ms_per_step_quartiles"]
        assert low <= row["ms_per_step"] <= high
        assert row["memory_bytes"] > 0 and row["compile_s"] > 0 and row["device"]


def test_without_a_configuration_all_networks():
    cases = list(step._cases(None, [], ["float32", "bfloat16"]))
    assert [(case.config.network, case.config.batch_size) for case in cases[::2]] == list(step.BATCH_SIZES.items())
    assert {case.config.dtype for case in cases[1::2]} == {"bfloat16"}


def test_every_batch_size_in_every_dtype(tiny):
    cases = step._cases(make_config("", "tiny"), ["2", "max"], ["float32", "bfloat16"])
    found = [(case.config.batch_size, case.config.dtype) for case in cases]
    assert found == [(2, "float32"), (2, "bfloat16"), (0, "float32"), (0, "bfloat16")]


def test_the_compiled_program_is_the_one_that_train_runs(config, caplog):
    """The first call of the step compiles nothing further."""
    made = program.make_program(changed(config, data__pipeline="resident"))
    state = made.initial_state()
    with jax.log_compiles():
        made.compile()
        assert "Finished XLA compilation" in caplog.text
        caplog.clear()
        made.step(state)
    assert not caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dtype=flot32"], "--dtype flot32: did you mean float32?"),
        (["--dtype=float32,int8"], "--dtype int8: "),
        (["--batch=0"], "--batch 0: "),
        (["--batch=8,-1"], "--batch -1: "),
        (["--batch=many"], "--batch many: "),
        (["--rounds=1"], "--rounds=1"),
        (["--peer=torhc"], "--peer torhc: did you mean torch?"),
        (["--config=dcgan82"], "--config dcgan82: no such file; did you mean dcgan28.py?"),
        (["--config=configs/cgan23.py"], "--config configs/cgan23.py: no such file; did you mean cgan32.py?"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(Path(cli.__file__).parents[2])
    assert cli.main(["bench", "step", *arguments]) == 2
    out, err = capsys.readouterr()
    assert message in err and err.count("\n") == 1 and not out


def test_a_peer_without_the_loss_is_refused():
    config = make_config("", "dcgan28", loss__r1=1.0)
    with pytest.raises(UserError, match="--peer torch: .*config.loss.r1 = 1.0"):
        step.run(config, peer="torch")


def test_a_peer_without_augmentation_is_refused():
    config = make_config("", "dcgan28", augment__mode="fixed")
    with pytest.raises(UserError, match="--peer torch: .*config.augment.mode"):
        step.run(config, peer="torch")


def test_a_peer_that_is_not_installed(monkeypatch, capsys):
    monkeypatch.setattr(peer.importlib.util, "find_spec", lambda name: None)
    assert cli.main(["bench", "step", "--peer=torch"]) == 2
    err = capsys.readouterr().err
    assert "--peer torch: " in err and err.count("\n") == 1


def test_a_batch_that_does_not_fit(tiny_file, quick_rate, monkeypatch, capsys):
    """The message names the largest batch that fits, near to the one that `max` finds."""
    need = program.memory_need(step._with_batch(load(tiny_file), 64))
    per_image = (need.bytes - need.fixed_bytes) / 64
    limit = int(need.fixed_bytes + 150 * per_image)
    monkeypatch.setattr(memory, "available_bytes", lambda num_devices: limit)
    assert cli.main(["bench", "step", "--config", tiny_file, "--batch=max", "--rounds=3"]) == 0
    row = json.loads(capsys.readouterr().out.splitlines()[0])
    assert 100 < row["batch_size"] < 200 and 0.8 * limit < row["memory_bytes"] <= limit
    linear = lambda config: memory.Need(True, int(need.fixed_bytes + config.batch_size * per_image), need.fixed_bytes)
    monkeypatch.setattr(program, "memory_need", linear)
    assert cli.main(["bench", "step", "--config", tiny_file, "--batch=2000", "--rounds=3"]) == 2
    out, err = capsys.readouterr()
    assert "--batch 2000: tiny in float32 needs" in err and not out
    assert 135 <= int(err.split("the largest batch known to fit is ")[1]) <= 150


def test_no_batch_fits_or_memory_is_unknown(tiny_file, quick_rate, monkeypatch, capsys):
    monkeypatch.setattr(memory, "available_bytes", lambda num_devices: 1000)
    assert cli.main(["bench", "step", "--config", tiny_file, "--batch=max"]) == 2
    assert "not even 1 images of tiny fit 0 MiB" in capsys.readouterr().err
    monkeypatch.setattr(memory, "available_bytes", lambda num_devices: None)
    assert cli.main(["bench", "step", "--config", tiny_file, "--batch=max"]) == 2
    assert "--batch max: this device does not report its memory" in capsys.readouterr().err


def load(path):
    from idrid_jax.cli.parsing import load_config

    return load_config(path)
