"""Augmentation on the device: pure functions of a key and a batch of images.

Images are [batch, height, width, channels] of any type; every example is drawn its own change.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.types import Array, Batch

ImageFn = Callable[[Array, Array], Array]


def flip(key: Array, images: Array) -> Array:
    """Mirror half of the images left to right.

    Args:
        key: a PRNG key.
        images: [batch, height, width, channels].

    Returns:
        Images of the same shape and type.

    Example:
        >>> import jax
        >>> from kdjax import data
        >>> images = jax.numpy.ones((2, 8, 8, 1))
        >>> jax.jit(data.flip)(jax.random.key(0), images).shape
        (2, 8, 8, 1)
    """
    mirrored = jax.random.bernoulli(key, shape=(images.shape[0], 1, 1, 1))
    return jnp.where(jnp.broadcast_to(mirrored, images.shape), images[:, :, ::-1], images)


def jitter(key: Array, images: Array, *, max_shift: int = 2) -> Array:
    """Shift every image by whole pixels, each way; black enters at the edges.

    Args:
        key: a PRNG key.
        images: [batch, height, width, channels].
        max_shift: the largest shift in pixels, vertically and horizontally.

    Returns:
        Images of the same shape and type.

    Raises:
        ValueError: if the shift is negative or as large as the image.

    Example:
        >>> import jax
        >>> from kdjax import data
        >>> images = jax.numpy.ones((2, 8, 8, 1))
        >>> jax.eval_shape(data.jitter, jax.random.key(0), images).shape
        (2, 8, 8, 1)
    """
    _check_margin("jitter: max_shift", max_shift, images)
    shifts = jax.random.randint(key, (images.shape[0], 2), 0, 2 * max_shift + 1)
    edges = (max_shift, max_shift)
    padded = jnp.pad(images, ((0, 0), edges, edges, (0, 0)))

    def crop(image: Array, shift: Array) -> Array:
        return jax.lax.dynamic_slice(image, (shift[0], shift[1], 0), images.shape[1:])

    return jax.vmap(crop)(padded, shifts)


def translate(key: Array, images: Array, *, max_shift: float = 2.0) -> Array:
    """Shift every image by a real number of pixels, each way, interpolating; black enters.

    Between whole pixels lie other images than `jitter` draws: a richer set for the same range.

    Args:
        key: a PRNG key.
        images: [batch, height, width, channels].
        max_shift: the largest shift in pixels, vertically and horizontally.

    Returns:
        Images of the same shape, float32.

    Raises:
        ValueError: if the shift is negative or as large as the image.

    Example:
        >>> import jax
        >>> from kdjax import data
        >>> images = jax.numpy.ones((2, 8, 8, 1))
        >>> jax.eval_shape(data.translate, jax.random.key(0), images).shape
        (2, 8, 8, 1)
    """
    _check_margin("translate: max_shift", max_shift, images)
    margin = math.ceil(max_shift)
    shape = (images.shape[0], 2)
    shifts = margin + jax.random.uniform(
        key, shape, jnp.float32, minval=-max_shift, maxval=max_shift
    )
    whole = jnp.floor(shifts).astype(jnp.int32)
    edges = (margin, margin + 1)
    padded = jnp.pad(images.astype(jnp.float32), ((0, 0), edges, edges, (0, 0)))
    height, width, channels = images.shape[1:]

    def crop(image: Array, start: Array, rest: Array) -> Array:
        corner = *start, jnp.zeros_like(start[0])
        x = jax.lax.dynamic_slice(image, corner, (height + 1, width + 1, channels))
        x = (1 - rest[0]) * x[:-1] + rest[0] * x[1:]
        return (1 - rest[1]) * x[:, :-1] + rest[1] * x[:, 1:]

    return jax.vmap(crop)(padded, whole, shifts - whole)


def warp(key: Array, images: Array, *, max_shift: float = 2.0, num_points: int = 4) -> Array:
    """Move the parts of every image apart: turned, stretched and bent a little; black enters.

    The points of a grid over the image are moved by real numbers of pixels, each its own, the
    pixels in between by linear interpolation; no pixel is moved by more than `max_shift` each way.

    Args:
        key: a PRNG key.
        images: [batch, height, width, channels].
        max_shift: the largest move in pixels, vertically and horizontally.
        num_points: points of the grid along each axis, from edge to edge; 2 or more.

    Returns:
        Images of the same shape, float32.

    Raises:
        ValueError: if the move is negative or as large as the image, or the grid has fewer than
            two points.

    Example:
        >>> import jax
        >>> from kdjax import data
        >>> images = jax.numpy.ones((2, 8, 8, 1))
        >>> jax.eval_shape(data.warp, jax.random.key(0), images).shape
        (2, 8, 8, 1)

    References:
        Simard, Steinkraus, Platt, "Best Practices for Convolutional Neural Networks Applied to
        Visual Document Analysis", 2003, ICDAR, section 2, for the use of smooth fields of moves.
    """
    _check_margin("warp: max_shift", max_shift, images)
    if num_points < 2:
        raise ValueError(f"warp: num_points is {num_points}, expected 2 or more")
    height, width = images.shape[1:3]
    shape = (images.shape[0], 2, num_points, num_points)
    moves = jax.random.uniform(key, shape, jnp.float32, minval=-max_shift, maxval=max_shift)
    rows, columns = _between(height, num_points), _between(width, num_points)
    field = jnp.einsum("hi,baij,wj->bahw", rows, moves, columns)
    grid = jnp.stack(jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij"))

    def sample(plane: Array, at: Array) -> Array:
        sampled: Array = jax.scipy.ndimage.map_coordinates(plane, list(at), order=1)
        return sampled

    channels = jax.vmap(sample, in_axes=(-1, None), out_axes=-1)
    return jax.vmap(channels)(images.astype(jnp.float32), field + grid[None])


def _between(size: int, num_points: int) -> Array:
    """Return the shares of the points in every pixel, [size, num_points]: linear in between."""
    at = jnp.linspace(0, num_points - 1, size)
    return jnp.maximum(0, 1 - jnp.abs(at[:, None] - jnp.arange(num_points)[None]))


def erase(
    key: Array,
    images: Array,
    *,
    share: float = 0.5,
    area: tuple[float, float] = (0.02, 0.33),
    proportions: tuple[float, float] = (0.3, 3.3),
) -> Array:
    """Paint a rectangle of some images in their mean color.

    Args:
        key: a PRNG key.
        images: [batch, height, width, channels].
        share: how often an image loses a rectangle.
        area: least and most of the image that it takes, as shares; what would stand over the edge
            is moved inside.
        proportions: least and most of height over width, drawn alike in logarithms.

    Returns:
        Images of the same shape and type.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> import jax
        >>> from kdjax import data
        >>> images = jax.numpy.ones((2, 8, 8, 1))
        >>> jax.eval_shape(data.erase, jax.random.key(0), images).shape
        (2, 8, 8, 1)

    References:
        Zhong, Zheng, Kang, Li, Yang, "Random Erasing Data Augmentation", 2017, arXiv:1708.04896.

    Differs from the paper: a rectangle that does not fit is narrowed to the image instead of drawn
    again, and its color is the image's mean, not noise.
    """
    low, high = proportions
    if not (0 <= share <= 1 and 0 < area[0] <= area[1] <= 1 and 0 < low <= high):
        raise ValueError(
            f"erase: share is {share}, area {area}, proportions {proportions}; expected shares in "
            "[0, 1] and positive proportions, the smaller one first"
        )
    batch, height, width, _ = images.shape
    keys = jax.random.split(key, 4)
    of_area = jax.random.uniform(keys[0], (batch,), jnp.float32, minval=area[0], maxval=area[1])
    logs = jax.random.uniform(
        keys[1], (batch,), jnp.float32, minval=math.log(low), maxval=math.log(high)
    )
    # Of shares of the image's own sides, of which one may be the longer.
    logs = logs - math.log(height / width)
    sides = jnp.stack([jnp.sqrt(of_area * jnp.exp(s * logs)) for s in (1, -1)], axis=1)
    sides = jnp.minimum(sides, 1)
    corner = jax.random.uniform(keys[2], (batch, 2), jnp.float32) * (1 - sides)
    is_erased = jax.random.bernoulli(keys[3], share, (batch, 1))

    def inside(i: int, size: int) -> Array:
        at = (jnp.arange(size) + 0.5)[None] / size - corner[:, i : i + 1]
        return (at >= 0) & (at < sides[:, i : i + 1]) & is_erased

    rectangle = inside(0, height)[:, :, None, None] & inside(1, width)[:, None, :, None]
    mean = jnp.mean(images.astype(jnp.float32), axis=(1, 2), keepdims=True)
    return jnp.where(rectangle, mean.astype(images.dtype), images)


def all_shifts(images: np.ndarray, *, max_shift: int = 2) -> np.ndarray:
    """Make every image that `jitter` may make: a teacher answers them all once, then rests.

    Args:
        images: [examples, height, width, channels], on the host.
        max_shift: the largest shift in pixels, vertically and horizontally.

    Returns:
        [(2 max_shift + 1)^2, examples, height, width, channels], the images as they are in the
        middle of the first axis.

    Raises:
        ValueError: if the shift is negative or as large as the image.

    Example:
        >>> import numpy as np
        >>> from kdjax import data
        >>> data.all_shifts(np.ones((3, 8, 8, 1)), max_shift=1).shape
        (9, 3, 8, 8, 1)
    """
    _check_margin("all_shifts: max_shift", max_shift, images)
    height, width = images.shape[1:3]
    edges, steps = (max_shift, max_shift), range(2 * max_shift + 1)
    padded = np.pad(images, ((0, 0), edges, edges, (0, 0)))
    return np.stack(
        [padded[:, top : top + height, left : left + width] for top in steps for left in steps]
    )


def pad_and_crop(key: Array, images: Array, *, padding: int = 4) -> Array:
    """Pad with black and cut out a window of the old size: the field's crop for small images.

    Args:
        key: a PRNG key.
        images: [batch, height, width, channels].
        padding: pixels of padding on every side.

    Returns:
        Images of the same shape and type.

    Raises:
        ValueError: if the padding is negative or as large as the image.

    Example:
        >>> import jax
        >>> from kdjax import data
        >>> images = jax.numpy.ones((2, 8, 8, 1))
        >>> jax.eval_shape(data.pad_and_crop, jax.random.key(0), images).shape
        (2, 8, 8, 1)
    """
    _check_margin("pad_and_crop: padding", padding, images)
    return jitter(key, images, max_shift=padding)


def augment(*functions: ImageFn) -> Callable[[Array, Batch], Batch]:
    """Compose augmentations into a view of a batch.

    Args:
        functions: applied in order, each with a key of its own, to `batch["image"]` and to every
            other image of the same examples, such as `teacher_image`: those get the same view.

    Returns:
        A function of a key and a batch, for `kdjax.step.with_teacher(view_fn=...)`.

    Raises:
        ValueError: from the function, if the view would leave something of the batch behind:
            images of another size, of which a shift by pixels is another view (`flip` is the
            same), or labels and masks of pixels.

    Example:
        >>> import jax
        >>> from kdjax import data
        >>> view = data.augment(data.flip, data.pad_and_crop)
        >>> batch = {"image": jax.numpy.ones((2, 8, 8, 1)), "label": jax.numpy.arange(2)}
        >>> jax.eval_shape(view, jax.random.key(0), batch)["image"].shape
        (2, 8, 8, 1)
    """

    def view_fn(key: Array, batch: Batch) -> Batch:
        size = batch["image"].shape[:3]
        names = [name for name in batch if name == "image" or name.endswith("_image")]
        for name in names:
            if batch[name].shape[:3] != size and {*functions} - {flip}:
                raise ValueError(
                    f"augment: {name} has shape {batch[name].shape}, image "
                    f"{batch['image'].shape}, of which a view by pixels is another; keep one of "
                    "the two and resize what it shows in inputs_fn"
                )
        for name in batch.keys() - {*names}:
            if jnp.shape(batch[name])[:3] == size:
                raise ValueError(
                    f"augment: {name} has shape {batch[name].shape}, one for each pixel, but only "
                    "images are augmented; write a view_fn that moves both"
                )

        def view(images: Array) -> Array:
            for i, function in enumerate(functions):
                images = function(jax.random.fold_in(key, i), images)
            return images

        return {**batch, **{name: view(batch[name]) for name in names}}

    return view_fn


def _check_margin(name: str, margin: float, images: Array | np.ndarray) -> None:
    if not 0 <= margin < min(images.shape[1:3]):
        raise ValueError(f"{name} is {margin}, images are {images.shape[1:3]}")
