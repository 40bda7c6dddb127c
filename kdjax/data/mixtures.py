"""Mixtures of the images of a batch, with labels that are mixed as they are, and class weights.

What is here are views (`kdjax.step.ViewFn`): functions of a key and a batch that run inside the
step, so that teacher and student see the same mixture. An image is mixed with the one before it in
the batch, which the order of the examples makes a random one.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import metrics
from kdjax.losses._inputs import in_wide, within
from kdjax.types import Array, Batch

ViewFn = Callable[[Array, Batch], Batch]
_Mixer = Callable[[Array, Array, Array], tuple[Callable[[Array], Array], Array]]


def mixup(*, num_classes: int, alpha: float = 0.8, per_example: bool = False) -> ViewFn:
    """Make a view in which every image is a blend of two.

    x = s x_1 + (1 - s) x_2, the label likewise, s from Beta(alpha, alpha)

    Args:
        num_classes: columns of the label probabilities.
        alpha: near 0 one of the two images is nearly alone, at 1 all shares are as likely.
        per_example: draw a share for every example, not one for the batch.

    Returns:
        A view of a batch: `image`, and every other image of the same examples (`*_image`), float32;
        `label` [batch, num_classes], probabilities. A weight in `mask` [batch] is blended too; what
        does not count is mixed into nothing.

    Raises:
        ValueError: if a number is out of range; from the view, if labels are no classes.

    Example:
        >>> import jax
        >>> from kdjax import data
        >>> view = data.mixup(num_classes=10)
        >>> batch = {"image": jax.numpy.ones((4, 8, 8, 3)), "label": jax.numpy.arange(4)}
        >>> jax.eval_shape(view, jax.random.key(0), batch)["label"].shape
        (4, 10)

    References:
        Zhang, Cisse, Dauphin, Lopez-Paz, "mixup: Beyond Empirical Risk Minimization", 2017,
        arXiv:1710.09412.
    """
    _check("mixup", num_classes, alpha)

    def blend(key: Array, share: Array, like: Array) -> tuple[Callable[[Array], Array], Array]:
        def blended(x: Array) -> Array:
            x, own = x.astype(jnp.float32), share[:, None, None, None]
            return own * x + (1 - own) * _partners(x)

        return blended, share

    return _mixing("mixup", blend, num_classes, alpha, per_example)


def cutmix(*, num_classes: int, alpha: float = 1.0, per_example: bool = False) -> ViewFn:
    """Make a view in which a rectangle of every image shows another one.

    The rectangle has the image's proportions and 1 - s of its area, s from Beta(alpha, alpha),
    around a point anywhere; what lies outside of the image is cut off. The labels are mixed by the
    areas that are seen.

    Args:
        num_classes: columns of the label probabilities.
        alpha: near 0 one of the two images is nearly alone, at 1 all shares are as likely.
        per_example: draw a rectangle for every example, not one for the batch.

    Returns:
        A view as of `mixup`; images keep their type.

    Raises:
        ValueError: if a number is out of range; from the view, if labels are no classes.

    Example:
        >>> import jax
        >>> from kdjax import data
        >>> view = data.cutmix(num_classes=10)
        >>> batch = {"image": jax.numpy.ones((4, 8, 8, 3)), "label": jax.numpy.arange(4)}
        >>> jax.eval_shape(view, jax.random.key(0), batch)["label"].shape
        (4, 10)

    References:
        Yun, Han, Oh, Chun, Choe, Yoo, "CutMix: Regularization Strategy to Train Strong Classifiers
        with Localizable Features", 2019, arXiv:1905.04899.
    """
    _check("cutmix", num_classes, alpha)

    def paste(key: Array, share: Array, like: Array) -> tuple[Callable[[Array], Array], Array]:
        draws = jax.random.uniform(key, (len(like), 2), jnp.float32)
        middle = draws if per_example else jnp.broadcast_to(draws[:1], draws.shape)
        half = jnp.sqrt(1 - share)[:, None] / 2

        def outside(x: Array) -> Array:
            height, width = x.shape[1:3]
            rows, columns = (
                jnp.abs((jnp.arange(size) + 0.5)[None] / size - middle[:, i : i + 1]) >= half
                for i, size in enumerate((height, width))
            )
            return rows[:, :, None] | columns[:, None, :]

        def pasted(x: Array) -> Array:
            return jnp.where(outside(x)[..., None], x, _partners(x))

        return pasted, jnp.mean(outside(like), axis=(1, 2), dtype=jnp.float32)

    return _mixing("cutmix", paste, num_classes, alpha, per_example)


def one_of(*view_fns: ViewFn, per_example: bool = False) -> ViewFn:
    """Make a view that takes one of several, each as often, such as of `mixup` and `cutmix`.

    Args:
        view_fns: views that change the same entries of a batch, into the same shapes.
        per_example: draw one for every example, not one for the batch.

    Example:
        >>> import jax
        >>> from kdjax import data
        >>> view = data.one_of(data.mixup(num_classes=10), data.cutmix(num_classes=10))
        >>> batch = {"image": jax.numpy.ones((4, 8, 8, 3)), "label": jax.numpy.arange(4)}
        >>> jax.eval_shape(view, jax.random.key(0), batch)["label"].shape
        (4, 10)
    """

    def view_fn(key: Array, batch: Batch) -> Batch:
        key, *keys = jax.random.split(key, len(view_fns) + 1)
        views = [fn(own, batch) for fn, own in zip(view_fns, keys, strict=True)]
        size = len(batch["image"])
        drawn = jax.random.randint(key, (size if per_example else 1,), 0, len(views))
        drawn = jnp.broadcast_to(drawn, (size,))

        def chosen(*entries: Array) -> Array:
            found = entries[0].astype(jnp.result_type(*entries))
            for i, x in enumerate(entries[1:], 1):
                found = jnp.where(metrics.spread(drawn == i, x.shape), x, found)
            return found

        changed = {n for view in views for n in view if view[n] is not batch.get(n)}
        return {n: chosen(*(v[n] for v in views)) if n in changed else batch[n] for n in views[0]}

    return view_fn


def class_weighted(weights: np.ndarray | Array) -> ViewFn:
    """Make a view in which the classes weigh what is given: in `mask`, which every mean goes by.

    Args:
        weights: [classes], of the examples of each; label probabilities have their mean, and a
            label that is no class weighs nothing.

    Example:
        >>> import numpy as np
        >>> from kdjax import data
        >>> view = data.class_weighted(np.array([1.0, 3.0]))
        >>> print(view(None, {"label": np.array([0, 1, 1])})["mask"])
        [1. 3. 3.]
    """
    weights = jnp.asarray(weights, jnp.float32)

    def view_fn(key: Array, batch: Batch) -> Batch:
        label = batch["label"]
        if jnp.issubdtype(label.dtype, jnp.integer):
            place = weights.at[in_wide(jnp.asarray(label))]
            own = place.get(mode="fill", fill_value=0, wrap_negative_indices=False)
        else:
            own = jnp.sum(label * weights[None], axis=-1)
        if "mask" in batch:
            own = own * metrics.spread(batch["mask"], own.shape).astype(own.dtype)
        return {**batch, "mask": own}

    return view_fn


def balanced_weights(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Return weights with which every class counts the same: examples / (classes * of the class).

    Args:
        labels: integer classes, [examples]; what is no class is left out.
        num_classes: how many classes there are; one without examples weighs 0.

    Returns:
        [num_classes], float32; the mean over the examples is 1.

    Example:
        >>> import numpy as np
        >>> from kdjax import data
        >>> print(data.balanced_weights(np.array([0, 0, 0, 1]), 2).round(2))
        [0.67 2.  ]
    """
    labels = np.asarray(labels)
    labels = labels[(labels >= 0) & (labels < num_classes)]
    counts = np.bincount(labels, minlength=num_classes)
    present = max(1, np.count_nonzero(counts))
    weights = len(labels) / (present * np.maximum(counts, 1))
    return np.where(counts > 0, weights, 0).astype(np.float32)


