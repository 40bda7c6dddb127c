"""Where the teacher's outputs come from: a frozen network, several, or logits stored in the batch.

A teacher is a pair of a function and its arrays. The arrays travel as arguments of the compiled
step; they are never trained, never closed over and bit-identical after training. Teachers that
change with the student, `ema` and `peers`, keep theirs in the training's state; see `kdjax.online`.
"""

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from kdjax import models
from kdjax.heads import TopK
from kdjax.metrics import are_probabilities, known
from kdjax.types import Array, Batch, Model, OnlineTeacher, Outputs, PyTree, Teacher, Variables

__all__ = [
    "InputsFn", "absent", "check_logits", "ema", "ensemble", "fed", "from_torch", "frozen", "peers",
    "stored",
]  # fmt: skip

InputsFn = Callable[[Batch], Any]
"""Picks what a network is fed out of a batch."""


def fed(inputs_fn: InputsFn, batch: Batch) -> Any:
    """Return what a network is fed out of a batch.

    Args:
        inputs_fn: picks it.
        batch: arrays by name.

    Returns:
        What it picks.

    Raises:
        TypeError: if the batch is no mapping of arrays.
        ValueError: if `inputs_fn` looks for something that the batch does not have.

    Example:
        >>> import numpy as np
        >>> from kdjax import teachers
        >>> teachers.fed(lambda batch: batch["tokens"], {"tokens": np.arange(3)})
        array([0, 1, 2])
    """
    if not isinstance(batch, Mapping):
        raise TypeError(f"the batch is a {type(batch).__name__}, expected arrays by name")
    for name, value in batch.items():
        if isinstance(value, list | tuple) and not any(map(np.ndim, value)):
            raise TypeError(
                f"batch[{name!r}] is a {type(value).__name__}, expected an array: numpy.asarray"
            )
    try:
        return inputs_fn(batch)
    except KeyError as error:
        raise ValueError(
            f"a network is fed batch[{error}], but the batch has {sorted(batch)}; pass "
            "inputs_fn=lambda batch: batch[...]"
        ) from error


def check_logits(whose: str, logits: Any) -> None:
    """Refuse probabilities in the place of logits, where the values are known.

    Log-probabilities are logits: they have the same softmax at every temperature. What compares
    logits as they are (`kdjax.losses.logit_mse_loss`) has to do with them as they are.

    Args:
        whose: what to call them.
        logits: [batch..., num_classes], or a `kdjax.heads.TopK`.

    Raises:
        ValueError: if there are several classes and every row is nonnegative and sums to 1.

    Example:
        >>> import numpy as np
        >>> from kdjax import teachers
        >>> teachers.check_logits("the teacher's answers", np.array([[2.0, -1.0]]))
    """
    values = known(logits.logits if isinstance(logits, TopK) else logits)
    if values is None or values.ndim < 2 or values.shape[-1] < 2 or not values.size:
        return
    if are_probabilities(values):
        raise ValueError(
            f"{whose} are probabilities (every row is nonnegative and sums to 1), expected what "
            "the softmax is taken of: drop the network's softmax, or give their logarithm"
        )


def frozen(
    model: Model, variables: Variables, *, inputs_fn: InputsFn = itemgetter("image")
) -> Teacher:
    """Make a teacher of a trained network, which runs in evaluation mode.

    Args:
        model: the teacher's network.
        variables: its trained parameters and state.
        inputs_fn: what the network is fed, `batch["image"]` by default.

    Returns:
        A teacher that answers with the network's logits and features, gradients stopped.

    Example:
        >>> import jax
        >>> import numpy as np
        >>> from kdjax import models, teachers
        >>> network = models.mlp(10, widths=(8,))
        >>> batch = {"image": np.ones((4, 8, 8, 1), np.float32)}
        >>> variables = jax.eval_shape(network.init, jax.random.key(0), batch["image"])
        >>> teacher = teachers.frozen(network, variables)  # trained, in real life
        >>> jax.eval_shape(teacher.apply, teacher.variables, batch).logits.shape
        (4, 10)
    """

    def apply(variables: Variables, batch: Batch) -> Outputs:
        outputs, state = model.apply(*variables, fed(inputs_fn, batch), train=False)
        _check_same("frozen", variables.state, state)
        check_logits("frozen: the teacher's logits", outputs.logits)
        return jax.lax.stop_gradient(outputs)

    return Teacher(variables, apply)


