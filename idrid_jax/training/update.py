"""One training update: `update_networks` updates the discriminator, then the generator; pure.

The generator runs forward once. The discriminator's update uses its images, and the generator's gradient is pulled back
through the same pass. Real and fake images pass D separately (two BatchNorm batches), as in the PyTorch tutorial that
the thesis follows. Where G's loss compares with real images ("relativistic", feature matching) they pass the updated D
once more, before the fake ones.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import nnx

from idrid_jax.images import to_float
from idrid_jax.models import NETWORKS, build_networks
from idrid_jax.models.functional import Functional, Tree
from idrid_jax.training import losses, optimizers
from idrid_jax.training.augment import Augmentation, augmentation_from_config
from idrid_jax.training.losses import AdversarialLoss, Weights
from idrid_jax.training.state import NetworkState, TrainState

Metrics = dict[str, jax.Array]  # float32 [] each
REAL, FAKE, FAKE_FOR_G, INTERPOLATED, REAL_FOR_G = range(5)  # passes of D in an update; each has a key of its own


@dataclasses.dataclass(frozen=True)
class Update:
    """What an update is made of: networks, optimizers and options.

    Attributes:
      generator, discriminator, g_optimizer, d_optimizer: networks and optimizers.
      latent: size of z.
      loss: the adversarial losses of both networks.
      weights: of the terms added to them.
      flip: mirror each real image left to right with probability 1/2.
      augment: of all images in discriminator passes, with random numbers of its own in each pass; None: off.
      ema_decay: per update; None: no moving average.
      ema_ramp: the average starts at step 0 (not so if it came from another run).
      condition: (grades, step) -> what the networks are conditioned on.
      penalty_scale: step -> factor of the gradient penalties' weights.
      batch_sharding, image_sharding: of latents and of images. Nothing else ties the latents to the real images, so
        each device would generate and discriminate the whole batch. None on one device.
    """

    generator: Functional
    discriminator: Functional
    g_optimizer: optax.GradientTransformation
    d_optimizer: optax.GradientTransformation
    latent: int
    loss: AdversarialLoss = losses.LOSSES["bce"]
    weights: Weights = Weights()
    flip: bool = False
    augment: Augmentation | None = None
    ema_decay: float | None = None
    ema_ramp: bool = True
    condition: Callable[[jax.Array, jax.Array], jax.Array] = lambda grades, step: grades
    penalty_scale: Callable[[jax.Array], jax.Array | float] = lambda step: 1.0
    batch_sharding: jax.sharding.Sharding | None = None
    image_sharding: jax.sharding.Sharding | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """The inputs of an update, with everything in it that is random.

    Attributes:
      real: real images, float32 [B, R, R, C] in [-1, 1].
      grades: what the networks are conditioned on, int32 [B] or float32 [B, 5].
      z: latents, float32 [B, latent]; fake image i is paired with real image i.
      real_share: share of the real image in the interpolated one, float32 [B].
      keys: PRNG keys of D's passes, [5].
    """

    real: jax.Array
    grades: jax.Array
    z: jax.Array
    real_share: jax.Array
    keys: jax.Array


def make_update(config: ml_collections.ConfigDict, networks: tuple[Functional, Functional] | None = None) -> Update:
    """Return the update of a resolved `config`; `networks` are its generator and discriminator, if they exist."""
    generator, discriminator = networks or build_networks(config)
    loss = losses.LOSSES[config.loss.name]
    if smoothing := config.loss.label_smoothing:
        smoothed = functools.partial(loss.discriminator, smoothing=smoothing)
        loss = dataclasses.replace(loss, discriminator=smoothed)
    return Update(
        generator,
        discriminator,
        optimizers.make_optimizer(config, config.optimizer.g_learning_rate),
        optimizers.make_optimizer(config, config.optimizer.d_learning_rate),
        latent=NETWORKS[config.network].latent_size,
        loss=loss,
        weights=Weights(**{field.name: config.loss[field.name] for field in dataclasses.fields(Weights)}),
        flip=config.data.flip,
        augment=augmentation_from_config(config),
        ema_decay=optimizers.ema_decay(config.batch_size, config.ema_kimg) if config.ema_kimg else None,
        ema_ramp=not config.init_from,
        condition=optimizers.grade_conditioning(config),
        penalty_scale=optimizers.penalty_schedule(config),
    )


def update_networks(
    update: Update, state: TrainState, images: jax.Array, grades: jax.Array, key: jax.Array
) -> tuple[TrainState, Metrics]:
    """Update the discriminator, then the generator against it: Goodfellow et al. 2014, algorithm 1 with k = 1.

    Args:
      update: networks, optimizers and options.
      state: the state before the update.
      images: uint8 [B, R, R, C].
      grades: int32 [B].
      key: a function of (seed, step).

    Returns the next state, and metrics of the update.
    """
    batch = make_batch(update, state, images, grades, key)

    def generate(params):
        fake, stats = update.generator.train(params, state.g.stats, batch.z, batch.grades)
        return _constrain(fake, update.image_sharding), stats

    fake, pull_back, g_stats = jax.vjp(generate, state.g.params, has_aux=True)
    d, lecam, d_report = discriminator_update(update, state, batch, fake)
    d, g, g_report = generator_update(update, state, d, batch, fake, pull_back, g_stats)

    ema, augment = state.ema, state.augment
    if update.ema_decay is not None:
        ema = optimizers.update_ema(ema, g.params, update.ema_decay, state.step if update.ema_ramp else None)
    if augment:
        real, fake = d_report["logits"]
        augment = update.augment.adapt(augment, real - fake if update.loss.paired else real, state.step)
    state = TrainState(state.step + 1, g, d, ema, lecam, augment)
    return state, metrics(update.loss, d_report, g_report, augment)


def make_batch(update: Update, state: TrainState, images: jax.Array, grades: jax.Array, key: jax.Array) -> Batch:
    """Return the real images as floats, perhaps mirrored, with latents, conditioning and keys; arguments as in
    `update_networks`."""
    z_key, flip_key, *pass_keys = jax.random.split(key, 5)
    share_key, *more_keys = jax.random.split(jax.random.fold_in(key, 5), 3)  # 0 to 4 are the keys above
    real = to_float(_constrain(images, update.image_sharding))
    if update.flip:
        mirrored = jax.random.bernoulli(flip_key, 0.5, (len(images), 1, 1, 1))
        real = jnp.where(mirrored, real[:, :, ::-1], real)
    return Batch(
        real,
        update.condition(grades, state.step),
        _constrain(jax.random.normal(z_key, (len(images), update.latent)), update.batch_sharding),
        _constrain(jax.random.uniform(share_key, grades.shape[:1]), update.batch_sharding),
        jnp.stack([*pass_keys, *more_keys]),
    )


def discriminator_update(
    update: Update, state: TrainState, batch: Batch, fake: jax.Array
) -> tuple[NetworkState, Tree, dict]:
    """Return the updated discriminator, LeCam's averages, and a report: loss, terms, logits (real, fake), grad_norm."""

    def objective(params):
        real_logits, stats = _discriminate(update, params, state.d.stats, batch.real, batch, REAL, state)
        fake_logits, stats = _discriminate(update, params, stats, fake, batch, FAKE, state)
        logits, averages, terms = (real_logits, fake_logits), state.lecam, {}
        if update.weights.lecam:
            averages = losses.update_lecam_averages(averages, *logits, state.step)
            terms["lecam"] = losses.lecam_penalty(*logits, averages)
        loss = update.loss.discriminator(*logits)
        return loss + update.weights.weighted_sum(terms), (loss, terms, logits, stats, averages)

    (_, aux), grads = jax.value_and_grad(objective, has_aux=True)(state.d.params)
    loss, terms, logits, stats, averages = aux
    if update.weights.penalties:
        penalty_grads, penalties = penalty_gradients(update, state, batch, fake)
        grads, terms = jax.tree.map(jnp.add, grads, penalty_grads), terms | penalties
    report = {"loss": loss, "terms": terms, "logits": logits, "grad_norm": optax.tree.norm(grads)}
    return _apply_gradients(update.d_optimizer, state.d, grads, stats), averages, report


