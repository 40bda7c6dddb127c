"""Which classes belong together: clusters of the covariance of a generalist's predictions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from kdjax.types import Array


def prediction_covariance(logits: ArrayLike, *, temperature: float = 1.0) -> Array:
    """Measure which classes a classifier tends to predict together.

        covariance over examples of softmax(logits / temperature)

    Args:
        logits: the generalist's, for any examples, labeled or not, [examples, num_classes].
        temperature: softens the predictions; above 1 it shows more of what a confident classifier
            holds for likely besides the class it predicts.

    Returns:
        Symmetric, float32 [num_classes, num_classes]; every row sums to zero.

    Raises:
        ValueError: if the logits are not a matrix or the temperature is not positive.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from kdjax import specialists
        >>> jax.eval_shape(specialists.prediction_covariance, jnp.ones((50, 4))).shape
        (4, 4)
    """
    logits = jnp.asarray(logits)
    if logits.ndim != 2:
        raise ValueError(
            f"prediction_covariance: logits has shape {logits.shape}, "
            "expected [examples, num_classes]"
        )
    if not temperature > 0:
        raise ValueError(f"prediction_covariance: temperature must be positive, got {temperature}")
    covariance: Array = _covariance(logits, temperature)
    return covariance


def confusable_classes(
    key: Array,
    logits: ArrayLike,
    *,
    num_sets: int,
    set_size: int,
    temperature: float = 4.0,
    num_tries: int = 10,
) -> Array:
    """Choose the classes of specialists: those that a generalist often predicts together.

    The columns of the covariance of the predictions, scaled to unit length, are clustered by online
    K-means. The entries of a centroid say how strongly each class is predicted together with those
    of the cluster, so the `set_size` largest of them make the set: all specialists have one shape,
    and sets may overlap, as the paper's do; a class may be in none.

    Args:
        key: a PRNG key; the same key gives the same sets.
        logits: the generalist's, [examples, num_classes].
        num_sets: the number of specialists.
        set_size: classes of each, less than num_classes.
        temperature: of the predictions, see `prediction_covariance`.
        num_tries: how often to cluster from other first centroids; the tightest clusters are taken.

    Returns:
        Classes of every set, the most typical first, int32 [num_sets, set_size].

    Raises:
        ValueError: if a number is out of range or the logits are not a matrix.

    Example:
        >>> import functools
        >>> import jax
        >>> from kdjax import specialists
        >>> choose = functools.partial(specialists.confusable_classes, num_sets=2, set_size=3)
        >>> jax.eval_shape(choose, jax.random.key(1), jax.numpy.ones((50, 6))).shape
        (2, 3)

    References:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015,
        arXiv:1503.02531, section 5.3.

    Differs from the paper: which says nothing of a temperature, of lengths, or of how a cluster
    becomes a set of a given size. At temperature 1 a column is little more than the variance of
    its own class, and without the scaling large columns are far from all others and small ones
    near: clusters are then one large and many of a single class.
    """
    covariance = prediction_covariance(logits, temperature=temperature)
    num_classes = covariance.shape[0]
    if not 1 <= set_size < num_classes:
        raise ValueError(
            f"confusable_classes: set_size is {set_size}, expected 1 to {num_classes - 1}: "
            "at least one class is left for the dustbin"
        )
    if num_tries < 1:
        raise ValueError(f"confusable_classes: num_tries is {num_tries}, expected at least 1")
    columns = covariance / jnp.maximum(
        jnp.linalg.norm(covariance, axis=-1, keepdims=True), np.finfo(np.float32).tiny
    )
    tries = [
        online_kmeans(k, columns, num_clusters=num_sets) for k in jax.random.split(key, num_tries)
    ]
    spreads = [jnp.min(_distances(columns, centroids), axis=0).sum() for centroids in tries]
    best = jnp.stack(tries)[jnp.argmin(jnp.stack(spreads))]
    return jax.lax.top_k(best, set_size)[1].astype(jnp.int32)


def online_kmeans(
    key: Array, points: ArrayLike, *, num_clusters: int, batch_size: int = 32, num_steps: int = 1000
) -> Array:
    """Cluster points that arrive in small batches.

    Every point of a batch pulls its nearest centroid, each by one over the number of points that
    the centroid has had: a centroid is the mean of what came to it. The first centroids are points
    far from each other, drawn as in k-means++. A centroid that no point is nearest to in the end
    moves to the point that is farthest from its own, until none is left without.

    Args:
        key: a PRNG key.
        points: [points, dimensions].
        num_clusters: not more than there are points.
        batch_size: points in a step, drawn at random.
        num_steps: the number of batches.

    Returns:
        Centroids, float32 [num_clusters, dimensions]. None is without points, unless fewer points
        than that differ.

    Raises:
        ValueError: if a number is out of range or the points are not a matrix.

    Example:
        >>> import functools
        >>> import jax
        >>> from kdjax import specialists
        >>> cluster = functools.partial(specialists.online_kmeans, num_clusters=3)
        >>> jax.eval_shape(cluster, jax.random.key(1), jax.numpy.ones((64, 2))).shape
        (3, 2)

    References:
        MacQueen, "Some Methods for Classification and Analysis of Multivariate Observations", 1967.
        Arthur & Vassilvitskii, "k-means++: The Advantages of Careful Seeding", 2007.
        Sculley, "Web-Scale K-Means Clustering", 2010.
    """
    points = jnp.asarray(points, jnp.float32)
    if points.ndim != 2:
        raise ValueError(
            f"online_kmeans: points has shape {points.shape}, expected [points, dimensions]"
        )
    if not 1 <= num_clusters <= len(points):
        raise ValueError(
            f"online_kmeans: num_clusters is {num_clusters}, expected 1 to {len(points)}"
        )
    if batch_size < 1 or num_steps < 0:
        raise ValueError(
            f"online_kmeans: batch_size is {batch_size} and num_steps {num_steps}, "
            "expected at least 1 and 0"
        )
    centroids: Array = _kmeans(key, points, num_clusters, batch_size, num_steps)
    return centroids


def nearest_centroids(points: ArrayLike, centroids: ArrayLike) -> Array:
    """Assign points to clusters.

    Args:
        points: [points, dimensions].
        centroids: [clusters, dimensions].

    Returns:
        The nearest centroid of every point, the first of equals, int32 [points].

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax import specialists
        >>> points, centroids = jnp.array([[0.0], [1.0], [9.0]]), jnp.array([[0.0], [10.0]])
        >>> print(specialists.nearest_centroids(points, centroids))
        [0 0 1]
    """
    points, centroids = jnp.asarray(points, jnp.float32), jnp.asarray(centroids, jnp.float32)
    return jnp.argmin(_distances(points, centroids), axis=0).astype(jnp.int32)


@jax.jit
def _covariance(logits: Array, temperature: float) -> Array:
    probs = jax.nn.softmax(logits.astype(jnp.float32) / temperature, axis=-1)
    centered = probs - jnp.mean(probs, axis=0, keepdims=True)
    return centered.T @ centered / probs.shape[0]


def _distances(points: Array, centroids: Array) -> Array:
    """Return squared distances [clusters, points]: from differences, so that equals are at zero."""

    def from_one(centroid: Array) -> Array:
        return jnp.sum(jnp.square(points - centroid[None]), axis=-1)

    distances: Array = jax.lax.map(from_one, centroids)
    return distances


@functools.partial(jax.jit, static_argnames=("num_clusters", "batch_size", "num_steps"))
def _kmeans(key: Array, points: Array, num_clusters: int, batch_size: int, num_steps: int) -> Array:
    first_key, batch_key = jax.random.split(key)

    def step(carry: tuple[Array, Array], key: Array) -> tuple[tuple[Array, Array], None]:
        centroids, counts = carry
        batch = points[jax.random.randint(key, (batch_size,), 0, points.shape[0])]
        nearest = jnp.argmin(_distances(batch, centroids), axis=0)
        hits = jax.nn.one_hot(nearest, num_clusters)
        new, counts = jnp.sum(hits, axis=0), counts + jnp.sum(hits, axis=0)
        pull = hits.T @ batch - new[:, None] * centroids
        return (centroids + pull / jnp.maximum(counts, 1)[:, None], counts), None

    start = (_spread_out(first_key, points, num_clusters), jnp.zeros(num_clusters))
    (centroids, _), _ = jax.lax.scan(step, start, jax.random.split(batch_key, num_steps))
    return _without_empty(points, centroids)


def _spread_out(key: Array, points: Array, num_clusters: int) -> Array:
    """Draw points one by one, each with a probability that grows with its squared distance."""
    first_key, key = jax.random.split(key)
    first = points[jax.random.randint(first_key, (), 0, points.shape[0])]

    def body(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        chosen, distance = carry
        drawn = jax.random.categorical(jax.random.fold_in(key, i), jnp.log(distance))
        # Where all points are at zero distance, all logits are -inf: any point will do.
        point = points[drawn]
        distance = jnp.minimum(distance, jnp.sum(jnp.square(points - point[None]), axis=-1))
        return chosen.at[i].set(point), distance

    chosen = jnp.zeros((num_clusters, points.shape[1])).at[0].set(first)
    distance = jnp.sum(jnp.square(points - first[None]), axis=-1)
    found: tuple[Array, Array] = jax.lax.fori_loop(1, num_clusters, body, (chosen, distance))
    return found[0]


def _without_empty(points: Array, centroids: Array) -> Array:
    """Move centroids without points. It ends: each move brings points nearer to their centroids."""

    def survey(centroids: Array) -> tuple[Array, Array]:
        distances = _distances(points, centroids)
        used = jnp.zeros(len(centroids), bool).at[jnp.argmin(distances, axis=0)].set(True)
        return used, jnp.min(distances, axis=0)

    def unfinished(carry: tuple[Array, Array, Array]) -> Array:
        _, used, distance = carry
        return ~jnp.all(used) & (jnp.max(distance) > 0)

    def body(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        centroids, used, distance = carry
        centroids = centroids.at[jnp.argmin(used)].set(points[jnp.argmax(distance)])
        return centroids, *survey(centroids)

    moved: Array = jax.lax.while_loop(unfinished, body, (centroids, *survey(centroids)))[0]
    return moved