def from_torch(
    module: Any,
    *,
    mean: ArrayLike | None = None,
    std: ArrayLike | None = None,
    features: Sequence[str] = (),
    inputs_fn: InputsFn = itemgetter("image"),
) -> Teacher:
    """Make a teacher of a PyTorch module, which runs inside the compiled step, in evaluation mode.

    Its weights are copied: they are the teacher's variables, and the module is left as it is. See
    `kdjax.models.from_torch` for what cannot be compiled.

    Args:
        module: a trained `torch.nn.Module` of images; ours, [batch, height, width, channels], reach
            it as [batch, channels, height, width].
        mean: [channels] that it was trained with, in units where white is 1; ImageNet's are (0.485,
            0.456, 0.406). With `std`, the batch's images are raw, of 0 to 255; without both, they
            are what the module takes.
        std: [channels] likewise; ImageNet's are (0.229, 0.224, 0.225).
        features: names of submodules whose outputs to capture, such as "layer4".
        inputs_fn: what the network is fed, `batch["image"]` by default.

    Returns:
        A teacher that answers with the module's logits and features, gradients stopped.

    Raises:
        MissingPackage: if torch or torchax is not installed.
        TypeError: if `module` is none of PyTorch.
        ValueError: if only one of mean and std is given; from apply as in
            `kdjax.models.from_torch`.

    Example:
        >>> import importlib.util
        >>> import numpy as np
        >>> from kdjax import teachers
        >>> if importlib.util.find_spec("torchax"):
        ...     import torch
        ...
        ...     teacher = teachers.from_torch(torch.nn.Flatten(), mean=(0.5,), std=(0.25,))
        ...     outputs = teacher.apply(
        ...         teacher.variables, {"image": np.zeros((2, 4, 4, 1), np.uint8)}
        ...     )
        ...
    """
    if (mean is None) != (std is None):
        raise ValueError("from_torch: mean and std go together, and only one of them is given")
    model = models.from_torch(module, features=features)
    # The key and the inputs decide nothing: a module has its weights.
    variables = model.init(jax.random.key(0), None)
    if mean is not None and std is not None:
        model = models.normalized(model, mean, std)
    return frozen(model, variables, inputs_fn=inputs_fn)


def ensemble(
    teachers: Sequence[Teacher], *, weights: Sequence[float] | None = None, temperature: float = 1.0
) -> Teacher:
    """Make one teacher of several: the average of their probabilities, in log space.

    The answer is temperature * log(mean softmax(logits / temperature)), so that softening it at
    that temperature gives the arithmetic mean of the teachers' softened probabilities.

    Args:
        teachers: at least one teacher; all answer with logits of one shape.
        weights: their shares, positive numbers that are scaled to sum to one; equal by default.
        temperature: where the probabilities are averaged: the temperature of the distillation.

    Returns:
        A teacher that answers with logits only.

    Raises:
        ValueError: if there is no teacher, if weights and teachers differ in number, if a weight
            is not positive, or if the temperature is not.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from kdjax import teachers
        >>> both = teachers.ensemble([teachers.stored("first"), teachers.stored("second")])
        >>> batch = {"first": jnp.array([[2.0, 0.0]]), "second": jnp.array([[0.0, 2.0]])}
        >>> logits = jax.jit(both.apply)(both.variables, batch).logits[0]
        >>> bool(jnp.allclose(logits[0], logits[1]))
        True

    References:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015,
        arXiv:1503.02531, sections 2 and 4.
    """
    if not teachers:
        raise ValueError("ensemble: teachers is empty, expected at least one")
    if not 0 < temperature < float("inf"):
        raise ValueError(f"ensemble: temperature must be positive and finite, got {temperature}")
    log_shares = _log_shares(weights, len(teachers))
    applies = [teacher.apply for teacher in teachers]

    def apply(variables: tuple[Any, ...], batch: Batch) -> Outputs:
        answers = [fn(v, batch).logits for fn, v in zip(applies, variables, strict=True)]
        for i, answer in enumerate(answers):
            check_logits(f"ensemble: the logits of teacher {i}", answer)
        return Outputs(_mean_in_probabilities(answers, log_shares, temperature))

    held = tuple(name for teacher in teachers for name in teacher.held_in)
    return Teacher(tuple(teacher.variables for teacher in teachers), apply, held)


