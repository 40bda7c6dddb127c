"""Images made up for a teacher: a generator that trains against it, and the student beside it."""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from kdjax import models, step, terms
from kdjax.objective import combine
from kdjax.runs import recipes, teaching, training
from kdjax.runs.evaluation import Run
from kdjax.runs.experiment import Experiment
from kdjax.runs.log import TrainingLog
from kdjax.runs.settings import GeneratorSettings
from kdjax.runs.teaching import TeacherResult
from kdjax.sharding import replicate
from kdjax.types import Array, Batch, Metrics, Model, Objective, Outputs, PyTree, Variables

_RATES = {False: 1e-3, True: 0.02}
"""Of the generator, by whether it convolves: what it makes is to become as dark as images are."""


class Generator(nn.Module):
    """A perceptron from noise to images between 0 and 255, with BatchNorm.

    Modules: `hidden_0`, `hidden_1`, ..., each with `norm_0`, ..., then `pixels`, `pixels_norm`.
    """

    image_shape: tuple[int, ...]
    widths: tuple[int, ...] = (512, 1024)

    @nn.compact
    def __call__(self, noise: Array, *, train: bool) -> Array:
        """Return images [batch, height, width, channels] for noise [batch, size]."""
        x = noise
        for i, width in enumerate(self.widths):
            x = nn.Dense(width, name=f"hidden_{i}")(x)
            x = nn.leaky_relu(_norm(train, f"norm_{i}")(x), 0.2)
        x = nn.Dense(int(np.prod(self.image_shape)), name="pixels")(x)
        x = _norm(train, "pixels_norm")(x)
        return 255 * nn.sigmoid(x).reshape(-1, *self.image_shape)


