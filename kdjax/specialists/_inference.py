"""Asking specialists: which of them, and one distribution that agrees with all who answer."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from kdjax.losses import kl_divergence
from kdjax.specialists._training import check_sets, collapse, membership
from kdjax.types import Array


def active_specialists(
    generalist_logits: ArrayLike, class_sets: ArrayLike, *, num_top: int = 1
) -> Array:
    """Choose the specialists to ask: those with one of the generalist's most probable classes.

    Args:
        generalist_logits: [..., num_classes].
        class_sets: the specialists' classes, [specialists, set_size].
        num_top: how many of the most probable classes count; the paper's n, 1 there.

    Returns:
        bool [..., specialists]; all false where no specialist has such a class.

    Raises:
        ValueError: if `num_top` is out of range, or as `membership`.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from kdjax import specialists
        >>> class_sets = jnp.array([[0, 1], [2, 3]])
        >>> choose = jax.jit(lambda logits: specialists.active_specialists(logits, class_sets))
        >>> print(choose(jnp.array([[3.0, 1.0, 0.0, 0.0]])))
        [[ True False]]

    References:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015,
        arXiv:1503.02531, section 5.4.
    """
    logits = jnp.asarray(generalist_logits)
    num_classes = logits.shape[-1]
    if not 1 <= num_top <= num_classes:
        raise ValueError(
            f"active_specialists: num_top is {num_top}, expected 1 to {num_classes} classes"
        )
    covers = membership(class_sets, num_classes)
    return jnp.any(covers.T[jax.lax.top_k(logits, num_top)[1]], axis=-2)


def disagreement(
    logits: ArrayLike,
    generalist_logits: ArrayLike,
    specialist_logits: ArrayLike,
    class_sets: ArrayLike,
    active: ArrayLike,
) -> Array:
    """Measure how far a distribution is from what generalist and active specialists say.

        KL(generalist || q) + sum over active m of KL(specialist_m || q with m's dustbin summed)

    with q = softmax(logits), all at temperature 1: the paper's equation 5.

    Args:
        logits: of q, [num_classes].
        generalist_logits: [num_classes].
        specialist_logits: corrected by `dustbin_shift`, [specialists, set_size + 1].
        class_sets: the specialists' classes, [specialists, set_size].
        active: whom to listen to, bool [specialists].

    Returns:
        One number in nats. `jax.vmap` it over images.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from kdjax import specialists
        >>> class_sets, active = jnp.array([[0, 1]]), jnp.array([[True]])
        >>> generalist, specialist = jnp.zeros((1, 3)), jnp.array([[[4.0, 0.0, 0.0]]])
        >>> measure = specialists.disagreement
        >>> how_far = lambda x: measure(x, generalist, specialist, class_sets, active)
        >>> jax.eval_shape(how_far, generalist).shape
        (1,)

    References:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015,
        arXiv:1503.02531, equation 5.
    """
    log_q = jax.nn.log_softmax(jnp.asarray(logits))
    own = kl_divergence(log_q, jax.nn.log_softmax(jnp.asarray(generalist_logits)))
    coarse = jax.vmap(collapse, in_axes=(None, 0))(log_q, jnp.asarray(class_sets))
    others = kl_divergence(coarse, jax.nn.log_softmax(jnp.asarray(specialist_logits), axis=-1))
    return own + jnp.sum(jnp.where(jnp.asarray(active), others, 0.0))


def combine(
    generalist_logits: ArrayLike,
    specialist_logits: ArrayLike,
    class_sets: ArrayLike,
    active: ArrayLike,
    *,
    optimizer: optax.GradientTransformation | None = None,
    num_steps: int = 200,
) -> Array:
    """Find the distribution that agrees best with a generalist and its active specialists.

    Gradient descent on the logits of every image, all images at once, on `disagreement`. It starts
    from the generalist's logits, and where no specialist is active it returns them.

    Args:
        generalist_logits: [batch, num_classes].
        specialist_logits: corrected by `dustbin_shift`, [specialists, batch, set_size + 1].
        class_sets: the specialists' classes, [specialists, set_size].
        active: whom to listen to, bool [batch, specialists], see `active_specialists`.
        optimizer: one that treats every number by itself, as `optax.sgd` and `optax.adam` do, so
            that images do not depend on each other. Default: `default_optimizer(num_steps)`. Plain
            gradient descent gets there too, in many more steps: classes of little mass have little
            gradient.
        num_steps: the number of its steps.

    Returns:
        Logits of the distributions, float32 or wider [batch, num_classes].

    Raises:
        ValueError: if shapes differ, `num_steps` is negative, or as `membership`.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from kdjax import specialists
        >>> class_sets, active = jnp.array([[0, 1]]), jnp.array([[True]])
        >>> generalist, specialist = jnp.zeros((1, 3)), jnp.array([[[4.0, 0.0, 0.0]]])
        >>> find = lambda x: specialists.combine(x, specialist, class_sets, active)
        >>> jax.eval_shape(find, generalist).shape
        (1, 3)

    References:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015,
        arXiv:1503.02531, section 5.4.
    """
    logits, specialists = jnp.asarray(generalist_logits), jnp.asarray(specialist_logits)
    sets, chosen = jnp.asarray(class_sets), jnp.asarray(active, bool)
    if logits.ndim != 2 or sets.ndim != 2:
        raise ValueError(
            f"combine: generalist_logits has shape {logits.shape} and class_sets {sets.shape}, "
            "expected [batch, num_classes] and [specialists, set_size]"
        )
    expected = {
        "specialist_logits": (specialists, (len(sets), len(logits), sets.shape[1] + 1)),
        "active": (chosen, (len(logits), len(sets))),
    }
    for name, (array, shape) in expected.items():
        if array.shape != shape:
            raise ValueError(f"combine: {name} has shape {array.shape}, expected {shape}")
    if num_steps < 0:
        raise ValueError(f"combine: num_steps is {num_steps}, expected 0 or more")
    check_sets("combine", class_sets, logits.shape[1])
    wide = jnp.promote_types(jnp.promote_types(logits.dtype, specialists.dtype), jnp.float32)
    # What nobody listens to may be nan.
    heard = jnp.where(chosen.T[..., None], specialists.astype(wide), 0)
    given = logits.astype(wide), heard, sets, chosen
    found: Array = _descend(*given, optimizer or default_optimizer(num_steps), num_steps)
    return found


@functools.cache
def default_optimizer(num_steps: int) -> optax.GradientTransformation:
    """Make what `combine` descends with: Adam from a rate of 0.5, which a cosine takes to zero.

    Args:
        num_steps: of the descent.

    Example:
        >>> from kdjax import specialists
        >>> optimizer = specialists.default_optimizer(200)
        >>> callable(optimizer.update)
        True
    """
    return optax.adam(optax.cosine_decay_schedule(0.5, max(1, num_steps)))


@functools.partial(jax.jit, static_argnames=("optimizer", "num_steps"))
def _descend(
    logits: Array,
    specialist_logits: Array,
    class_sets: Array,
    active: Array,
    optimizer: optax.GradientTransformation,
    num_steps: int,
) -> Array:
    # Images are independent, so the gradient of the sum holds the gradient of each.
    each = jax.vmap(disagreement, in_axes=(0, 0, 1, None, 0))
    grad_fn = jax.grad(lambda z: jnp.sum(each(z, logits, specialist_logits, class_sets, active)))

    def step(carry: tuple[Array, optax.OptState], _: None) -> tuple[tuple[Array, Any], None]:
        z, state = carry
        updates, state = optimizer.update(grad_fn(z), state, z)
        return (z + updates, state), None

    (z, _), _ = jax.lax.scan(step, (logits, optimizer.init(logits)), None, length=num_steps)
    return jnp.where(jnp.any(active, axis=-1, keepdims=True), z, logits)