def penalty_gradients(update: Update, state: TrainState, batch: Batch, fake: jax.Array) -> tuple[Tree, Metrics]:
    """Return the gradients of D's weighted gradient penalties in its parameters, and the penalties by name.

    With `weights.penalty_every` = k they are taken at every k-th update, k times as strong, and are 0 at the others.
    With BatchNorm, where a logit depends on the whole batch, an image's gradient is that of the batch's summed logits.
    """
    weights = update.weights

    def image_gradient(params, images, which):
        logits = lambda x: _discriminate(update, params, state.d.stats, x, batch, which, state)[0].sum()
        return jax.grad(logits)(images)

    def objective(params):
        penalties = {}
        if weights.r1:
            penalties["r1"] = losses.zero_centered_penalty(image_gradient(params, batch.real, REAL))
        if weights.r2:
            penalties["r2"] = losses.zero_centered_penalty(image_gradient(params, fake, FAKE))
        if weights.gradient_penalty:
            between = losses.interpolate(batch.real, fake, batch.real_share)
            gradient = image_gradient(params, between, INTERPOLATED)
            penalties["gradient_penalty"] = losses.one_centered_penalty(gradient)
        penalties = {name: weights.penalty_every * penalty for name, penalty in penalties.items()}
        return update.penalty_scale(state.step) * weights.weighted_sum(penalties), penalties

    due = functools.partial(jax.grad(objective, has_aux=True), state.d.params)
    if weights.penalty_every == 1:
        return due()
    not_due = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(due))
    return jax.lax.cond(state.step % weights.penalty_every == 0, due, lambda: not_due)


