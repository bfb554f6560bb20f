"""The thesis's four networks in PyTorch, for timing and parity tests. Layers have the same names as ours.

Images are NCHW in channels_last memory, which oneDNN and cuDNN prefer. PyTorch pads both edges equally, but Keras's
SAME padding at stride 2 is (1, 2) for kernel 5 and (0, 1) for kernel 3. To avoid a padded copy of every image, the
Keras networks here (`dcgan28`, `cgan32`) work on images rotated by 180 degrees: the longer padding then comes first,
PyTorch's padding covers it, and no kernel position uses the excess. `copy_arrays` rotates the weights.

Discriminators return logits for BCEWithLogitsLoss; the thesis's have a sigmoid and BCELoss.
"""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu_, relu_

# Our name of an array -> PyTorch's name
ARRAYS = {
    "kernel": "weight",
    "embedding": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


def _keras_norm(layer: Callable, features: int) -> nn.Module:
    return layer(features, eps=1e-3, momentum=0.01)  # Keras's momentum is 1 - PyTorch's


class Generator28(nn.Module):
    """z [B, 100] -> images [B, 1, 28, 28] in [-1, 1], rotated by 180 degrees."""

    rotated = {"latent": 49, "norm0": 49}  # layer -> pixels in its features

    def __init__(self):
        super().__init__()
        self.latent = nn.Linear(100, 7 * 7 * 256, bias=False)
        self.norm0 = _keras_norm(nn.BatchNorm1d, 7 * 7 * 256)
        self.up1 = nn.ConvTranspose2d(256, 128, 5, 1, 2, bias=False)
        self.norm1 = _keras_norm(nn.BatchNorm2d, 128)
        self.up2 = nn.ConvTranspose2d(128, 64, 5, 2, 2, output_padding=1, bias=False)
        self.norm2 = _keras_norm(nn.BatchNorm2d, 64)
        self.image = nn.ConvTranspose2d(64, 1, 5, 2, 2, output_padding=1, bias=False)

    def forward(self, z: Tensor, grades: Tensor) -> Tensor:
        x = _to_pixels(leaky_relu_(self.norm0(self.latent(z)), 0.3), 7)
        x = leaky_relu_(self.norm1(self.up1(x)), 0.3)
        x = leaky_relu_(self.norm2(self.up2(x)), 0.3)
        return self.image(x).tanh()


class Discriminator28(nn.Module):
    """Images [B, 1, 28, 28], rotated, -> logits [B]."""

    rotated = {"logit": 49}

    def __init__(self):
        super().__init__()
        self.down1 = nn.Conv2d(1, 64, 5, 2, 2)
        self.down2 = nn.Conv2d(64, 128, 5, 2, 2)
        self.dropout = nn.Dropout(0.3)
        self.logit = nn.Linear(7 * 7 * 128, 1)

    def forward(self, images: Tensor, grades: Tensor) -> Tensor:
        x = self.dropout(leaky_relu_(self.down1(images), 0.3))
        x = self.dropout(leaky_relu_(self.down2(x), 0.3))
        return self.logit(_to_features(x))[:, 0]


class Generator32(nn.Module):
    """z [B, 100] and grades int64 [B] -> images [B, 3, 32, 32] in [-1, 1], rotated."""

    rotated = {"latent": 64, "grade": 64}

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 50)
        self.grade = nn.Linear(50, 8 * 8)
        self.latent = nn.Linear(100, 8 * 8 * 128)
        self.up1 = nn.ConvTranspose2d(129, 128, 4, 2, 1)
        self.up2 = nn.ConvTranspose2d(128, 128, 4, 2, 1)
        self.image = nn.Conv2d(128, 3, 8, 1, 4)

    def forward(self, z: Tensor, grades: Tensor) -> Tensor:
        grade = _to_pixels(self.grade(self.embed(grades)), 8)
        x = torch.cat([_to_pixels(leaky_relu_(self.latent(z), 0.2), 8), grade], dim=1)
        x = leaky_relu_(self.up1(x), 0.2)
        x = leaky_relu_(self.up2(x), 0.2)
        return self.image(x)[:, :, :32, :32].tanh()  # padding is (4, 3): drop the last row and column


class Discriminator32(nn.Module):
    """Images [B, 3, 32, 32], rotated, and grades int64 [B] -> logits [B]."""

    rotated = {"grade": 1024, "logit": 64}

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 50)
        self.grade = nn.Linear(50, 32 * 32)
        self.down1 = nn.Conv2d(4, 128, 3, 2, 1)
        self.down2 = nn.Conv2d(128, 128, 3, 2, 1)
        self.dropout = nn.Dropout(0.4)
        self.logit = nn.Linear(8 * 8 * 128, 1)

    def forward(self, images: Tensor, grades: Tensor) -> Tensor:
        grade = _to_pixels(self.grade(self.embed(grades)), 32)
        x = torch.cat([images, grade], dim=1)
        x = leaky_relu_(self.down1(x), 0.2)
        x = leaky_relu_(self.down2(x), 0.2)
        return self.logit(self.dropout(_to_features(x)))[:, 0]


