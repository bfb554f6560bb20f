"""The update of `training.update` in PyTorch, written for speed; `bench step --peer torch` times it.

It uses channels_last, fused Adam, autocast for bfloat16, no synchronization, and no gradients of the discriminator's
weights in the generator's update. Unlike ours it computes no metrics but the two losses.
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
    """The fields of a configuration that the update uses (see `idrid_jax.config`)."""

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
    """Both networks and their optimizers; a call is one update of each.

    compiled: use torch.compile for the three passes, on CUDA with CUDA graphs.
    """

    def __init__(self, options: Options, device: torch.device, *, compiled: bool):
        self.options, self.device = options, device
        pair = NETWORKS[options.network]
        self.generator = pair.generator().to(device, memory_format=torch.channels_last)
        self.discriminator = pair.discriminator().to(device, memory_format=torch.channels_last)
        self.frozen_discriminator = _without_gradients(self.discriminator)
        self.g_adam = self._adam(self.generator, options.g_learning_rate)
        self.d_adam = self._adam(self.discriminator, options.d_learning_rate)
        self.ema = [p.detach().clone() for p in self.generator.parameters()] if options.ema_decay is not None else []
        self.steps = 0
        compile_ = _compiler(device) if compiled else lambda function: function
        self.generate, self.d_loss, self.g_loss = map(compile_, (self._generate, self._d_loss, self._g_loss))

    def __call__(self, images: Tensor, grades: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Update both networks; return the losses of D and G.

        images: uint8 [B, C, R, R]; grades: int64 [B]; z: float32 [B, latent].
        """
        torch.compiler.cudagraph_mark_step_begin()  # outputs of the last step's graphs may be overwritten
        fake = self.generate(z, grades)
        d_loss = self.d_loss(images, fake.detach(), grades)
        self._descend(self.d_adam, self.discriminator, d_loss)
        g_loss = self.g_loss(fake, grades)
        self._descend(self.g_adam, self.generator, g_loss)
        if self.ema:
            factor = min(self.options.ema_decay, (1 + self.steps) / (10 + self.steps))
            torch._foreach_lerp_(self.ema, [p.detach() for p in self.generator.parameters()], 1 - factor)
        self.steps += 1
        return d_loss.detach(), g_loss.detach()

    def _adam(self, module: nn.Module, learning_rate: float) -> torch.optim.Adam:
        betas = self.options.b1, self.options.b2
        return torch.optim.Adam(module.parameters(), lr=learning_rate, betas=betas, fused=True)

    def _generate(self, z, grades):
        with self._autocast():
            return self.generator(z, grades)

    def _d_loss(self, images, fake, grades):
        real = images.float() / 127.5 - 1
        if self.options.flip:
            mirrored = torch.rand(len(real), 1, 1, 1, device=real.device) < 0.5
            real = torch.where(mirrored, real.flip(3), real)
        with self._autocast():
            real_logits, fake_logits = self.discriminator(real, grades), self.discriminator(fake, grades)
        real_logits, fake_logits, smoothing = real_logits.float(), fake_logits.float(), self.options.label_smoothing
        loss = softplus(-real_logits)
        if smoothing:
            loss = (1 - smoothing) * loss + smoothing * softplus(real_logits)
        return loss.mean() + softplus(fake_logits).mean()

    def _g_loss(self, fake, grades):
        with self._autocast():
            logits = self.frozen_discriminator(fake, grades)
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
    """Random batches of a random uint8 split on the device, like our resident input pipeline."""

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
    """Set PyTorch up for speed on "cpu" or "cuda". float32 is TF32 on CUDA, as in JAX.

    Raises RuntimeError if this PyTorch does not support the device.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("JAX runs on a GPU, but this PyTorch has no CUDA: install a build with CUDA")
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    torch.set_flush_denormal(True)  # as XLA does on CPU
    return torch.device(device)


def seconds(update: Update, batches: Batches, steps: int) -> float:
    """Return the seconds of `steps` updates, including the device's work."""
    _wait(update.device)
    start = time.perf_counter()
    for _ in range(steps):
        update(*batches())
    _wait(update.device)
    return time.perf_counter() - start


def release(device: torch.device) -> None:
    """Discard compiled code and return unused memory to the device."""
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
    """Return a copy of the module that shares its arrays and whose parameters require no gradient.

    Switching requires_grad around the generator's update would make torch.compile check the module at every step.
    """
    twin = copy.deepcopy(module)
    for name, layer in module.named_modules():
        for key, parameter in layer._parameters.items():
            if parameter is not None:
                twin.get_submodule(name)._parameters[key] = nn.Parameter(parameter.data, requires_grad=False)
        for key, buffer in layer._buffers.items():
            twin.get_submodule(name)._buffers[key] = buffer
    return twin