def stored(name: str = "teacher_logits", *, indices: str | None = None) -> Teacher:
    """Make a teacher whose logits are in the batch, where an earlier pass over the data put them.

    Of many classes, the largest logits and which classes they are of will do: two arrays
    [batch..., k], as a pair under one key or each under its own. The teacher then answers with a
    `kdjax.heads.TopK`, which `kd_loss` and `soft_target_loss` take: all others have no mass.

    They answer what the teacher saw then. A step that augments its batch (`view_fn`) refuses them,
    unless the view brings the answers to what it shows under the same name.

    Args:
        name: the batch's key that holds them, [batch..., num_classes].
        indices: the key of their classes, [batch..., k], if they are the largest alone.

    Returns:
        A teacher without variables.

    Raises:
        TypeError: from apply, if they are several arrays, and not a pair of numbers and classes.
        ValueError: from apply, if they are not in the batch, or are probabilities.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax import teachers
        >>> teacher = teachers.stored()
        >>> print(teacher.apply((), {"teacher_logits": jnp.array([[3.0, 1.0]])}).logits)
        [[3. 1.]]
        >>> largest = {"teacher_logits": (jnp.array([[3.0, 1.0]]), jnp.array([[7, 2]]))}
        >>> print(teacher.apply((), largest).logits.indices)
        [[7 2]]
    """
    names = (name,) if indices is None else (name, indices)

    def apply(variables: tuple[()], batch: Batch) -> Outputs:
        for wanted in names:
            if wanted not in batch:
                raise ValueError(f"stored: the batch has no {wanted!r}, only {sorted(batch)}")
        given = batch[name] if indices is None else (batch[name], batch[indices])
        if isinstance(given, tuple | list | dict):
            given = _largest(f"stored: batch[{name!r}]", given)
        check_logits(f"stored: batch[{name!r}]", given)
        return Outputs(jax.lax.stop_gradient(jax.tree.map(jnp.asarray, given)))

    return Teacher((), apply, names)


def _largest(what: str, given: Any) -> TopK:
    """Return a pair of arrays as the largest logits and their classes."""
    if isinstance(given, tuple | list) and len(given) == 2 and all(map(np.ndim, given)):
        kinds = [jnp.issubdtype(jnp.result_type(x), jnp.integer) for x in given]
        if kinds == [False, True] and np.shape(given[0]) == np.shape(given[1]):
            return TopK(*given)
    raise TypeError(
        f"{what} is a {type(given).__name__}, expected one array [batch..., num_classes], or the "
        "largest logits and, in integers, their classes, [batch..., k] both"
    )


def absent() -> Teacher:
    """Make a teacher that answers with nothing, for training from labels alone by the same step.

    Returns:
        A teacher whose outputs have no logits; a term that asks for them fails at trace time.

    Example:
        >>> from kdjax import teachers
        >>> print(teachers.absent().apply((), {}))
        None
    """

    def apply(variables: tuple[()], batch: Batch) -> Any:
        return None

    return Teacher((), apply)


def ema(
    model: Model,
    *,
    decay: float | Callable[[Array], Array] = 0.999,
    inputs_fn: InputsFn = itemgetter("image"),
) -> OnlineTeacher:
    """Make a mean teacher: the moving average of the student's own variables.

    teacher = d * teacher + (1 - d) * student, after every step; at first it is the student

    BatchNorm's statistics are averaged like the parameters; what is no floating-point array
    (counters, keys) is the student's. The average of half-precision arrays is kept in float32: in
    their own type it would not move. It answers in evaluation mode.

    Args:
        model: the student's network.
        decay: d in [0, 1), or a function of the number of steps taken, such as
            `lambda n: jnp.minimum(1 - 1 / (n + 1), 0.999)`, the plain mean as long as that is
            shorter.
        inputs_fn: what the network is fed, `batch["image"]` by default.

    Returns:
        A teacher for `kdjax.online.with_online_teacher`; its arrays are `Variables`.

    Raises:
        ValueError: if the decay is a number and not in [0, 1).

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from kdjax import models, teachers
        >>> student = models.mlp(10, widths=(8,))
        >>> variables = jax.eval_shape(student.init, jax.random.key(0), jnp.ones((1, 64)))
        >>> teacher = teachers.ema(student, decay=0.99)
        >>> kept = jax.eval_shape(teacher.init, variables)
        >>> jax.tree.structure(kept) == jax.tree.structure(variables)
        True

    References:
        Tarvainen, Valpola, "Mean teachers are better role models: Weight-averaged consistency
        targets improve semi-supervised deep learning results", 2017, arXiv:1703.01780.
    """
    if not callable(decay) and not 0 <= decay < 1:
        raise ValueError(f"ema: decay is {decay}, expected a number in [0, 1) or a function")

    def kept(x: Array) -> Array:
        x = jnp.copy(x)
        narrow = jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize < 4
        return x.astype(jnp.float32) if narrow else x

    def init(student: Variables) -> PyTree:
        return jax.tree.map(kept, student)

    def update(teacher: Variables, student: Variables, num_steps: Array) -> PyTree:
        share = 1 - (decay(num_steps) if callable(decay) else decay)

        def moved(old: Array, new: Array) -> Array:
            if not jnp.issubdtype(old.dtype, jnp.floating):
                return new
            return (old + share * (new.astype(old.dtype) - old)).astype(old.dtype)

        return jax.tree.map(moved, teacher, student)

    return OnlineTeacher(init, frozen(model, Variables((), ()), inputs_fn=inputs_fn).apply, update)


