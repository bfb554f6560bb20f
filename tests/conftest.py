"""Eight simulated devices, a small prepared phantom, and tiny networks, so that a whole run takes a second."""

import atexit
import importlib.metadata
import json
import os
import shutil
import tempfile

# Many tests compile the same; pytest-xdist's workers and commands under test inherit these
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="idrid_jax_tests_")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
# Without its newer emitters XLA compiles for CPUs in two thirds of the time. Later versions refuse the flag
if "XLA_FLAGS" not in os.environ and importlib.metadata.version("jaxlib").startswith("0.10."):
    os.environ["XLA_FLAGS"] = "--xla_cpu_use_fusion_emitters=false"

import jax  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)  # before anything touches a device

import jax.numpy as jnp  # noqa: E402
import ml_collections  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
import pytest  # noqa: E402
from flax import nnx  # noqa: E402

from idrid_jax import config as config_lib  # noqa: E402
from idrid_jax.data import phantom  # noqa: E402
from idrid_jax.data.prepare import prepare  # noqa: E402
from idrid_jax.models import NETWORKS, Network, convolution  # noqa: E402
from idrid_jax.models.layers import GradeEmbedding  # noqa: E402
from idrid_jax.training import logging, loop, optimizers  # noqa: E402
from idrid_jax.training.checkpoint import Checkpoints  # noqa: E402

SIZE, CHANNELS, LATENT = 8, 3, 6
TRAIN = (8, 5, 8, 6, 5)
ALL_ON = {  # options that change what a step does
    "ema_kimg": 0.05,
    "checkpoint__best": "score",
    "data__sampling": "balanced",
    "data__flip": True,
    "loss__label_smoothing": 0.1,
    "optimizer__clip_norm": 1.0,
}

LOSSES_ON = {  # the others, which do not go with those above
    "loss__name": "relativistic",
    "loss__r1": 0.5,
    "loss__r2": 0.2,
    "loss__gradient_penalty": 0.3,
    "loss__penalty_every": 3,
    "loss__lecam": 0.1,
    "loss__feature_matching": 0.5,
    "data__flip": True,
}

DATA_ON = {
    "data__sampling": "tempered",
    "data__temperature": 3.0,
    "data__canonicalize_laterality": True,
    "data__merge_classes": "0 1+2 3+4",
}

ADAPTIVE = {  # without what takes long to compile
    "augment__mode": "adaptive",
    "augment__rotation": 0.0,
    "augment__zoom": 0.0,
    "augment__kimg": 0.1,
    "augment__target": 0.1,
}


# Files that take longest, in that order: they come first, so that no worker begins one when the other is done
LONGEST = (
    *("sharding", "multihost", "resume", "loop", "bench_peer", "evaluate", "launchers", "startup", "sweep", "cli"),
    *("snapshot_metrics", "usefulness", "networks_torch", "bench_step", "step_torch", "convolution", "data_options"),
)


