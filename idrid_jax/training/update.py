"""One update of the discriminator, then one of the generator; pure."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from idrid_jax.images import mirror_where, to_float, to_uint8
from idrid_jax.models.functional import Functional, recompute_batch_stats
from idrid_jax.training import accumulate, ema, losses, objectives
from idrid_jax.training.accumulate import Batch
from idrid_jax.training.augment import Augmentation
from idrid_jax.training.objectives import Weights
from idrid_jax.training.state import NetworkState, TrainState, generator_params

Metrics = dict[str, jax.Array]
REAL, FAKE, FAKE_FOR_G, BETWEEN, REAL_FOR_G = range(5)  # D's looks in an update: each has its own dropout, augmentation


@dataclasses.dataclass(frozen=True)
class Update:
    """The alternating update: D first, then G against the updated D (Goodfellow et al. 2014, algorithm 1 with k = 1).

    The generator runs forward once: D's update takes its images as they are, and G's pulls its gradient back through
    the same pass. Real and fake images pass D apart (two BatchNorm batches), as in the PyTorch tutorial that the thesis
    follows; R1 and R2 come from one pull-back of both passes, which D's losses share. Where G's loss asks for real
    images ("relativistic", feature matching) they pass the updated D once more, before the fake ones.

    Attributes:
      generator, discriminator, g_tx, d_tx: networks and optimizers.
      latent: size of z.
      loss: a name in `losses.LOSSES`.
      weights: of what is added to it.
      smoothing: one-sided label smoothing of the real images' target; of "bce" alone.
      flip: flips each real image left to right with probability 1/2.
      augment: of all that D is shown, by a draw of its own for each look; None: none.
      ema_decay: per step; None without a moving average.
      ema_ramp: the average is young at step 0; not so where it came from another run.
      hears: (grades, step) -> what the networks are told of them at this update.
      penalty_scale: step -> factor of the penalties' weights at this update.
      over_devices: how latents and images are split. Nothing ties the latents to the real images, so each device would
        otherwise draw and judge all the fakes; None on one device.
      accumulate: micro-batches that each gradient is the mean of (see `accumulate`); G then runs forward for each
        network's gradient, as no more than one micro-batch is kept.
    """

    generator: Functional
    discriminator: Functional
    g_tx: optax.GradientTransformation
    d_tx: optax.GradientTransformation
    latent: int
    loss: str = "bce"
    weights: Weights = Weights()
    smoothing: float = 0.0
    flip: bool = False
    augment: Augmentation | None = None
    ema_decay: float | None = None
    ema_ramp: bool = True
    hears: Callable[[jax.Array, jax.Array], jax.Array] = lambda grades, step: grades
    penalty_scale: Callable[[jax.Array], jax.Array | float] = lambda step: 1.0
    over_devices: tuple[jax.sharding.Sharding, jax.sharding.Sharding] | None = None
    accumulate: int = 1

    def __call__(
        self, state: TrainState, images: jax.Array, grades: jax.Array, key: jax.Array
    ) -> tuple[TrainState, Metrics]:
        """images uint8 [B, R, R, C], grades int32 [B], a key of (seed, step) -> the next state, float32 [] metrics."""
        batch, weights = self._batch(state, images, grades, key), self.weights
        over = functools.partial(accumulate.over, batch, self.accumulate)
        loss = losses.LOSSES[self.loss]
        of_logits = loss.discriminator
        if self.smoothing:
            of_logits = functools.partial(of_logits, smoothing=self.smoothing)

        def drawn(part):
            """G's images, their pull-back to its parameters, its statistics."""

            def draw(params):
                fake, stats = self.generator.train(params, state.g.stats, part.z, part.grades)
                return self._split(fake, 1), stats

            return jax.vjp(draw, state.g.params, has_aux=True)

        # both objectives use the one pass; of several micro-batches none is kept
        once = drawn(batch) if self.accumulate == 1 else None
        forward = lambda part: once or drawn(part)

        def score(params, stats, x, part, look):
            key = part.keys[look]
            x = self._shown(x, key, state)
            return self.discriminator.train(params, stats, x, part.grades, rngs=nnx.Rngs(dropout=key))

        # -- The discriminator
        scale = self.penalty_scale(state.step)

        def d_gradient(part, due):
            real, fake = self._real(part), forward(part)[0]

            def objective(params):
                def pair(real, fake):
                    on_real, stats = score(params, state.d.stats, real, part, REAL)
                    on_fake, stats = score(params, stats, fake, part, FAKE)
                    return (on_real, on_fake), stats

                alone = lambda x: score(params, state.d.stats, x, part, BETWEEN)[0]
                both, share = (real, fake), self._split(part.share, 0)
                return objectives.discriminator(
                    of_logits, weights, pair, alone, both, share, state.lecam, state.step, due=due, scale=scale
                )

            (_, told), gradient = jax.value_and_grad(objective, has_aux=True)(state.d.params)
            d_loss, added, logits, stats, lecam = told
            return (gradient, d_loss, added, stats, lecam), logits

        descent = lambda due: over(lambda part: d_gradient(part, due))
        if weights.penalties and weights.penalty_every > 1:
            due = state.step % weights.penalty_every == 0
            means, (on_real, on_fake) = jax.lax.cond(due, lambda: descent(True), lambda: descent(False))
        else:
            means, (on_real, on_fake) = descent(True)
        d_grads, d_loss, added, d_stats, lecam = means
        d = _descend(self.d_tx, state.d, d_grads, d_stats, state.restarts)

        # -- The generator
        def judged(stats, x, part, look):
            """What D makes of images, features where they are to be matched, and its statistics."""
            if weights.feature_matching:
                key = part.keys[look]
                x = self._shown(x, key, state)
                return self.discriminator.train_features(d.params, stats, x, part.grades, rngs=nnx.Rngs(dropout=key))
            logits, stats = score(d.params, stats, x, part, look)
            return (logits, None), stats

        def g_gradient(part):
            fake, pull_back, g_stats = forward(part)
            of_real, d_stats = (None, None), d.stats
            if loss.pairs or weights.feature_matching:
                of_real, d_stats = judged(d_stats, self._real(part), part, REAL_FOR_G)

            def objective(fake):
                of_fake, stats = judged(d_stats, fake, part, FAKE_FOR_G)
                total, told = objectives.generator(loss, weights, of_fake, of_real)
                return total, (*told, of_fake[0], stats)

            (_, told), fake_grad = jax.value_and_grad(objective, has_aux=True)(fake)
            g_loss, added, on_fake, d_stats = told
            (gradient,) = pull_back(fake_grad)
            return (gradient, g_loss, added, d_stats, g_stats), on_fake

        (g_grads, g_loss, added_to_g, d_stats, g_stats), on_fake_after = over(g_gradient)
        d = dataclasses.replace(d, stats=d_stats)
        g = _descend(self.g_tx, state.g, g_grads, g_stats, state.restarts)

        average = state.ema
        if self.ema_decay is not None:
            average = ema.update(average, g.params, self.ema_decay, state.step if self.ema_ramp else None)
        metrics = {
            "loss_d": d_loss,  # adversarial alone: what is added to it stands by itself, before its weight
            "loss_g": g_loss,
            "d_real": _probability(on_real),  # D(x)
            "d_fake_before": _probability(on_fake),  # D(G(z)) before D's update, and
            "d_fake_after": _probability(on_fake_after),  # after it, as G sees it
            "d_accuracy": _accuracy(on_real, on_fake, loss.border),
            "grad_norm_d": optax.global_norm(d_grads),
            "grad_norm_g": optax.global_norm(g_grads),
        }
        augmentation = state.augment
        if augmentation:
            sure = on_real - on_fake if loss.pairs else on_real
            augmentation = self.augment.adapt(augmentation, sure, state.step)
            metrics |= {f"augment_{name}": value for name, value in augmentation.items()}
        state = TrainState(state.step + 1, g, d, average, state.best, lecam, augmentation, state.restarts)
        return state, metrics | added | added_to_g

    def _batch(self, state, images, grades, key) -> Batch:
        """The batch with all that is random in its update, and what the networks hear of its grades."""
        z_key, flip_key, *looks = jax.random.split(key, 5)
        share_key, *more_looks = jax.random.split(jax.random.fold_in(key, 5), 3)  # 0 to 4 would be those above
        flips = jax.random.bernoulli(flip_key, 0.5, (len(images), 1, 1, 1)) if self.flip else None
        return Batch(
            images,
            self.hears(grades, state.step),
            self._split(jax.random.normal(z_key, (len(images), self.latent)), 0),
            self._split(jax.random.uniform(share_key, grades.shape[:1]), 0),
            flips,
            jnp.stack([*looks, *more_looks]),
        )

    def _real(self, part):
        real = to_float(self._split(part.images, 1))
        return real if part.mirrored is None else jnp.where(part.mirrored, real[:, :, ::-1], real)

    def _shown(self, images, key, state):
        return images if self.augment is None else self._split(self.augment(images, key, state.augment), 1)

    def _split(self, x, which):
        return x if self.over_devices is None else jax.lax.with_sharding_constraint(x, self.over_devices[which])


