"""DINOv2's vision transformers with patches of 14 pixels in JAX: the class token after the last norm.

Oquab et al., "DINOv2: learning robust visual features without supervision", TMLR 2024; Dosovitskiy et al., "An image is
worth 16x16 words", ICLR 2021, section 3.1. Stein et al., "Exposing flaws of generative model evaluation metrics",
NeurIPS 2023, recommend ViT-L/14 over Inception, and find that no distance agrees well with human judgement.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from PIL import Image

from idrid_jax.evaluation.features import resize

SIZE = 224
PATCH = 14
GRID = SIZE // PATCH  # patches per side
HEAD_CHANNELS = 64  # of each attention head
EPSILON = 1e-6  # of LayerNorm
VARIANTS = {(384, 12): "S", (768, 12): "B", (1024, 24): "L"}  # (channels, blocks) as published
# Root mean square of ViT-S/14's features of IDRiD's training photographs. KID's cubic kernel is made for features whose
# mean product is about 1 or less; without the scale, KID x1000 of these is in the thousands
KID_SCALE = 2.2
POSITION_OFFSET = 0.1  # the original adds it to the side when it interpolates positions
BLOCK = (
    "norm1.weight",
    "norm1.bias",
    "attn.qkv.weight",
    "attn.qkv.bias",
    "attn.proj.weight",
    "attn.proj.bias",
    "ls1.gamma",
    "norm2.weight",
    "norm2.bias",
    "mlp.fc1.weight",
    "mlp.fc1.bias",
    "mlp.fc2.weight",
    "mlp.fc2.bias",
    "ls2.gamma",
)
HUGGING_FACE = {  # parts of its parameter names -> the original's; those that start with "." match anywhere
    "embeddings.cls_token": "cls_token",
    "embeddings.mask_token": "mask_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.": "patch_embed.proj.",
    "layernorm.": "norm.",
    "encoder.layer.": "blocks.",
    ".attention.output.dense.": ".attn.proj.",
    ".layer_scale1.lambda1": ".ls1.gamma",
    ".layer_scale2.lambda1": ".ls2.gamma",
}
QKV = [f".attention.attention.{part}." for part in ("query", "key", "value")]


def original_names(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rename the parameters of a Hugging Face file to the original code's names; leave those of other files as is."""
    renamed = {}
    for name, value in state.items():
        if any(part in name for part in QKV):
            continue
        for old, new in HUGGING_FACE.items():
            if name.startswith(old) or (old.startswith(".") and old in name):
                name = name.replace(old, new)
        renamed[name] = value
    for name in (name for name in state if QKV[0] in name):
        parts = [state.get(name.replace(QKV[0], part)) for part in QKV]
        if all(part is not None and part.shape == parts[0].shape for part in parts):  # else it is reported as missing
            new = name.replace("encoder.layer.", "blocks.").replace(QKV[0], ".attn.qkv.")
            renamed[new] = np.concatenate(parts)
    return renamed


def dimensions(state: dict[str, np.ndarray]) -> tuple[int, int]:
    """Return (channels, blocks) of a file's parameters, which have the original names."""
    blocks = [name.split(".")[1] for name in state if name.startswith("blocks.")]
    return state["cls_token"].size, 1 + max((int(number) for number in blocks if number.isdigit()), default=-1)


def parameter_shapes(channels: int, blocks: int, positions: int) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every parameter; `positions` includes that of the class token."""
    d = channels
    shapes = {"cls_token": (1, 1, d), "pos_embed": (1, positions, d), "norm.weight": (d,), "norm.bias": (d,)}
    shapes |= {"patch_embed.proj.weight": (d, 3, PATCH, PATCH), "patch_embed.proj.bias": (d,)}
    wide = {"attn.qkv.weight": (3 * d, d), "attn.qkv.bias": (3 * d,), "attn.proj.weight": (d, d)}
    wide |= {"mlp.fc1.weight": (4 * d, d), "mlp.fc1.bias": (4 * d,), "mlp.fc2.weight": (d, 4 * d)}
    return shapes | {f"blocks.{i}.{name}": wide.get(name, (d,)) for i in range(blocks) for name in BLOCK}


def convert(state: dict[str, np.ndarray]) -> dict:
    """Convert a file's parameters, which have the original names, to the float32 arrays that `features` needs."""
    state = {name: np.asarray(value, np.float32) for name, value in state.items()}
    blocks = dimensions(state)[1]
    return {
        "class": state["cls_token"][0, 0],
        "positions": interpolate_positions(state["pos_embed"][0]),
        "patch": (_matrix(state["patch_embed.proj.weight"].transpose(0, 2, 3, 1)), state["patch_embed.proj.bias"]),
        "norm": (state["norm.weight"], state["norm.bias"]),
        "blocks": {name: np.stack([_matrix(state[f"blocks.{i}.{name}"]) for i in range(blocks)]) for name in BLOCK},
    }


