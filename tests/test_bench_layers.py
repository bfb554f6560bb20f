"""`bench layers`: its list of layers is that of the networks; rows, table and refused arguments."""

import json

import jax
import pytest

from idrid_jax import cli
from idrid_jax.bench import layers
from idrid_jax.models import NETWORKS
from idrid_jax.models.layers import Conv, ConvTranspose


@pytest.mark.parametrize("network", layers.LAYERS)
def test_every_convolution_of_a_network_is_listed(network):
    """With the kernel size, stride and padding of its module."""
    from flax import nnx

    found = set()
    for make in (NETWORKS[network].generator, NETWORKS[network].discriminator):
        module = nnx.eval_shape(lambda make=make: make(rngs=nnx.Rngs(0)))
        for _, layer in nnx.iter_modules(module):
            if isinstance(layer, (Conv, ConvTranspose)):
                k, _, inputs, outputs = layer.kernel.shape
                if (k, outputs) != (4, 1):  # the discriminators' last: a dot product
                    found.add((inputs, outputs, k, layer.stride, tuple(layer.padding)))
    listed = {tuple(geometry[1:]) for geometry in layers.LAYERS[network].values()}
    assert found == {(i, o, k, s, p) for i, o, k, s, p in listed}


def test_a_row_for_each_operation_and_a_table(capsys, monkeypatch):
    monkeypatch.setattr(layers, "LAYERS", {"dcgan28": {"small": (8, 5, 6, 4, 2, (1, 1))}})
    monkeypatch.setattr(layers, "BATCH_SIZES", {"dcgan28": 2})
    monkeypatch.setattr(layers.timing, "matrix_flops_per_s", lambda dtype: 1e9)
    assert cli.main(["bench", "layers", "--network=dcgan28", "--rounds=3"]) == 0
    *lines, _, header, row = capsys.readouterr().out.splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["operation"] for row in rows] == list(layers.OPERATIONS)
    for one in rows:
        assert one["ms"] > 0 and one["speedup"] == pytest.approx(one["native_ms"] / one["ms"], rel=0.05)
        assert one["images_per_s"] == pytest.approx(2000 / one["ms"], rel=0.01)
    assert header.split()[:2] == ["layer", "GFLOP"] and row.startswith("dcgan28 small")
    assert jax.default_backend() == rows[0]["platform"]


@pytest.mark.parametrize(
    "arguments, line",
    [(["--network=dcgan29"], "--network dcgan29: did you mean dcgan28"), (["--dtype=float16"], "--dtype float16: ")],
)
def test_bad_input_is_one_line(arguments, line, capsys):
    assert cli.main(["bench", "layers", *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert line in error and "\n" not in error
