"""Vision transformers, in Linen: patches as tokens, blocks of attention and perceptrons."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kdjax.models._layers import DType, Features, check_rates, head
from kdjax.models._linen import from_linen
from kdjax.types import Array, FeaturePaths, Model

_INIT = nn.initializers.truncated_normal(0.02)


def attend(query: Array, key: Array, value: Array) -> Array:
    """Return the values' means by the keys' likeness to each query, [..., tokens, heads, width].

    The sum of the weights divides what they give, not each of them: fewer passes over the largest
    array. Weights and sums are float32 at least.
    """
    wide = jnp.promote_types(query.dtype, jnp.float32)
    product = functools.partial(jnp.einsum, preferred_element_type=wide)
    scores = product("...qhd,...khd->...hqk", query * query.shape[-1] ** -0.5, key)
    top = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - top)
    total = jnp.swapaxes(jnp.sum(weights, axis=-1), -2, -1)[..., None]
    means = product("...hqk,...khd->...qhd", weights.astype(value.dtype), value)
    return jnp.asarray(means / total, value.dtype)


def gelu(x: Array) -> Array:
    """Return the exact GELU, `x` times the normal distribution's share below it.

    From float32 on by the error function, of one polynomial. Half precision would lose the small
    shares so: there it is jax's, by the complement, which has an exponential and two polynomials.
    """
    if x.dtype.itemsize < 4:
        return jax.nn.gelu(x, approximate=False)
    return x * (0.5 + 0.5 * jax.lax.erf(x * math.sqrt(0.5)))


class Tokens(nn.Module):
    """A class token, perhaps one of distillation, before the patches; positions added to all."""

    names: tuple[str, ...] = ("class_token",)

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return [batch, tokens + height * width, width] for [batch, height, width, width]."""
        x = jnp.reshape(x, (x.shape[0], -1, x.shape[-1]))
        first = [self.param(name, _INIT, (1, 1, x.shape[-1])) for name in self.names]
        shape = x.shape[0], 1, x.shape[-1]
        x = jnp.concatenate([*(jnp.broadcast_to(t, shape).astype(x.dtype) for t in first), x], 1)
        position = self.param("position", _INIT, (1, *x.shape[1:]))
        return x + jnp.broadcast_to(position, x.shape).astype(x.dtype)


class FeedForward(nn.Module):
    """Two dense layers around a GELU: `up`, `down`."""

    width: int
    dropout: float = 0.0
    dtype: DType = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Return [batch, tokens, width of x]."""
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=_INIT)
        y = gelu(dense(self.width, name="up")(x))
        y = nn.Dropout(self.dropout, deterministic=not train, name="drop")(y)
        return dense(x.shape[-1], name="down")(y)


class EncoderBlock(nn.Module):
    """Attention and a perceptron, each behind a LayerNorm and added to what it read.

    Modules: `norm_1`, `attention` (`query`, `key`, `value`, `out`), `norm_2`, `mlp` (`up`, `down`).
    """

    num_heads: int
    mlp_width: int
    dropout: float = 0.0
    drop_path: float = 0.0
    dtype: DType = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Return [batch, tokens, width of x]."""
        norm = functools.partial(nn.LayerNorm, epsilon=1e-6, dtype=self.dtype)
        drop = functools.partial(nn.Dropout, self.dropout, deterministic=not train)
        path = functools.partial(
            nn.Dropout, self.drop_path, broadcast_dims=(1, 2), deterministic=not train
        )
        attention = nn.MultiHeadDotProductAttention(
            self.num_heads,
            dtype=self.dtype,
            kernel_init=_INIT,
            attention_fn=attend,
            name="attention",
        )
        y = attention(norm(name="norm_1")(x))
        x = x + path(name="path_1")(drop(name="drop_1")(y))
        feed_forward = FeedForward(self.mlp_width, self.dropout, self.dtype, name="mlp")
        y = feed_forward(norm(name="norm_2")(x), train=train)
        dropped: Array = path(name="path_2")(drop(name="drop_2")(y))
        return x + dropped