def _mixing(name: str, mixer: _Mixer, num_classes: int, alpha: float, per_example: bool) -> ViewFn:
    def view_fn(key: Array, batch: Batch) -> Batch:
        key, share_key = jax.random.split(key)
        image = batch["image"]
        probs = _probs(name, batch, num_classes)
        shape = (len(image) if per_example else 1,)
        share = jax.random.beta(share_key, alpha, alpha, shape, jnp.float32)
        share = jnp.broadcast_to(share, (len(image),))
        if "mask" in batch:
            counts = batch["mask"] > 0
            share = jnp.where(counts & _partners(counts), share, 1)
        mix, share = mixer(key, share, image)
        images = [n for n in batch if n == "image" or n.endswith("_image")]
        mixed = {n: mix(batch[n]) for n in images}
        mixed["label"] = share[:, None] * probs + (1 - share[:, None]) * _partners(probs)
        if "mask" in batch:
            mask = batch["mask"].astype(jnp.float32)
            mixed["mask"] = share * mask + (1 - share) * _partners(mask)
        return {**batch, **mixed}

    return view_fn


def _partners(x: Array) -> Array:
    """Return for every example the one that it is mixed with."""
    return jnp.roll(x, 1, axis=0)


def _probs(name: str, batch: Batch, num_classes: int) -> Array:
    """Return class probabilities, nan where a traced label that counts is no class."""
    label: Array = batch["label"]
    size = len(batch["image"])
    if label.shape == (size, num_classes) and jnp.issubdtype(label.dtype, jnp.floating):
        return label.astype(jnp.float32)
    if label.shape != (size,) or not jnp.issubdtype(label.dtype, jnp.integer):
        raise ValueError(
            f"{name}: batch['label'] is {label.dtype}{label.shape}, expected classes [{size}] or "
            f"probabilities [{size}, {num_classes}]"
        )
    wrong = ~within(label, num_classes)
    if "mask" in batch:
        wrong &= batch["mask"] > 0
    found, values = metrics.known(wrong), metrics.known(label)
    if found is not None and values is not None and found.any():
        raise ValueError(
            f"{name}: batch['label'] has {values[found][0]}, expected 0 to {num_classes - 1}"
        )
    probs = jax.nn.one_hot(in_wide(jnp.asarray(label)), num_classes, dtype=jnp.float32)
    return jnp.where(wrong[:, None], jnp.nan, probs)


def _check(name: str, num_classes: int, alpha: float) -> None:
    if num_classes < 2:
        raise ValueError(f"{name}: num_classes is {num_classes}, expected 2 or more")
    if not alpha > 0:
        raise ValueError(f"{name}: alpha is {alpha}, expected a positive number")