def peers(outputs: Sequence[Outputs], *, temperature: float = 1.0) -> list[Outputs]:
    """Return for each of several students its teacher in mutual learning: the others' answers.

    For two students that is the other's logits and features. For more it is the logits whose
    softening at the temperature gives the mean of the others' probabilities, as in `ensemble`: the
    soft-target loss against it has the gradient of the mean of the losses against each.

    Args:
        outputs: of every student, for one batch.
        temperature: of the distillation.

    Returns:
        For every student its teacher's outputs, constant.

    Raises:
        ValueError: if there are fewer than two students, or the temperature is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax import teachers
        >>> from kdjax.types import Outputs
        >>> first, second = Outputs(jnp.array([[1.0, 0.0]])), Outputs(jnp.array([[0.0, 3.0]]))
        >>> print(teachers.peers([first, second])[0].logits)
        [[0. 3.]]

    References:
        Zhang, Xiang, Hospedales, Lu, "Deep Mutual Learning", 2017, arXiv:1706.00384.
    """
    if len(outputs) < 2:
        raise ValueError(f"peers: outputs are of {len(outputs)} students, expected at least two")
    if not 0 < temperature < float("inf"):
        raise ValueError(f"peers: temperature must be positive and finite, got {temperature}")
    constant = [jax.lax.stop_gradient(x) for x in outputs]
    others = [constant[:i] + constant[i + 1 :] for i in range(len(constant))]
    if len(outputs) == 2:
        return [other for (other,) in others]
    log_shares = _log_shares(None, len(outputs) - 1)
    return [
        Outputs(_mean_in_probabilities([x.logits for x in rest], log_shares, temperature))
        for rest in others
    ]


def _check_same(function: str, state: PyTree, new: PyTree) -> None:
    """Raise a ValueError if evaluation has changed a network's state, where values are known."""
    leaves = jax.tree.leaves_with_path(state)
    for (path, old), value in zip(leaves, jax.tree.leaves(new), strict=False):
        before, after = (None, None) if old is value else (known(old), known(value))
        if before is not None and after is not None and not np.array_equal(before, after):
            raise ValueError(
                f"{function}: evaluation (train=False) changes the network's state "
                f"{jax.tree_util.keystr(path)}: it answers in training mode"
            )


def _mean_in_probabilities(
    answers: Sequence[Array], log_shares: np.ndarray, temperature: float
) -> Array:
    """Return the logits whose softened probabilities are the mean of the answers'."""
    logits = jnp.stack(answers)
    log_probs = jax.nn.log_softmax(
        logits.astype(jnp.promote_types(logits.dtype, jnp.float32)) / temperature, axis=-1
    )
    shares = log_shares.astype(log_probs.dtype).reshape((-1,) + (1,) * (logits.ndim - 1))
    return temperature * jax.nn.logsumexp(log_probs + shares, axis=0)


def _log_shares(weights: Sequence[float] | None, num_teachers: int) -> np.ndarray:
    shares = np.ones(num_teachers) if weights is None else np.asarray(weights, np.float64)
    if shares.shape != (num_teachers,):
        raise ValueError(
            f"ensemble: weights has {shares.size} entries, expected {num_teachers}, one per teacher"
        )
    if not np.all(shares > 0) or not np.all(np.isfinite(shares)):
        raise ValueError(f"ensemble: weights must be positive and finite, got {shares.tolist()}")
    log_shares: np.ndarray = np.log(shares / shares.sum())
    return log_shares
