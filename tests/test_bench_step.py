"""`bench step`: what the compiler says of the step, the largest batch, its rows, and what is refused."""

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
    monkeypatch.setattr(step.timing, "matrix_rate", lambda dtype: 1e9)


# -- what the compiler says


def taps(size, kernel, stride, padding):
    """Pairs of an output row and a kernel row that meet the image."""
    rows = (size + 2 * padding - kernel) // stride + 1
    return sum(0 <= out * stride + tap - padding < size for out in range(rows) for tap in range(kernel))


def test_model_flops_are_those_of_the_convolutions():
    """dcgan64's layers by hand. D: three passes forward; kernels' gradients for two, images' for three, but for the
    first layer one. G: forward, kernels' gradients, and images' but for its first layer."""
    layers = [(64, 3, 64), (32, 64, 128), (16, 128, 256), (8, 256, 512)]  # rows, channels in and out, of 4/2/1
    d = [2 * taps(rows, 4, 2, 1) ** 2 * i * o for rows, i, o in layers] + [2 * 16 * 512]
    g = [2 * 16 * 100 * 512] + d[3:0:-1] + d[:1]
    by_hand = sum(d) * (3 + 2 + 3) - 2 * d[0] + sum(g) * 3 - g[0]
    config = default_config()
    config.network, config.batch_size, config.mesh.data = "dcgan64", 64, 1
    assert 1 < program.model_flops(config) / config.batch_size / by_hand < 1.05


def test_memory_needed_counts_donated_arguments_once():
    shape = jax.ShapeDtypeStruct((256, 1024), "float32")
    one = jax.jit(lambda x: x + 1, donate_argnums=0).lower(shape).compile()
    two = jax.jit(lambda x: x + 1).lower(shape).compile()
    assert memory.needed(one) == 2**20 and memory.needed(two) == 2 * 2**20


@pytest.mark.parametrize(
    ("need", "limit", "multiple", "largest"),
    [
        (lambda b: 100 + 7 * b, 10_000, 1, 1414),
        (lambda b: 100 + 7 * b, 10_000, 8, 1408),
        (lambda b: 100 + 7 * b, 120, 1, 2),
        (lambda b: 100 + 7 * b, 106, 1, 0),
        (lambda b: 100 + 7 * b + (5_000 if b > 500 else 0), 10_000, 1, 700),  # another algorithm for large batches
        (lambda b: 1000, 10_000, 1, 64),  # no line leads anywhere
    ],
)
def test_largest_batch(need, limit, multiple, largest):
    asked = []
    found = memory.largest_batch(lambda b: asked.append(b) or need(b), limit, multiple)
    assert found == largest and len(asked) <= 2 + memory.TRIES


# -- the command


def test_rows_and_table(tiny_file, quick_rate, capsys):
    arguments = ["bench", "step", "--config", tiny_file, "--batch=4,8", "--dtype=float32,bfloat16", "--rounds=3"]
    assert cli.main(arguments) == 0
    *rows, blank, header, a, b, c, d = capsys.readouterr().out.splitlines()
    rows = [json.loads(row) for row in rows]
    assert [(row["batch"], row["dtype"]) for row in rows] == [
        (4, "float32"), (4, "bfloat16"), (8, "float32"), (8, "bfloat16")
    ]  # fmt: skip
    assert [line.split()[:3] for line in (a, b, c, d)] == [
        ["tiny", str(row["batch"]), row["dtype"]] for row in rows
    ] and not blank
    for row in rows:
        assert row["images_per_s"] == pytest.approx(row["batch"] / row["ms_per_step"] * 1e3)
        assert row["s_per_kimg"] == pytest.approx(1e3 / row["images_per_s"])
        assert row["matrix_share"] == pytest.approx(row["flops_per_image"] * row["images_per_s"] / 1e9)
        low, high = row["ms_per_step_quartiles"]
        assert low <= row["ms_per_step"] <= high
        assert row["memory_bytes"] > 0 and row["compile_s"] > 0 and row["device"]


def test_fields_of_the_configuration_count(tiny_file, quick_rate, capsys):
    assert cli.main(["bench", "step", "--config", tiny_file, "--config.batch_size=2", "--rounds=3"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])["batch"] == 2


