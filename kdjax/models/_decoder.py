"""Language models, in Linen: tokens, blocks of causal attention and gated perceptrons, a head."""

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kdjax.heads import Head
from kdjax.losses._numbers import known
from kdjax.models._decoder_spec import DecoderSpec, Details, check_spec
from kdjax.models._layers import DType, Features, Initializer
from kdjax.models._linen import from_linen
from kdjax.types import Array, Decode, FeaturePaths, Model, PyTree

_INIT = nn.initializers.normal(0.02)
FROZEN = "frozen"
"""The collection of an embedding table that is not trained."""


_USUAL = Details()


class Memory(NamedTuple):
    """Keys and values of the tokens that a layer has read, [batch, length, heads, head_width]."""

    keys: Array
    values: Array


class Cache(NamedTuple):
    """What a decoder remembers of each row: a memory for each layer, and how much was read."""

    layers: tuple[Memory, ...]
    read: Array

    @property
    def length(self) -> int:
        """The most tokens that can be read."""
        return self.layers[0].keys.shape[1]


class CausalAttention(nn.Module):
    """Attention with rotary positions, in which groups of queries share a key and a value.

    Modules: `query`, `key`, `value`, `out`, and with `query_key_norm` `query_norm`, `key_norm`.
    """

    num_heads: int
    num_key_heads: int
    details: Details
    out_init: Initializer
    dtype: DType = None

    @nn.compact
    def __call__(
        self, x: Array, positions: Array, mask: Array, memory: Memory | None = None
    ) -> Any:
        """Return [batch, tokens, width of x]; with a memory also what it becomes.

        `positions` are [batch, tokens], `mask` [batch, 1, tokens, tokens that may be read].
        """
        own, width = self.details, self.details.head_width or x.shape[-1] // self.num_heads
        dense = functools.partial(
            nn.DenseGeneral, use_bias=own.bias, dtype=self.dtype, kernel_init=_INIT
        )
        query = dense((self.num_heads, width), name="query")(x)
        key = dense((self.num_key_heads, width), name="key")(x)
        value = dense((self.num_key_heads, width), name="value")(x)
        if own.query_key_norm:
            norm = functools.partial(nn.RMSNorm, epsilon=own.epsilon, dtype=self.dtype)
            query, key = norm(name="query_norm")(query), norm(name="key_norm")(key)
        frequencies = own.rotary.frequencies(width)
        query, key = (_rotated(z, positions, frequencies) for z in (query, key))
        if memory is not None:
            rows = jnp.arange(len(x))[:, None]
            keys = memory.keys.at[rows, positions].set(key.astype(memory.keys.dtype))
            values = memory.values.at[rows, positions].set(value.astype(memory.values.dtype))
            memory = Memory(keys, values)
            key, value = keys.astype(query.dtype), values.astype(query.dtype)
        y = jax.nn.dot_product_attention(query, key, value, mask=mask)
        out = nn.DenseGeneral(
            x.shape[-1],
            axis=(-2, -1),
            use_bias=False,
            dtype=self.dtype,
            kernel_init=self.out_init,
            name="out",
        )
        return out(y) if memory is None else (out(y), memory)