class ConvGenerator(nn.Module):
    """Convolutions from noise to images between 0 and 255, at a quarter of their size, half, whole.

    Modules: `hidden`, `conv_0`, `conv_1`, each with its norm; then `pixels`, `pixels_norm`.
    """

    image_shape: tuple[int, ...]
    width: int = 32

    @nn.compact
    def __call__(self, noise: Array, *, train: bool) -> Array:
        """Return images [batch, height, width, channels] for noise [batch, size]."""
        height, width, channels = self.image_shape
        small = -(-height // 4), -(-width // 4), self.width
        x = nn.Dense(int(np.prod(small)), name="hidden")(noise).reshape(-1, *small)
        x = _norm(train, "hidden_norm")(x)
        for i, size in enumerate((self.width, self.width // 2)):
            x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
            x = nn.Conv(size, (3, 3), name=f"conv_{i}")(x)
            x = nn.leaky_relu(_norm(train, f"conv_{i}_norm")(x), 0.2)
        x = nn.Conv(channels, (3, 3), name="pixels")(x[:, :height, :width])
        return 255 * nn.sigmoid(_norm(train, "pixels_norm")(x))


class Weights(NamedTuple):
    """What the generator is asked for; see `generator_loss`."""

    sure: float = 1.0
    active: float = 0.1
    balanced: float = 5.0
    new: float = 0.0
    statistics: float = 0.0


class Fooled(NamedTuple):
    """The parts of the generator's loss, scalars; `total` is their weighted sum."""

    total: Array
    sure: Array
    active: Array
    balanced: Array
    new: Array
    statistics: Array


class Plan(NamedTuple):
    """How generator and student are trained, whatever the seed."""

    student: Model
    teacher: Variables
    generator: nn.Module
    init: Callable[[Array, Variables], "State"]
    step: Callable[..., tuple["State", Metrics]]
    num_steps: int
    noise_size: int


@struct.dataclass
class State:
    """The student's training, and the generator's beside it."""

    step: Array
    student: Any
    generator: Variables
    opt_state: PyTree
    key: Array


def plan(
    experiment: Experiment, teacher: TeacherResult, asked: GeneratorSettings, *, num_steps: int
) -> Plan:
    """Return what is trained; the step is compiled at its first use."""
    settings, spec = experiment.settings, teaching.student_spec(experiment)
    size, norm_limit = settings.batch_size, settings.student.max_norm
    optimizer = recipes.make_optimizer(
        settings.optimizer, batch_size=size, num_steps=num_steps, norm_limit=norm_limit
    )
    convolves, shape = teacher.network.model.paths.spatial, teacher.network.spec.image_shape
    generator = ConvGenerator(shape) if convolves else Generator(shape)
    decay = optax.cosine_decay_schedule(asked.learning_rate or _RATES[convolves], num_steps)
    student = models.build(spec)
    soft = terms.soft_targets(temperature=settings.temperature)
    embedding = teacher.network.model.paths.embedding
    init, step = make_step(
        student,
        models.build(teacher.network.spec, features=[embedding]),
        embedding,
        combine({"soft": soft}, {"soft": 1.0}),
        (optimizer, optax.adam(decay)),
        generator,
        batch_size=size,
        noise_size=asked.noise_size,
        weights=Weights(asked.sure, asked.active, asked.balanced, asked.new, asked.statistics),
        skip_nonfinite=settings.on_nonfinite == "skip",
    )
    variables = replicate(teacher.network.variables, experiment.run.mesh)
    return Plan(student, variables, generator, init, step, num_steps, asked.noise_size)


def train(run: Run, plan: Plan, seed: int) -> "State":
    """Train generator and student from a seed, or from where an earlier run left them."""
    directory = run.workdir / "checkpoints" / f"data-free-{seed}"
    log = TrainingLog(run, "data-free", seed, f"student, seed {seed}", plan.num_steps)
    state = training.restored(log, directory, plan.init(jax.random.key(seed), plan.teacher))
    # The step makes its own images.
    one_step = functools.partial(plan.step, teacher_variables=plan.teacher)
    feed = training.Feed(one_step, itertools.repeat({}))
    trained: State = training.fit(log, state, feed, directory)
    return trained


def student_variables(state: "State") -> Variables:
    """Return what the student has learned."""
    return Variables(state.student.params["student"], state.student.model_state)


def generator_loss(
    teacher: Outputs,
    embedding: Array,
    student_logits: Array,
    weights: Weights,
    statistics: Array | float = 0.0,
) -> Fooled:
    """Measure how unlike training data the teacher finds some images.

    sure: cross-entropy of the teacher with its own decisions; active: minus the mean absolute
    value of its embedding; balanced: minus the entropy of its mean prediction over the batch;
    new: minus KL(teacher || student), so that images go where the student is wrong; statistics:
    how far they are from what its BatchNorms saw.

    Args:
        teacher: its outputs for the images, logits [batch, num_classes].
        embedding: what its classifier reads, [batch, width].
        student_logits: [batch, num_classes].
        weights: of the five parts.
        statistics: the sum over the teacher's BatchNorms, see `watched_norms`.

    Returns:
        The parts and their weighted sum.

    References:
        Chen, Wang, Xu, Yang, Liu, Shi, Xu, Xu, Tian, "Data-Free Learning of Student Networks",
        2019, arXiv:1904.01186, equations 4 to 7. Fang, Song, Shen, Wang, Chen, Song, "Data-Free
        Adversarial Distillation", 2019, arXiv:1912.11006, for the part `new`.
    """
    log_probs = jax.nn.log_softmax(teacher.logits)
    probs = jnp.exp(log_probs)
    mean = jnp.mean(probs, axis=0)
    gap = log_probs - jax.nn.log_softmax(student_logits)
    parts = (
        -jnp.mean(jnp.max(log_probs, axis=-1)),
        -jnp.mean(jnp.abs(embedding)),
        jnp.sum(mean * jnp.log(mean + 1e-12)),
        -jnp.mean(jnp.sum(probs * gap, axis=-1)),
        jnp.asarray(statistics),
    )
    total = sum(weight * part for weight, part in zip(weights, parts, strict=True))
    return Fooled(jnp.asarray(total), *parts)


@contextlib.contextmanager
def watched_norms() -> Iterator[list[Array]]:
    """Collect how far what every BatchNorm of a Linen network sees is from what it has kept.

    |mean - kept mean| + |variance - kept variance|, norms over channels, for each that is called.

    References:
        Yin, Molchanov, Li, Alvarez, Mallya, Hoiem, Jha, Kautz, "Dreaming to Distill: Data-free
        Knowledge Transfer via DeepInversion", 2019, arXiv:1912.08795, equation 4.
    """
    found: list[Array] = []

    def watch(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        if isinstance(context.module, nn.BatchNorm) and context.method_name == "__call__":
            kept, axes = context.module.variables["batch_stats"], tuple(range(args[0].ndim - 1))
            apart = jnp.mean(args[0], axes) - kept["mean"], jnp.var(args[0], axes) - kept["var"]
            # The norm of zeros has no gradient.
            mean, variance = (jnp.sqrt(jnp.sum(jnp.square(x)) + 1e-12) for x in apart)
            found.append(mean + variance)
        return call(*args, **kwargs)

    with nn.intercept_methods(watch):
        yield found


def make_step(
    student: Model,
    teacher: Model,
    embedding: str,
    objective: Objective,
    optimizers: tuple[optax.GradientTransformation, optax.GradientTransformation],
    generator: nn.Module,
    *,
    batch_size: int,
    noise_size: int,
    weights: Weights,
    skip_nonfinite: bool = False,
) -> tuple[Callable[[Array, Variables], State], Callable[..., tuple[State, Metrics]]]:
    """Make the start and the step of data-free distillation.

    Args:
        student: the network to train.
        teacher: a trained network that captures `embedding`.
        embedding: the name of the feature that its classifier reads.
        objective: what the student minimizes on the images.
        optimizers: the student's and the generator's.
        generator: makes the images.
        batch_size: images in a step.
        noise_size: numbers that each is made from.
        weights: of the parts of the generator's loss.
        skip_nonfinite: as `kdjax.step.make_train_step`, for the student.

    Returns:
        `init(key, teacher_variables) -> State`, and
        `step(state, batch, *, teacher_variables) -> (state, metrics)`, jitted, the state donated,
        which makes its own images: the batch is not used.
    """
    train_step = step.make_train_step(
        student, objective, optimizers[0], skip_nonfinite=skip_nonfinite
    )

    def noise(key: Array) -> Array:
        return jax.random.normal(key, (batch_size, noise_size))

    def answer(variables: Variables, images: Array) -> Outputs:
        return teacher.apply(*variables, images, train=False)[0]

    def init(key: Array, teacher_variables: Variables) -> State:
        student_key, generator_key, noise_key, own = jax.random.split(key, 4)
        made = generator.init(generator_key, noise(noise_key), train=False)
        variables = Variables(made["params"], {"batch_stats": made["batch_stats"]})
        images: Any = generator.apply(made, noise(noise_key), train=False)
        outputs = answer(teacher_variables, images)
        state = step.init_train_state(
            student_key, student, objective, optimizers[0], {"image": images}, outputs
        )
        opt_state = optimizers[1].init(variables.params)
        return State(jnp.zeros((), jnp.int32), state, variables, opt_state, own)

    def generate(
        params: PyTree, state: State, teacher_variables: Variables, key: Array
    ) -> tuple[Array, tuple[Array, Outputs, PyTree, Fooled]]:
        variables = {"params": params, **state.generator.state}
        images, changed = generator.apply(variables, noise(key), train=True, mutable="batch_stats")
        with watched_norms() as apart:
            outputs = answer(teacher_variables, images)
        own = student_variables(state)
        logits = student.apply(*own, images, train=False)[0].logits
        parts = generator_loss(
            outputs, outputs.features[embedding], logits, weights, jnp.sum(jnp.asarray(apart))
        )
        return parts.total, (images, outputs, changed, parts)

    def one_step(
        state: State, batch: Batch, *, teacher_variables: Variables
    ) -> tuple[State, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        grads, (images, outputs, changed, parts) = jax.grad(generate, has_aux=True)(
            state.generator.params, state, teacher_variables, key
        )
        updates, opt_state = optimizers[1].update(grads, state.opt_state, state.generator.params)
        taught, metrics = train_step(state.student, {"image": images}, outputs)
        params = optax.apply_updates(state.generator.params, updates)
        new = State(state.step + 1, taught, Variables(params, changed), opt_state, state.key)
        count = jnp.float32(batch_size)
        drawn = {f"generator/{name}": (x * count, count) for name, x in parts._asdict().items()}
        return new, {**metrics, **drawn}

    return jax.jit(init), jax.jit(one_step, donate_argnums=0)


def images_of(
    generator: nn.Module, variables: Variables, *, noise_size: int, count: int, seed: int
) -> np.ndarray:
    """Draw images of a trained generator, [count, height, width, channels] of 0 to 255."""
    noise = jax.random.normal(jax.random.key(seed), (count, noise_size))
    images: Any = generator.apply(
        {"params": variables.params, **variables.state}, noise, train=False
    )
    return np.asarray(images)


def _norm(train: bool, name: str) -> nn.BatchNorm:
    return nn.BatchNorm(use_running_average=not train, momentum=0.9, name=name)
