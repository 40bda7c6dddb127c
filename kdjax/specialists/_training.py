"""What a specialist is trained on and starts from: labels with a dustbin, batches, a head."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from kdjax import data
from kdjax.losses._inputs import in_wide, within
from kdjax.metrics import known
from kdjax.types import Array


def membership(class_sets: ArrayLike, num_classes: int) -> Array:
    """Return which classes are in which set.

    Args:
        class_sets: [..., set_size], each without repetitions.
        num_classes: of the generalist.

    Returns:
        bool [..., num_classes].

    Raises:
        ValueError: if a set is empty or leaves no class for the dustbin, or, where their values
            are known, if a class is out of range or repeated.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax import specialists
        >>> print(specialists.membership(jnp.array([[0, 2]]), 4))
        [[ True False  True False]]
    """
    class_sets = check_sets("membership", class_sets, num_classes)
    return jnp.any(jax.nn.one_hot(class_sets, num_classes, dtype=bool), axis=-2)


def specialist_labels(labels: ArrayLike, classes: ArrayLike, *, num_classes: int) -> Array:
    """Return the names that a specialist has for classes.

    Args:
        labels: the generalist's classes, integers [...].
        classes: those of the specialist, [set_size].
        num_classes: of the generalist.

    Returns:
        The position of the label in `classes`; `set_size`, the dustbin, if it is not among them;
        -1 for a traced one that is no class of the generalist. int32 [...].

    Raises:
        ValueError: as `membership`, and if a label that is not traced is no class.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax import specialists
        >>> print(
        ...     specialists.specialist_labels(
        ...         jnp.array([3, 7]), jnp.array([2, 3]), num_classes=10
        ...     )
        ... )
        [1 2]
    """
    classes = check_sets("specialist_labels", classes, num_classes)
    size = classes.shape[-1]
    names = jnp.full(num_classes, size, jnp.int32).at[classes].set(jnp.arange(size))
    found = in_wide(jnp.asarray(labels))
    is_class = within(found, num_classes)
    numbers, fits = known(labels), known(is_class)
    if numbers is not None and fits is not None and not fits.all():
        raise ValueError(
            f"specialist_labels: labels has {numbers[~fits][0]}, expected 0 to {num_classes - 1} "
            f"for {num_classes} classes; leave such examples out"
        )
    return jnp.where(is_class, names[found], -1)


def specialist_indices(
    seed: int, step: int, *, is_special: np.ndarray, batch_size: int
) -> np.ndarray:
    """Return which examples make up a specialist's batch: half from its classes, half others.

    Each half walks through its own part of the examples in an order that is new in every epoch of
    that part. A batch is a pure function of (seed, step).

    Args:
        seed: names the sequence of batches.
        step: which batch, from 0.
        is_special: whether an example is of the specialist's classes, bool [examples].
        batch_size: even.

    Returns:
        Indices, the special half first, [batch_size].

    Raises:
        ValueError: if the batch is odd or a part is empty.

    Example:
        >>> import numpy as np
        >>> from kdjax import specialists
        >>> is_special = np.arange(20) < 5
        >>> specialists.specialist_indices(0, 0, is_special=is_special, batch_size=8).shape
        (8,)
    """
    special, others = np.flatnonzero(is_special), np.flatnonzero(~np.asarray(is_special, bool))
    if batch_size < 2 or batch_size % 2:
        raise ValueError(f"specialist_indices: batch_size is {batch_size}, expected an even number")
    if not len(special) or not len(others):
        raise ValueError(
            f"specialist_indices: is_special marks {len(special)} of {len(special) + len(others)} "
            "examples, expected some of each kind"
        )
    halves = [
        part[data.batch_indices(seed, step, batch_size=batch_size // 2, num_examples=len(part))]
        for part in (special, others)
    ]
    return np.concatenate(halves)


def collapse(logits: ArrayLike, classes: ArrayLike) -> Array:
    """Merge all classes but a specialist's into the dustbin: the logarithm of their summed mass.

        collapsed_i = logits[classes_i],  collapsed_dustbin = log sum over the rest of exp(logits)

    The softmax of the result is the softmax of the logits with the others summed. Log-probabilities
    in are log-probabilities out.

    Args:
        logits: [..., num_classes].
        classes: those of the specialist, [set_size].

    Returns:
        float32 or wider [..., set_size + 1], the dustbin last.

    Raises:
        ValueError: as `membership`.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from kdjax import specialists
        >>> collapse = jax.jit(lambda logits: specialists.collapse(logits, jnp.array([0])))
        >>> print(collapse(jnp.array([2.0, 1.0, 1.0])))
        [2.        1.6931472]
    """
    logits = jnp.asarray(logits)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    classes = check_sets("collapse", classes, logits.shape[-1])
    inside = jnp.broadcast_to(membership(classes, logits.shape[-1]), logits.shape)
    rest = jax.nn.logsumexp(logits, axis=-1, keepdims=True, where=~inside)
    return jnp.concatenate([logits[..., classes], rest], axis=-1)


def specialist_head(kernel: ArrayLike, bias: ArrayLike, classes: ArrayLike) -> tuple[Array, Array]:
    """Start a specialist's last layer from the generalist's.

    Its classes keep their weights. The dustbin has the mean weights of all the others, and the mean
    of their biases plus the logarithm of their number: what the logarithm of their summed mass is
    where they are equally likely, and a lower bound of it elsewhere.

    Args:
        kernel: the generalist's, [width, num_classes].
        bias: the generalist's, [num_classes].
        classes: those of the specialist, [set_size].

    Returns:
        Kernel [width, set_size + 1] and bias [set_size + 1], the dustbin last.

    Raises:
        ValueError: if the shapes differ, or as `membership`.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from kdjax import specialists
        >>> classes = jnp.array([2, 3])
        >>> make = lambda kernel, bias: specialists.specialist_head(kernel, bias, classes)
        >>> kernel, bias = jax.eval_shape(make, jnp.ones((8, 10)), jnp.zeros(10))
        >>> kernel.shape, bias.shape
        ((8, 3), (3,))
    """
    kernel, bias = jnp.asarray(kernel), jnp.asarray(bias)
    if kernel.ndim != 2 or bias.shape != kernel.shape[1:]:
        raise ValueError(
            f"specialist_head: bias has shape {bias.shape}, expected one number for each class of "
            f"kernel {kernel.shape}"
        )
    num_classes = bias.shape[0]
    classes = check_sets("specialist_head", classes, num_classes)
    others = ~membership(classes, num_classes)
    rows = jnp.concatenate([kernel, bias[None]])
    dustbin = jnp.mean(rows, axis=-1, keepdims=True, where=jnp.broadcast_to(others, rows.shape))
    rows = jnp.concatenate([rows[:, classes], dustbin], axis=-1)
    return rows[:-1], rows[-1].at[-1].add(jnp.log(num_classes - classes.shape[-1]))


def check_sets(function: str, class_sets: ArrayLike, num_classes: int) -> Array:
    """Return sets of classes as an array, after checking what can be known of them."""
    shape = np.shape(class_sets)
    if not shape or not 1 <= shape[-1] < num_classes:
        raise ValueError(
            f"{function}: a set of classes has shape {shape}, expected [..., set_size] "
            f"with 1 to {num_classes - 1} of {num_classes} classes"
        )
    if not isinstance(class_sets, jax.core.Tracer):
        known = np.sort(np.asarray(class_sets), axis=-1)
        if known.min() < 0 or known.max() >= num_classes or not np.all(np.diff(known, axis=-1)):
            raise ValueError(
                f"{function}: expected different classes of 0 to {num_classes - 1} in a set, "
                f"got {np.asarray(class_sets).tolist()}"
            )
    return jnp.asarray(class_sets)