def draw(
    generator: Functional, state: TrainState, z: jax.Array, grades: jax.Array, at_once: int, left: float = 0.0
) -> jax.Array:
    """What samples of this state look like: z [N, latent] and grades [N, ...] -> uint8 [N, R, R, C]. Pure.

    at_once: images in memory with their features; the largest divisor of N up to it is taken.
    left: the share that is mirrored, always the same ones: of a generator of right-sided images alone.
    """
    images = _drawn(generator, state, z, grades, at_once)
    return mirror_where(images, jax.random.bernoulli(jax.random.key(0x51DE), left, (len(z),))) if left else images


def _drawn(generator, state, z, grades, at_once):
    params, stats = generator_params(state), state.g.stats
    if state.ema and stats:  # the running ones are of other weights
        stats = recompute_batch_stats(generator, params, stats, z.shape[1], grades, at_once)
    of = lambda part: to_uint8(generator.eval(params, stats, *part))
    some = next(n for n in range(min(at_once, len(z)), 0, -1) if len(z) % n == 0)
    if some == len(z):
        return of((z, grades))
    parts = jax.lax.map(of, (z.reshape(-1, some, z.shape[1]), grades.reshape(-1, some, *grades.shape[1:])))
    return parts.reshape(-1, *parts.shape[2:])


def _accuracy(on_real, on_fake, border):
    """The share of images on their side of the border; where there is none, of pairs whose real image is ahead."""
    return ((on_real > 0).mean() + (on_fake <= 0).mean()) / 2 if border else (on_real > on_fake).mean()


def _probability(logits):
    return jax.nn.sigmoid(logits.astype(jnp.float32)).mean()


def _descend(tx, network: NetworkState, grads, stats, restarts) -> NetworkState:
    """The optimizer's update, half as large for each of the `restarts`, int32 []; exactly itself at 0."""
    updates, opt = tx.update(grads, network.opt, network.params)
    share = jnp.ldexp(jnp.float32(1), -restarts)
    updates = jax.tree.map(lambda update: share * update, updates)
    return NetworkState(optax.apply_updates(network.params, updates), stats, opt)