class Embedding(nn.Module):
    """A token, the class token by default: a module, so that what a head reads can be captured."""

    token: int = 0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return [batch, width] for [batch, tokens, width]."""
        return x[:, self.token]


class VisionTransformer(nn.Module):
    """A transformer over the patches of an image.

    Modules: `patches`, `tokens`, `block_0`, `block_1`, ..., `norm`, `embedding`, `head`; those
    within a block are in `EncoderBlock`. What a block returns is [batch, tokens, width], the class
    token first. With a distillation token there are `distillation_embedding` and
    `distillation_head` too, and the logits are the mean of what the two heads say.

    References:
        Dosovitskiy et al., "An Image is Worth 16x16 Words: Transformers for Image Recognition at
        Scale", 2020, arXiv:2010.11929.
        Touvron, Cord, Douze, Massa, Sablayrolles, Jegou, "Training data-efficient image
        transformers & distillation through attention", 2020, arXiv:2012.12877 (sizes, initial
        values).
    """

    num_classes: int
    patch_size: int
    width: int
    depth: int
    num_heads: int
    mlp_width: int
    dropout: float = 0.0
    drop_path: float = 0.0
    distillation_token: bool = False
    dtype: DType = None

    @nn.compact
    def __call__(self, inputs: Array, *, train: bool) -> Array:
        """Return logits [batch, num_classes] for inputs [batch, height, width, channels]."""
        _check_image(inputs.shape, self.patch_size)
        sides = (self.patch_size, self.patch_size)
        x = nn.Conv(
            self.width, sides, sides, "VALID", dtype=self.dtype, kernel_init=_INIT, name="patches"
        )(inputs)
        tokens = ("class_token", "distillation_token")[: 1 + self.distillation_token]
        x = Tokens(tokens, name="tokens")(x)
        x = nn.Dropout(self.dropout, deterministic=not train, name="drop_tokens")(x)
        for i in range(self.depth):
            # The first block is always there, the last one is the least often.
            rates = self.dropout, self.drop_path * i / max(1, self.depth - 1)
            sizes = self.num_heads, self.mlp_width
            x = EncoderBlock(*sizes, *rates, self.dtype, name=f"block_{i}")(x, train=train)
        x = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm")(x)
        read = functools.partial(head, self.num_classes, self.dtype, kernel_init=_INIT)
        logits = read()(Embedding(name="embedding")(x))
        if not self.distillation_token:
            return logits
        second = Embedding(1, name="distillation_embedding")(x)
        return (logits + read(name="distillation_head")(second)) / 2


def vit(
    num_classes: int,
    *,
    patch_size: int,
    width: int,
    depth: int,
    num_heads: int,
    mlp_width: int | None = None,
    dropout: float = 0.0,
    drop_path: float = 0.0,
    distillation_token: bool = False,
    dtype: DType = None,
    features: Features = (),
) -> Model:
    """Make a vision transformer of [batch, height, width, channels].

    `vit_mu`, `vit_ti`, `vit_s` and `vit_b` are this with the field's sizes; `vit_s(1000,
    patch_size=16)` is ViT-S/16.

    Args:
        num_classes: the number of logits.
        patch_size: pixels a side of a patch; it divides height and width.
        width: of the tokens, a multiple of `num_heads`.
        depth: the number of blocks.
        num_heads: attention heads.
        mlp_width: hidden units of a block's perceptron, four times the width by default.
        dropout: rate on the tokens, on hidden units and on what a block adds.
        drop_path: rate at which an image skips the two branches of the last block; it grows with
            the depth from 0 at the first (stochastic depth, Huang, Sun, Liu, Sedra, Weinberger,
            2016, arXiv:1603.09382).
        distillation_token: a second token with a head of its own, `distillation_head`, to learn
            from the teacher while `head` learns from the labels (`kdjax.terms.with_logits_of`);
            the logits are the mean of the two.
        dtype: what the layers compute in, for example `jnp.bfloat16`; parameters, the softmax of
            the attention and the logits are float32 all the same. None: the inputs' type, float32
            at least.
        features: paths to capture: "block_3", "block_0/attention", "embedding", ...

    Returns:
        A model; its parameters depend on the images' size through the positions.

    Raises:
        ValueError: if a number is out of range; from init and apply, if the images do not divide
            into patches.

    Example:
        >>> from kdjax import models
        >>> network = models.vit(10, patch_size=4, width=32, depth=1, num_heads=2)
        >>> network.paths.embedding
        'embedding'
    """
    sizes: dict[str, Any] = {"num_classes": num_classes, "patch_size": patch_size, "width": width}
    sizes |= {"depth": depth, "num_heads": num_heads}
    sizes |= {"mlp_width": 4 * width if mlp_width is None else mlp_width}
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"vit: {name} is {size}, expected at least 1")
    if width % num_heads:
        raise ValueError(f"vit: width is {width}, expected a multiple of num_heads, {num_heads}")
    check_rates("vit", dropout=dropout, drop_path=drop_path)
    module = VisionTransformer(
        **sizes,
        dropout=dropout,
        drop_path=drop_path,
        distillation_token=distillation_token,
        dtype=dtype,
    )
    return from_linen(module, features=features, paths=_paths(depth, distillation_token))


vit_mu = functools.partial(vit, width=32, depth=1, num_heads=2)
vit_ti = functools.partial(vit, width=192, depth=12, num_heads=3)
vit_s = functools.partial(vit, width=384, depth=12, num_heads=6)
vit_b = functools.partial(vit, width=768, depth=12, num_heads=12)


def _paths(depth: int, distillation_token: bool) -> FeaturePaths:
    """Return the feature paths: the last block of each quarter of the depth counts as a stage."""
    blocks = sorted({max(1, depth * i // 4) - 1 for i in range(1, 5)})
    stages, hidden = (tuple(f"block_{i}{inner}" for i in blocks) for inner in ("", "/mlp/up"))
    heads = ("head", "distillation_head") if distillation_token else ()
    return FeaturePaths(stages, hidden, embedding="embedding", head="head", heads=heads)


def _check_image(shape: tuple[int, ...], patch_size: int) -> None:
    if len(shape) != 4 or shape[1] % patch_size or shape[2] % patch_size:
        raise ValueError(
            f"vit: inputs have shape {shape}, expected [batch, height, width, channels] that "
            f"divide into patches of {patch_size} x {patch_size}"
        )