def generator_update(
    update: Update,
    state: TrainState,
    d: NetworkState,
    batch: Batch,
    fake: jax.Array,
    pull_back: Callable[[jax.Array], tuple[Tree]],
    g_stats: Tree,
) -> tuple[NetworkState, NetworkState, dict]:
    """Update the generator against the updated discriminator `d`.

    fake, pull_back, g_stats: the generator's images, the pull-back of their gradient to its parameters, and its
      BatchNorm statistics after that pass.

    Returns `d` with its BatchNorm statistics after these passes, the updated generator, and a report: loss, terms,
    fake_logits, grad_norm.
    """
    matching = bool(update.weights.feature_matching)
    discriminate = functools.partial(_discriminate, update, d.params, batch=batch, state=state, with_features=matching)
    stats, real_output = d.stats, None
    if update.loss.paired or matching:
        real_output, stats = discriminate(stats, batch.real, which=REAL_FOR_G)

    def objective(fake):
        output, stats_after = discriminate(stats, fake, which=FAKE_FOR_G)
        logits, terms = output, {}
        real_logits = real_output
        if matching:
            (logits, features), (real_logits, real_features) = output, real_output
            terms["feature_matching"] = losses.feature_matching(real_features, features)
        loss = update.loss.generator(logits, real_logits) if update.loss.paired else update.loss.generator(logits)
        return loss + update.weights.weighted_sum(terms), (loss, terms, logits, stats_after)

    (_, aux), fake_gradient = jax.value_and_grad(objective, has_aux=True)(fake)
    loss, terms, fake_logits, stats = aux
    (grads,) = pull_back(fake_gradient)
    report = {"loss": loss, "terms": terms, "fake_logits": fake_logits, "grad_norm": optax.tree.norm(grads)}
    g = _apply_gradients(update.g_optimizer, state.g, grads, g_stats)
    return dataclasses.replace(d, stats=stats), g, report


def metrics(loss: AdversarialLoss, d_report: dict, g_report: dict, augment: Tree) -> Metrics:
    """Return the numbers of an update by name, float32 []; losses are adversarial alone, terms are before their weight.

    D(x) and D(G(z)) assume that a logit of 0 means 50 %: under `relativistic` and `wasserstein` they are no
    probabilities.
    """
    real, fake = d_report["logits"]
    if loss.zero_is_boundary:
        accuracy = ((real > 0).mean() + (fake <= 0).mean()) / 2
    else:
        accuracy = (real > fake).mean()  # share of pairs whose real image has the higher logit
    return {
        "loss_d": d_report["loss"],
        "loss_g": g_report["loss"],
        "d_real": _mean_probability(real),  # D(x)
        "d_fake_before": _mean_probability(fake),  # D(G(z)) before D's update
        "d_fake_after": _mean_probability(g_report["fake_logits"]),  # D(G(z)) after it
        "d_accuracy": accuracy,
        "grad_norm_d": d_report["grad_norm"],
        "grad_norm_g": g_report["grad_norm"],
        **{f"augment_{name}": value for name, value in augment.items()},
        **d_report["terms"],
        **g_report["terms"],
    }


def _discriminate(update, params, stats, images, batch, which, state, with_features=False):
    """Pass images through the augmentation and D; return (logits, or (logits, features)), BatchNorm statistics."""
    key = batch.keys[which]
    if update.augment is not None:
        images = _constrain(update.augment(images, key, state.augment), update.image_sharding)
    network = update.discriminator.train_features if with_features else update.discriminator.train
    return network(params, stats, images, batch.grades, rngs=nnx.Rngs(dropout=key))


def _apply_gradients(optimizer, network: NetworkState, grads, stats) -> NetworkState:
    updates, opt = optimizer.update(grads, network.opt, network.params)
    return NetworkState(optax.apply_updates(network.params, updates), stats, opt)


def _mean_probability(logits):
    return jax.nn.sigmoid(logits.astype(jnp.float32)).mean()


def _constrain(x, sharding):
    return x if sharding is None else jax.lax.with_sharding_constraint(x, sharding)
