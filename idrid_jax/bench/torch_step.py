"""The update of `training.step` in PyTorch, as one would write it for speed: what `bench step --peer torch` times.

channels_last, fused Adam, autocast for bfloat16, no wait for the device, and D's weights without gradients while G
learns. Unlike ours it keeps no metrics but the two losses.
"""

import contextlib
import copy
import dataclasses
import gc
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from idrid_jax.bench.torch_networks import NETWORKS


@dataclasses.dataclass(frozen=True)
class Options:
    """What the update needs of a configuration, in its words (see `idrid_jax.config`)."""

    network: str
    batch_size: int
    dtype: str
    g_learning_rate: float
    d_learning_rate: float
    b1: float
    b2: float
    clip_norm: float
    label_smoothing: float
    flip: bool
    ema_decay: float | None  # per step
    latent: int


class Update:
    """Both networks and their optimizers; a call is one update of each, as `training.step.Update`.

    compiled: the three passes go through torch.compile; on CUDA with CUDA graphs.
    """

    def __init__(self, options: Options, device: torch.device, *, compiled: bool):
        pair = NETWORKS[options.network]
        make = lambda module: module().to(device, memory_format=torch.channels_last)
        self.options, self.device = options, device
        self.generator, self.discriminator = make(pair.generator), make(pair.discriminator)
        self.judge = _without_gradients(self.discriminator)
        adam = lambda module, rate: torch.optim.Adam(
            module.parameters(), lr=rate, betas=(options.b1, options.b2), fused=True
        )
        self.g_adam = adam(self.generator, options.g_learning_rate)
        self.d_adam = adam(self.discriminator, options.d_learning_rate)
        self.ema = [p.detach().clone() for p in self.generator.parameters()] if options.ema_decay is not None else []
        self.steps = 0
        compile_ = _compiler(device) if compiled else lambda function: function
        self.draw, self.d_loss, self.g_loss = map(compile_, (self._draw, self._d_loss, self._g_loss))

    def __call__(self, images: Tensor, grades: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """images uint8 [B, C, R, R], grades int64 [B], z float32 [B, latent] -> the losses of D and G."""
        torch.compiler.cudagraph_mark_step_begin()  # what the last step's graphs gave may be overwritten
        fake = self.draw(z, grades)
        d_loss = self.d_loss(images, fake.detach(), grades)
        self._descend(self.d_adam, self.discriminator, d_loss)
        g_loss = self.g_loss(fake, grades)
        self._descend(self.g_adam, self.generator, g_loss)
        if self.ema:
            factor = min(self.options.ema_decay, (1 + self.steps) / (10 + self.steps))
            torch._foreach_lerp_(self.ema, [p.detach() for p in self.generator.parameters()], 1 - factor)
        self.steps += 1
        return d_loss.detach(), g_loss.detach()

    def _draw(self, z, grades):
        with self._autocast():
            return self.generator(z, grades)

    def _d_loss(self, images, fake, grades):
        real = images.float() / 127.5 - 1
        if self.options.flip:
            mirrored = torch.rand(len(real), 1, 1, 1, device=real.device) < 0.5
            real = torch.where(mirrored, real.flip(3), real)
        with self._autocast():
            on_real, on_fake = self.discriminator(real, grades), self.discriminator(fake, grades)
        on_real, on_fake, smoothing = on_real.float(), on_fake.float(), self.options.label_smoothing
        loss = softplus(-on_real)
        if smoothing:
            loss = (1 - smoothing) * loss + smoothing * softplus(on_real)
        return loss.mean() + softplus(on_fake).mean()

    def _g_loss(self, fake, grades):
        with self._autocast():
            logits = self.judge(fake, grades)
        return softplus(-logits.float()).mean()

    def _descend(self, adam, module, loss):
        adam.zero_grad(set_to_none=True)
        loss.backward()
        if self.options.clip_norm:
            nn.utils.clip_grad_norm_(module.parameters(), self.options.clip_norm, foreach=True)
        adam.step()

    def _autocast(self) -> contextlib.AbstractContextManager:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.dtype == "bfloat16")


class Batches:
    """A random uint8 split on the device, and random batches of it, as our resident way in draws them."""

    def __init__(self, options: Options, photographs: int, device: torch.device):
        pair, self.options, self.device = NETWORKS[options.network], options, device
        images = torch.randint(
            0, 256, (photographs, pair.channels, pair.size, pair.size), dtype=torch.uint8, device=device
        )
        self.images = images.contiguous(memory_format=torch.channels_last)
        self.grades = torch.randint(0, 5, (photographs,), device=device)

    def __call__(self) -> tuple[Tensor, Tensor, Tensor]:
        batch = self.options.batch_size
        index = torch.randint(0, len(self.grades), (batch,), device=self.device)
        z = torch.randn(batch, self.options.latent, device=self.device)
        return self.images[index], self.grades[index], z


def prepare(threads: int, device: str) -> torch.device:
    """Sets PyTorch up for speed on "cpu" or "cuda". float32 is TF32 on CUDA, which is JAX's default there too.

    Raises RuntimeError where this PyTorch has no such device.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("JAX runs on a GPU, and this PyTorch has none: install one built for CUDA")
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    torch.set_flush_denormal(True)  # as XLA does on CPU
    return torch.device(device)


def seconds(update: Update, batches: Batches, steps: int) -> float:
    """What so many updates take, the device's work included."""
    _wait(update.device)
    start = time.perf_counter()
    for _ in range(steps):
        update(*batches())
    _wait(update.device)
    return time.perf_counter() - start


def release(device: torch.device) -> None:
    """Forgets what was compiled, and hands unused memory back to the device."""
    torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def _compiler(device: torch.device) -> Callable[[Callable], Callable]:
    mode = "reduce-overhead" if device.type == "cuda" else None  # CUDA graphs
    return lambda function: torch.compile(function, mode=mode, dynamic=False)


def _without_gradients(module: nn.Module) -> nn.Module:
    """The module again over the same arrays, with parameters that ask for no gradient.

    To switch requires_grad off and on around G's update would have torch.compile look at D anew at every step.
    """
    twin = copy.deepcopy(module)
    for name, layer in module.named_modules():
        for key, parameter in layer._parameters.items():
            if parameter is not None:
                twin.get_submodule(name)._parameters[key] = nn.Parameter(parameter.data, requires_grad=False)
        for key, buffer in layer._buffers.items():
            twin.get_submodule(name)._buffers[key] = buffer
    return twin