class FromLatent(nn.ConvTranspose2d):
    """z [B, I] -> [B, O, k, k]. A matrix product, because torch.compile fails on the strides of a 1x1 input."""

    def forward(self, z: Tensor) -> Tensor:
        return _to_pixels(z @ self.weight.permute(0, 2, 3, 1).flatten(1), self.kernel_size[0])


class ToLogit(nn.Conv2d):
    """[B, I, k, k] -> [B, 1], also as a matrix product."""

    def forward(self, x: Tensor) -> Tensor:
        return _to_features(x) @ self.weight.permute(0, 2, 3, 1).flatten(1).T


OUTER = {64: (4, 2, 1), 128: (16, 4, 6)}  # kernel, stride, padding between 32 x 32 features and the image


class Generator(nn.Module):
    """z [B, 100] -> images [B, 3, size, size] in [-1, 1]: DCGAN of PyTorch's tutorial at 64, the thesis's at 128."""

    rotated = {}

    def __init__(self, size: int, width: int = 64):
        super().__init__()
        channels = [width * 8, width * 4, width * 2, width]
        up = [FromLatent(100, channels[0], 4, 1, 0, bias=False)]
        up += [nn.ConvTranspose2d(i, o, 4, 2, 1, bias=False) for i, o in zip(channels, channels[1:])]
        self.up = nn.ModuleList(up)
        self.norm = nn.ModuleList(nn.BatchNorm2d(c) for c in channels)
        self.image = nn.ConvTranspose2d(width, 3, *OUTER[size], bias=False)

    def forward(self, z: Tensor, grades: Tensor) -> Tensor:
        x = z
        for up, norm in zip(self.up, self.norm):
            x = relu_(norm(up(x)))
        return self.image(x).tanh()


class Discriminator(nn.Module):
    """Images [B, 3, size, size] -> logits [B]."""

    rotated = {}

    def __init__(self, size: int, width: int = 64):
        super().__init__()
        channels = [width, width * 2, width * 4, width * 8]
        self.image = nn.Conv2d(3, width, *OUTER[size], bias=False)
        self.down = nn.ModuleList(nn.Conv2d(i, o, 4, 2, 1, bias=False) for i, o in zip(channels, channels[1:]))
        self.norm = nn.ModuleList(nn.BatchNorm2d(c) for c in channels[1:])
        self.logit = ToLogit(channels[-1], 1, 4, 1, 0, bias=False)

    def forward(self, images: Tensor, grades: Tensor) -> Tensor:
        x = leaky_relu_(self.image(images), 0.2)
        for down, norm in zip(self.down, self.norm):
            x = leaky_relu_(norm(down(x)), 0.2)
        return self.logit(x)[:, 0]


@dataclasses.dataclass(frozen=True)
class Pair:
    """Generator and discriminator of a network for images [channels, size, size]."""

    generator: Callable[[], nn.Module]
    discriminator: Callable[[], nn.Module]
    size: int
    channels: int


NETWORKS = {
    "cgan32": Pair(Generator32, Discriminator32, 32, 3),
    "dcgan28": Pair(Generator28, Discriminator28, 28, 1),
    "dcgan64": Pair(lambda: Generator(64), lambda: Discriminator(64), 64, 3),
    "dcgan128": Pair(lambda: Generator(128), lambda: Discriminator(128), 128, 3),
}


def copy_arrays(arrays: Mapping[tuple[str, str], np.ndarray], module: nn.Module) -> None:
    """Copy our parameters and statistics, {("up.0", "kernel"): array}, into the module."""
    with torch.no_grad():
        for (layer, array), a in arrays.items():
            target = getattr(module.get_submodule(layer), ARRAYS[array])
            target.copy_(torch.from_numpy(np.array(to_torch(a, module.rotated, layer, array))))


def to_torch(a: np.ndarray, rotated: Mapping[str, int], layer: str, array: str) -> np.ndarray:
    """Return one of our arrays in PyTorch's order of axes, rotated if the module is (`Module.rotated`).

    Kernels [k, k, I, O] -> [O, I, k, k], those of transposed convolutions [k, k, O, I] -> [I, O, k, k], linear ones
    [I, O] -> [O, I].
    """
    if array == "kernel" and a.ndim == 4:
        return a.transpose(3, 2, 0, 1)[:, :, :: -1 if rotated else 1, :: -1 if rotated else 1]
    if layer in rotated:  # features are channels of pixels, row by row: rotation reverses the pixels
        axis = 0 if layer == "logit" else a.ndim - 1
        if (layer, array) != ("logit", "bias"):
            pixels = a.reshape(*a.shape[:axis], rotated[layer], -1, *a.shape[axis + 1 :])
            a = np.flip(pixels, axis).reshape(a.shape)
    return a.T if array == "kernel" else a


def _to_pixels(x: Tensor, size: int) -> Tensor:
    """Return [B, size * size * C], pixels row by row, as [B, C, size, size] in channels_last, without a copy."""
    return x.view(len(x), size, size, -1).permute(0, 3, 1, 2)


def _to_features(x: Tensor) -> Tensor:
    """Return the inverse of `_to_pixels`."""
    return x.permute(0, 2, 3, 1).flatten(1)