def test_without_a_configuration_all_networks():
    cases = list(step._cases(None, [], ["float32", "bfloat16"]))
    assert [(case.config.network, case.config.batch_size) for case in cases[::2]] == list(step.BATCHES.items())
    assert {case.config.dtype for case in cases[1::2]} == {"bfloat16"}


def test_it_is_the_function_that_train_calls(config, caplog):
    """What was compiled for its figures is what the first call of the step runs."""
    made = program.make(changed(config, data__pipeline="resident"))
    state = made.start()
    with jax.log_compiles():
        made.compile()
        assert "Finished XLA compilation" in caplog.text
        caplog.clear()
        made.step(state)
    assert not caplog.text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--dtype=flot32"], "--dtype flot32: did you mean float32?"),
        (["--dtype=float32,int8"], "--dtype int8: "),
        (["--batch=0"], "--batch 0: give a number above 0, several with commas between, or max"),
        (["--batch=8,-1"], "--batch -1: give a number above 0"),
        (["--batch=many"], "--batch many: give a number above 0"),
        (["--rounds=1"], "--rounds=1"),
        (["--peer=torhc"], "--peer torhc: did you mean torch?"),
        (["--config=dcgan82"], "--config dcgan82: no such file; did you mean dcgan28.py?"),
        (["--config=configs/cgan23.py"], "--config configs/cgan23.py: no such file; did you mean cgan32.py?"),
    ],
)
def test_words_that_are_wrong(arguments, says, capsys, monkeypatch):
    monkeypatch.chdir(Path(cli.__file__).parents[2])
    assert cli.main(["bench", "step", *arguments]) == 2
    out, err = capsys.readouterr()
    assert says in err and err.count("\n") == 1 and not out


def test_a_peer_without_the_loss_is_refused():
    config = make_config("", "dcgan28", loss__r1=1.0)
    with pytest.raises(UserError, match="--peer torch: it has binary cross-entropy alone, not config.loss.r1 = 1.0"):
        step.run(config, peer="torch")


def test_a_peer_without_augmentation_is_refused():
    config = make_config("", "dcgan28", augment__mode="fixed")
    with pytest.raises(UserError, match="--peer torch: it shows D what is, not config.augment.mode = 'fixed'"):
        step.run(config, peer="torch")


def test_a_peer_that_is_not_installed(monkeypatch, capsys):
    monkeypatch.setattr(peer.importlib.util, "find_spec", lambda name: None)
    assert cli.main(["bench", "step", "--peer=torch"]) == 2
    assert capsys.readouterr().err == (
        "idrid-jax: --peer torch: PyTorch is not installed: "
        "pip install 'idrid_jax[peer]' or bash launch/install.sh peer\n"
    )


def test_a_batch_that_does_not_fit(tiny_file, quick_rate, monkeypatch, capsys):
    """The largest that does is told, and is what `max` takes."""
    compiled, bytes_needed = {}, program.bytes_needed  # once for every batch, for time's sake

    def need(batch):
        if batch not in compiled:
            compiled[batch] = bytes_needed(step._with_batch(load(tiny_file), batch))
        return compiled[batch]

    monkeypatch.setattr(program, "bytes_needed", lambda config: need(config.batch_size))
    limit = need(40) + (need(41) - need(40)) // 2
    monkeypatch.setattr(memory, "available", lambda devices: limit)
    assert cli.main(["bench", "step", "--config", tiny_file, "--batch=5000", "--rounds=3"]) == 2
    out, err = capsys.readouterr()
    assert "--batch 5000: tiny in float32 needs" in err and not out
    largest = int(err.split("the largest batch that fits is ")[1].split(",")[0])
    assert need(largest) <= limit < need(largest + 1)
    assert cli.main(["bench", "step", "--config", tiny_file, "--batch=max", "--rounds=3"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])["batch"] == largest


def test_no_batch_fits_or_nobody_knows(tiny_file, quick_rate, monkeypatch, capsys):
    monkeypatch.setattr(memory, "available", lambda devices: 1000)
    assert cli.main(["bench", "step", "--config", tiny_file, "--batch=max"]) == 2
    assert "not even 1 images of tiny fit 0 MiB" in capsys.readouterr().err
    monkeypatch.setattr(memory, "available", lambda devices: None)
    assert cli.main(["bench", "step", "--config", tiny_file, "--batch=max"]) == 2
    assert "does not tell its memory: give a number" in capsys.readouterr().err


def load(path):
    from idrid_jax.cli.parsing import load_config

    return load_config(path)