class GatedFeedForward(nn.Module):
    """Hidden units, each times the SiLU of its gate (Shazeer, 2020, arXiv:2002.05202).

    Modules: `gate`, `up`, `down`.
    """

    width: int
    out_init: Initializer
    dtype: DType = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return [batch, tokens, width of x]."""
        dense = functools.partial(nn.Dense, use_bias=False, dtype=self.dtype)
        hidden = nn.silu(dense(self.width, kernel_init=_INIT, name="gate")(x))
        hidden = hidden * dense(self.width, kernel_init=_INIT, name="up")(x)
        return dense(x.shape[-1], kernel_init=self.out_init, name="down")(hidden)


class DecoderBlock(nn.Module):
    """Attention and a gated perceptron, each behind an RMSNorm and added to what it read.

    Modules: `norm_1`, `attention`, `norm_2`, `mlp`.
    """

    num_heads: int
    num_key_heads: int
    mlp_width: int
    details: Details
    out_init: Initializer
    dtype: DType = None

    @nn.compact
    def __call__(
        self, x: Array, positions: Array, mask: Array, memory: Memory | None = None
    ) -> Any:
        """Return [batch, tokens, width of x]; with a memory also what it becomes."""
        norm = functools.partial(nn.RMSNorm, epsilon=self.details.epsilon, dtype=self.dtype)
        heads, last = (self.num_heads, self.num_key_heads), (self.out_init, self.dtype)
        attention = CausalAttention(*heads, self.details, *last, name="attention")
        y = attention(norm(name="norm_1")(x), positions, mask, memory)
        if memory is not None:
            y, memory = y
        x = x + y
        x = x + GatedFeedForward(self.mlp_width, *last, name="mlp")(norm(name="norm_2")(x))
        return x if memory is None else (x, memory)


class Table(nn.Module):
    """A vector for each word, [vocab_size, width]: a parameter, or fixed, as part of the state."""

    vocab_size: int
    width: int
    frozen: bool = False

    def setup(self) -> None:
        """Make the table."""
        shape = self.vocab_size, self.width
        if self.frozen:
            made = self.variable(
                FROZEN, "embedding", lambda: _INIT(self.make_rng("params"), shape, jnp.float32)
            )
            self.embedding = made.value
        else:
            self.embedding = self.param("embedding", _INIT, shape)

    def __call__(self, tokens: Array) -> Array:
        """Return [..., width] for words [...]."""
        return jnp.take(self.embedding, tokens, axis=0)


class WordHead(nn.Module):
    """A logit for each word; its kernel is [vocab_size, width], as that of an embedding table."""

    vocab_size: int

    @nn.compact
    def __call__(self, x: Array, tied: Array | None = None) -> Array:
        """Return logits [..., vocab_size] in float32 or wider."""
        kernel = tied
        if kernel is None:
            kernel = self.param("kernel", _INIT, (self.vocab_size, x.shape[-1]))
        wide = jnp.promote_types(x.dtype, jnp.float32)
        return jnp.einsum("...w,vw->...v", x, kernel.astype(x.dtype), preferred_element_type=wide)


class Decoder(nn.Module):
    """A transformer that says of every token what comes next.

    Modules: `tokens`, `block_0`, `block_1`, ..., `norm`, `head`, and where the embedding has a
    width of its own `project_in`, `project_out`. A block returns [batch, tokens, width]; what the
    head reads is `norm`'s, or `project_out`'s.

    References:
        Vaswani et al., "Attention Is All You Need", 2017, arXiv:1706.03762.
        Touvron et al., "LLaMA: Open and Efficient Foundation Language Models", 2023,
        arXiv:2302.13971 (order of norms, rotary positions, gated perceptrons).
        Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021,
        arXiv:2104.09864. Ainslie et al., "GQA: Training Generalized Multi-Query Transformer Models
        from Multi-Head Checkpoints", 2023, arXiv:2305.13245.
    """

    spec: DecoderSpec
    dtype: DType = None

    @nn.compact
    def __call__(self, inputs: Any, *, train: bool, cache: Cache | None = None) -> Any:
        """Return logits [batch, tokens, vocab_size]; with a cache also what it becomes."""
        tokens, document = _parts(inputs)
        _check_tokens(tokens, self.spec, cache)
        positions, mask = _seen(tokens, document, cache)
        sizes, own, dtype = self.spec, self.spec.details, self.dtype
        table = Table(sizes.vocab_size, sizes.own_width, own.frozen_embedding, name="tokens")
        x = table(tokens) if dtype is None else table(tokens).astype(dtype)
        if own.embedding_width is not None:
            # The table's entries are small: what blocks read is as large as they expect.
            x = nn.Dense(sizes.width, use_bias=False, dtype=dtype, name="project_in")(x)
        out_init = nn.initializers.normal(0.02 / math.sqrt(2 * sizes.depth))
        heads, memories = (sizes.num_heads, sizes.num_key_heads), []
        for i in range(sizes.depth):
            block = DecoderBlock(*heads, sizes.mlp_width, own, out_init, dtype, name=f"block_{i}")
            if cache is None:
                x = block(x, positions, mask)
            else:
                x, memory = block(x, positions, mask, cache.layers[i])
                memories.append(memory)
        x = nn.RMSNorm(epsilon=own.epsilon, dtype=dtype, name="norm")(x)
        if own.embedding_width is not None:
            x = nn.Dense(sizes.own_width, use_bias=False, dtype=dtype, name="project_out")(x)
        tied = table.embedding if sizes.tied else None
        logits = WordHead(sizes.vocab_size, name="head")(x, tied)
        if cache is None:
            return logits
        return logits, Cache(tuple(memories), cache.read + tokens.shape[1])


def transformer(
    vocab_size: int,
    *,
    width: int,
    depth: int,
    num_heads: int,
    num_key_heads: int | None = None,
    mlp_width: int | None = None,
    tied: bool = True,
    context: int = 2048,
    details: Details = _USUAL,
    dtype: DType = None,
    features: Features = (),
) -> Model:
    """Make a language model: a decoder as Llama, Qwen and SmolLM are.

    It is fed tokens [batch, tokens], integers; or `{"tokens": ..., "document": ...}`, both
    [batch, tokens], where documents are packed into a row: a token then sees those of its own
    document alone. Every token sees itself and those before it. `Model.decode` reads a few tokens
    at a time, see `kdjax.generation`.

    Args:
        vocab_size: the number of words, and of logits.
        width: of the hidden states.
        depth: the number of blocks.
        num_heads: of queries.
        num_key_heads: of keys and values, a divisor of `num_heads`, which is the default.
        mlp_width: hidden units of a block's perceptron; by default 8/3 of the width, up to a
            multiple of 32.
        tied: whether the embedding table is the head's kernel too.
        context: the most tokens in a row.
        details: what tells families of decoders apart.
        dtype: what the layers compute in, for example `jnp.bfloat16`; parameters and logits are
            float32 all the same. None: float32.
        features: paths to capture: "norm" (what the head reads), "block_3", "block_0/attention".

    Returns:
        A model; `head_of` its variables is its head. Logits that nothing reads are not computed in
        a compiled program: a loss may take the "norm" feature and the head instead.

    Raises:
        ValueError: if a number is out of range; from init and apply, if there are more tokens than
            `context`, or what they are fed are no integers, or, where they are known, no words.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from kdjax import models
        >>> network = models.transformer(64, width=32, depth=1, num_heads=4)
        >>> tokens = jnp.ones((2, 5), jnp.int32)
        >>> variables = jax.eval_shape(network.init, jax.random.key(0), tokens)
        >>> models.num_params(variables.params)
        15456
    """
    key_heads = num_heads if num_key_heads is None else num_key_heads
    mlp_width = -(-8 * width // 96) * 32 if mlp_width is None else mlp_width
    sizes = vocab_size, width, depth, num_heads, key_heads, mlp_width
    return decoder(DecoderSpec(*sizes, context, tied, details), dtype, features)


def decoder(spec: DecoderSpec, dtype: DType = None, features: Features = ()) -> Model:
    """Make the language model that a specification describes, such as another's `decode.spec`.

    Args:
        spec: all sizes.
        dtype: as for `transformer`.
        features: as for `transformer`.

    Returns:
        A model, as of `transformer`.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> from kdjax import models
        >>> spec = models.transformer(64, width=32, depth=2, num_heads=4).decode.spec
        >>> models.decoder(spec, features=("norm",)).decode.vocab_size
        64
    """
    check_spec(spec)
    module = Decoder(spec, dtype)
    model = from_linen(module, features=features, paths=_paths(spec))
    heads = spec.num_key_heads, spec.head_width
    start = functools.partial(_empty, spec.depth, heads, dtype or jnp.float32)

    def apply(params: PyTree, state: PyTree, tokens: Array, cache: Cache) -> tuple[Array, Cache]:
        variables = {"params": params, **state}
        answer: Any = module.apply(variables, tokens, train=False, cache=cache)
        logits, cache = answer
        return logits, cache

    return model._replace(decode=Decode(start, apply, spec.vocab_size, spec.context, spec))


def head_of(variables: Any) -> Head:
    """Return the head of a `transformer`: its own kernel, or its embedding table.

    Args:
        variables: of the model, or the pair (params, state).

    Returns:
        A head whose kernel is [vocab_size, width].

    Raises:
        ValueError: if they have neither.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from kdjax import models
        >>> network = models.transformer(64, width=32, depth=1, num_heads=4)
        >>> tokens = jnp.ones((2, 5), jnp.int32)
        >>> variables = jax.eval_shape(network.init, jax.random.key(0), tokens)
        >>> models.head_of(variables).kernel.shape
        (64, 32)
    """
    params, state = variables
    own = params.get("head") or params.get("tokens") or state.get(FROZEN, {}).get("tokens")
    if not own:
        raise ValueError(
            f"head_of: params have {', '.join(params)}, expected those of a transformer: a head, "
            "or an embedding table"
        )
    return Head(own["kernel"] if "kernel" in own else own["embedding"])


def _paths(spec: DecoderSpec) -> FeaturePaths:
    """Return the feature paths: the last block of each quarter of the depth counts as a stage."""
    blocks = sorted({max(1, spec.depth * i // 4) - 1 for i in range(1, 5)})
    stages = tuple(f"block_{i}" for i in blocks)
    hidden = tuple(f"block_{i}/mlp/up" for i in blocks)
    embedding = "norm" if spec.details.embedding_width is None else "project_out"
    return FeaturePaths(stages, hidden, embedding, "head")


def _parts(inputs: Any) -> tuple[Array, Array | None]:
    """Return tokens, and the documents that they belong to where these are told."""
    if isinstance(inputs, Mapping):
        return inputs["tokens"], inputs.get("document")
    return inputs, None


def _check_tokens(tokens: Array, spec: DecoderSpec, cache: Cache | None) -> None:
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(
            f"transformer: inputs are {tokens.dtype}{list(tokens.shape)}, expected tokens, "
            "integers [batch, tokens]"
        )
    most, what = (spec.context, "context") if cache is None else (cache.length, "cache")
    if tokens.shape[1] > most:
        raise ValueError(
            f"transformer: {tokens.shape[1]} tokens in a row, more than its {what} of {most}"
        )
    ids = known(tokens)
    if ids is not None and ids.size and not 0 <= ids.min() <= ids.max() < spec.vocab_size:
        raise ValueError(
            f"transformer: tokens are {ids.min()} to {ids.max()}, expected ids of its vocabulary, "
            f"0 to {spec.vocab_size - 1}"
        )


def _seen(tokens: Array, document: Array | None, cache: Cache | None) -> tuple[Array, Array]:
    """Return positions [batch, tokens], and who sees whom, [batch, 1, tokens, tokens to read]."""
    batch, count = tokens.shape
    own = jnp.broadcast_to(jnp.arange(count)[None, :], (batch, count))
    if cache is not None:
        own = own + cache.read[:, None]
        others = jnp.arange(cache.length)[None, None, :]
        return own, (others <= own[:, :, None])[:, None]
    mask = own[:, :, None] >= own[:, None, :]
    if document is not None:
        mask = mask & (document[:, :, None] == document[:, None, :])
    return own, mask[:, None]


def _rotated(x: Array, positions: Array, frequencies: np.ndarray) -> Array:
    """Turn pairs of a head's numbers, one of either half, by the angle of their position."""
    angles = positions[..., None].astype(jnp.float32) * jnp.asarray(frequencies)[None, None]
    cos, sin = (f(angles)[:, :, None, :] for f in (jnp.cos, jnp.sin))
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def _empty(depth: int, heads: tuple[int, int], dtype: Any, batch_size: int, length: int) -> Cache:
    """Return a cache that has read nothing yet."""
    made = jnp.zeros((batch_size, length, *heads), dtype)
    layers = tuple(Memory(made, made) for _ in range(depth))
    return Cache(layers, jnp.zeros((batch_size,), jnp.int32))