def _matrix(weight):
    """[out, ...] -> [in, out], as XLA multiplies faster on a CPU; vectors stay as they are."""
    return weight if weight.ndim == 1 else np.ascontiguousarray(weight.reshape(len(weight), -1).T)


def interpolate_positions(table: np.ndarray) -> np.ndarray:
    """float32 [1 + M * M, D], the class token's first -> [1 + 16 * 16, D], interpolated as in the original code.

    The original asks for (16 + 0.1) / M times the side, a guard against rounding that also moves the sampled points;
    features of later code without it differ slightly.
    """
    side = round((len(table) - 1) ** 0.5)
    if side == GRID:
        return table
    weights = resize.torch_bicubic_weights(side, GRID, side / (GRID + POSITION_OFFSET))
    grid = np.float64(table[1:]).reshape(side, side, -1)
    grid = np.einsum("oi,pj,ijd->opd", weights, weights, grid, optimize=True)
    return np.concatenate([table[:1], grid.reshape(GRID * GRID, -1).astype(np.float32)])


def features(params: dict, images: np.ndarray) -> jax.Array:
    """Class token after the last norm of uint8 images [N, H, W, C], C 1 or 3: float32 [N, D]; resized by Pillow."""
    return _features(params, resize.pillow(images, SIZE, Image.Resampling.BICUBIC))


@jax.jit
def _features(params, images):
    x = resize.imagenet_normalize(images)
    n = len(x)
    patches = x.reshape(n, GRID, PATCH, GRID, PATCH, 3).transpose(0, 1, 3, 2, 4, 5).reshape(n, GRID * GRID, -1)
    x = _linear(patches, *params["patch"])
    first = jnp.broadcast_to(params["class"], (n, 1, x.shape[-1]))
    x = jnp.concatenate([first, x], axis=1) + params["positions"]
    x, _ = lax.scan(lambda x, block: (_block(x, block), None), x, params["blocks"])
    return _norm(x[:, 0], *params["norm"])


def _block(x, p):
    n, tokens, d = x.shape
    y = _linear(_norm(x, p["norm1.weight"], p["norm1.bias"]), p["attn.qkv.weight"], p["attn.qkv.bias"])
    query, key, value = y.reshape(n, tokens, 3, -1, HEAD_CHANNELS).transpose(2, 0, 3, 1, 4)  # [n, heads, tokens, 64]
    scores = _product(query / HEAD_CHANNELS**0.5, key.swapaxes(-1, -2))
    y = _product(jax.nn.softmax(scores), value).swapaxes(1, 2).reshape(n, tokens, d)
    x = x + p["ls1.gamma"] * _linear(y, p["attn.proj.weight"], p["attn.proj.bias"])
    y = _linear(_norm(x, p["norm2.weight"], p["norm2.bias"]), p["mlp.fc1.weight"], p["mlp.fc1.bias"])
    y = jax.nn.gelu(y, approximate=False)
    return x + p["ls2.gamma"] * _linear(y, p["mlp.fc2.weight"], p["mlp.fc2.bias"])


def _norm(x, scale, shift):
    x = x - x.mean(axis=-1, keepdims=True)
    return x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + EPSILON) * scale + shift


def _linear(x, weight, bias):
    return _product(x.reshape(-1, x.shape[-1]), weight).reshape(*x.shape[:-1], -1) + bias


def _product(a, b):
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
