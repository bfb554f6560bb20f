"""DINOv2's vision transformers with patches of 14 pixels in JAX: the class token after the last norm.

Oquab et al., "DINOv2: learning robust visual features without supervision", TMLR 2024; Dosovitskiy et al., "An image is
worth 16x16 words", ICLR 2021, section 3.1. Stein et al., "Exposing flaws of generative model evaluation metrics",
NeurIPS 2023, recommend ViT-L/14 over Inception, and find no distance that goes well with people's judgement.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from idrid_jax.evaluation.features import resize

SIZE = 224
PATCH = 14
SIDE = SIZE // PATCH
HEAD = 64  # channels of each attention head
EPSILON = 1e-6  # of LayerNorm
SIZES = {(384, 12): "S", (768, 12): "B", (1024, 24): "L"}  # channels and blocks as published
OFFSET = 0.1  # added to the side when positions are interpolated, as the original does
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
HUGGING_FACE = {  # its names -> the original's, by the beginning or within a block
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
    """A file's parameters under the names of the original code; those of Hugging Face's are renamed and joined."""
    out = {}
    for name, value in state.items():
        if any(part in name for part in QKV):
            continue
        for old, new in HUGGING_FACE.items():
            if name.startswith(old) or (old.startswith(".") and old in name):
                name = name.replace(old, new)
        out[name] = value
    for name in (name for name in state if QKV[0] in name):
        parts = [state.get(name.replace(QKV[0], part)) for part in QKV]
        if all(part is not None and part.shape == parts[0].shape for part in parts):  # or it shows as missing
            new = name.replace("encoder.layer.", "blocks.").replace(QKV[0], ".attn.qkv.")
            out[new] = np.concatenate(parts)
    return out


def extent(state: dict[str, np.ndarray]) -> tuple[int, int]:
    """(channels, blocks) that a file's parameters, under the original names, say they have."""
    blocks = [name.split(".")[1] for name in state if name.startswith("blocks.")]
    return state["cls_token"].size, 1 + max((int(number) for number in blocks if number.isdigit()), default=-1)


def shapes(channels: int, blocks: int, positions: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of all parameters of a network of so many channels and blocks; positions: with the class token."""
    d = channels
    out = {"cls_token": (1, 1, d), "pos_embed": (1, positions, d), "norm.weight": (d,), "norm.bias": (d,)}
    out |= {"patch_embed.proj.weight": (d, 3, PATCH, PATCH), "patch_embed.proj.bias": (d,)}
    wide = {"attn.qkv.weight": (3 * d, d), "attn.qkv.bias": (3 * d,), "attn.proj.weight": (d, d)}
    wide |= {"mlp.fc1.weight": (4 * d, d), "mlp.fc1.bias": (4 * d,), "mlp.fc2.weight": (d, 4 * d)}
    return out | {f"blocks.{i}.{name}": wide.get(name, (d,)) for i in range(blocks) for name in BLOCK}


def parameters(state: dict[str, np.ndarray]) -> dict:
    """What `features` takes, from a file's parameters under the original names; float32."""
    state = {name: np.asarray(value, np.float32) for name, value in state.items()}
    blocks = extent(state)[1]
    return {
        "class": state["cls_token"][0, 0],
        "positions": positions(state["pos_embed"][0]),
        "patch": (state["patch_embed.proj.weight"].transpose(2, 3, 1, 0), state["patch_embed.proj.bias"]),
        "norm": (state["norm.weight"], state["norm.bias"]),
        "blocks": {name: np.stack([state[f"blocks.{i}.{name}"] for i in range(blocks)]) for name in BLOCK},
    }


def positions(table: np.ndarray) -> np.ndarray:
    """float32 [1 + M * M, D], the class token's first -> [1 + 16 * 16, D] by the original's bicubic interpolation.

    The original asks for (16 + 0.1) / M times the side, a guard against rounding that also moves the samples; later
    code that leaves it out gives features that are slightly other.
    """
    side = round((len(table) - 1) ** 0.5)
    if side == SIDE:
        return table
    weights = resize.torch_bicubic_weights(side, SIDE, side / (SIDE + OFFSET))
    grid = np.float64(table[1:]).reshape(side, side, -1)
    grid = np.einsum("oi,pj,ijd->opd", weights, weights, grid, optimize=True)
    return np.concatenate([table[:1], grid.reshape(SIDE * SIDE, -1).astype(np.float32)])


def prepared(images: jax.Array) -> jax.Array:
    """uint8 [N, H, W, C], C 1 (repeated) or 3 -> float32 [N, 224, 224, 3], by Pillow's bicubic resize."""
    return resize.imagenet_normal(resize.pil(images.astype(jnp.float32), SIZE, "bicubic"))


@jax.jit
def features(params: dict, images: jax.Array) -> jax.Array:
    """uint8 [N, H, W, C], C 1 or 3 -> float32 [N, D], the class token after the last norm."""
    x = prepared(images)
    n = len(x)
    kernel, bias = params["patch"]
    x = x.reshape(n, SIDE, PATCH, SIDE, PATCH, 3)
    x = _product("nrhcwi,hwid->nrcd", x, kernel).reshape(n, SIDE * SIDE, -1) + bias
    first = jnp.broadcast_to(params["class"], (n, 1, x.shape[-1]))
    x = jnp.concatenate([first, x], axis=1) + params["positions"]
    x, _ = lax.scan(lambda x, block: (_block(x, block), None), x, params["blocks"])
    return _norm(x[:, 0], *params["norm"])


def _block(x, p):
    n, tokens, d = x.shape
    heads = lambda y: y.reshape(n, tokens, -1, HEAD)
    y = _linear(_norm(x, p["norm1.weight"], p["norm1.bias"]), p["attn.qkv.weight"], p["attn.qkv.bias"])
    query, key, value = map(heads, jnp.split(y, 3, axis=-1))
    scores = _product("nqhc,nkhc->nhqk", query, key) / HEAD**0.5
    y = _product("nhqk,nkhc->nqhc", jax.nn.softmax(scores), value).reshape(n, tokens, d)
    x = x + p["ls1.gamma"] * _linear(y, p["attn.proj.weight"], p["attn.proj.bias"])
    y = _linear(_norm(x, p["norm2.weight"], p["norm2.bias"]), p["mlp.fc1.weight"], p["mlp.fc1.bias"])
    y = jax.nn.gelu(y, approximate=False)
    return x + p["ls2.gamma"] * _linear(y, p["mlp.fc2.weight"], p["mlp.fc2.bias"])


def _norm(x, scale, shift):
    x = x - x.mean(axis=-1, keepdims=True)
    return x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + EPSILON) * scale + shift


def _linear(x, weight, bias):
    return _product("...i,oi->...o", x, weight) + bias


def _product(spec, a, b):
    return jnp.einsum(spec, a, b, precision=lax.Precision.HIGHEST)