def pytest_collection_modifyitems(items):
    rank = {f"test_{name}.py": i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


@pytest.fixture(scope="session")
def phantom_release(tmp_path_factory):
    """A phantom release, 32 photographs to train on."""
    return phantom.make_release(
        tmp_path_factory.mktemp("phantom") / "release",
        seed=1,
        train=TRAIN,
        test=(2, 2, 2, 2, 2),
        segmentation=(0, 0),
        height=64,
    )


@pytest.fixture(scope="session")
def phantom_data(phantom_release, tmp_path_factory):
    """A data_dir with that release prepared."""
    data_dir = tmp_path_factory.mktemp("data")
    prepare(phantom_release, data_dir, tfds=False)
    return data_dir


class TinyGenerator(nnx.Module):
    """z [B, 6] and grades int32 [B] -> images [B, 8, 8, 3]: what a real one has, an embedding and BatchNorm."""

    def __init__(self, *, dtype=jnp.float32, rngs: nnx.Rngs):
        self.embed = GradeEmbedding(4, dtype=dtype, rngs=rngs)
        self.hidden = nnx.Linear(LATENT + 4, 8, dtype=dtype, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.9, dtype=dtype, rngs=rngs)
        self.image = nnx.Linear(8, SIZE * SIZE * CHANNELS, dtype=dtype, rngs=rngs)

    def __call__(self, z, grades):
        x = nnx.relu(self.norm(self.hidden(jnp.concatenate([z, self.embed(grades)], axis=-1))))
        return jnp.tanh(self.image(x)).reshape(-1, SIZE, SIZE, CHANNELS)


class TinyDiscriminator(nnx.Module):
    """Images [B, 8, 8, 3] and grades int32 [B] -> logits [B]: an embedding, BatchNorm and dropout."""

    def __init__(self, *, dtype=jnp.float32, rngs: nnx.Rngs):
        self.embed = GradeEmbedding(4, dtype=dtype, rngs=rngs)
        self.hidden = nnx.Linear(SIZE * SIZE * CHANNELS + 4, 8, dtype=dtype, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.9, dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(0.3)
        self.logit = nnx.Linear(8, 1, dtype=dtype, rngs=rngs)

    def features(self, images, grades, *, rngs=None):
        x = jnp.concatenate([images.reshape(images.shape[0], -1), self.embed(grades).astype(images.dtype)], axis=-1)
        return self.dropout(nnx.leaky_relu(self.norm(self.hidden(x)), 0.2), rngs=rngs)

    def logits(self, features, grades=None):
        return self.logit(features)[:, 0]

    def __call__(self, images, grades, *, rngs=None):
        return self.logits(self.features(images, grades, rngs=rngs))


TINY = {
    "tiny": Network(TinyGenerator, TinyDiscriminator, SIZE, CHANNELS, conditional=True, latent_size=LATENT),
    "tiny_unconditional": Network(
        lambda **kwargs: _Unconditional(TinyGenerator, **kwargs),
        lambda **kwargs: _Unconditional(TinyDiscriminator, **kwargs),
        SIZE,
        CHANNELS,
        conditional=False,
        latent_size=LATENT,
    ),
}


class _Unconditional(nnx.Module):
    def __init__(self, make, **kwargs):
        self.network = make(**kwargs)

    def __call__(self, x, grades, **kwargs):
        return self.network(x, jnp.zeros_like(grades), **kwargs)


@pytest.fixture
def tiny(monkeypatch):
    """The tiny networks under the names "tiny" and "tiny_unconditional"."""
    for name, network in TINY.items():
        monkeypatch.setitem(NETWORKS, name, network)


@pytest.fixture
def config(tiny, phantom_data):
    """A run of 12 steps of 8 images on one device, with a snapshot every 4 steps."""
    return make_config(phantom_data)


@pytest.fixture
def gradient_descent(monkeypatch):
    """SGD in place of Adam, whose first steps turn rounding, which differs between programs, into whole steps."""
    monkeypatch.setattr(optimizers, "make_optimizer", lambda *_: optax.sgd(1e-2, momentum=0.5))


plot_curves = logging.plot_curves


@pytest.fixture(autouse=True)
def quick_curves(monkeypatch):
    """Runs in this process write an empty curves.png: plotting takes longer than a tiny run. `plot_curves` plots."""
    monkeypatch.setattr(logging, "plot_curves", lambda workdir: (workdir / "curves.png").touch())


@pytest.fixture(autouse=True, scope="module")
def quick_compilation(request):
    """Skip most XLA optimizations and use XLA's native convolutions: tests compile much and compute little.

    A module that tests what this changes sets `optimized_compilation = True` or `platform_lowering = True`.
    """
    quick = not getattr(request.module, "optimized_compilation", False)
    native = "platform" if getattr(request.module, "platform_lowering", False) else "native"
    jax.config.update("jax_disable_most_optimizations", quick)
    with convolution.lowering(native):
        yield
    jax.config.update("jax_disable_most_optimizations", False)


def make_config(data_dir, network="tiny", **changes) -> ml_collections.ConfigDict:
    """`changes`: field -> value; dots are written as two underscores."""
    config = config_lib.default_config()
    config.network, config.batch_size = network, 8
    config.total_kimg, config.snapshot_kimg, config.log_kimg = 0.096, 0.032, 0.016
    config.data.data_dir, config.mesh.data = str(data_dir), 1
    config.data.validation_folds, config.checkpoint.best = 0, ""  # all 32 photographs, and the newest checkpoint
    config.data.min_images_per_class = 0  # made-up releases are small
    return changed(config, **changes)


def changed(config, **changes) -> ml_collections.ConfigDict:
    """A copy with other values."""
    config = config.copy_and_resolve_references()
    for name, value in changes.items():
        config.update_from_flattened_dict({name.replace("__", "."): value})
    return config


def train(config, workdir, metrics=None):
    """Train as the command does, without its output."""
    return loop.train(config_lib.validated(config), workdir, snapshot_metrics=metrics)


def assert_same(a, b):
    """Equal pytrees, bit for bit."""
    leaves_a, tree_a = jax.tree_util.tree_flatten_with_path(a)
    leaves_b, tree_b = jax.tree_util.tree_flatten_with_path(b)
    assert tree_a == tree_b
    for (path, x), (_, y) in zip(leaves_a, leaves_b, strict=True):
        x, y = np.asarray(x), np.asarray(y)
        assert x.dtype == y.dtype and x.shape == y.shape, jax.tree_util.keystr(path)
        assert x.tobytes() == y.tobytes(), f"{jax.tree_util.keystr(path)}: {np.abs(x - y).max()} apart"


def score(fakes, *_):
    """A snapshot metric that falls and rises again."""
    return {"score": float(abs(fakes.astype(float).mean() - 128) + fakes[0, 0, 0, 0] % 7)}


score.names = ("score",)


def stats(workdir):
    return [json.loads(line) for line in (workdir / "stats.jsonl").read_text().splitlines()]


def steps(workdir):
    with Checkpoints(workdir) as checkpoints:
        return checkpoints.steps()
