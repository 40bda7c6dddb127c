"""Text from a language model: continuations of prompts, in one compiled scan.

A prompt is tokens, and so is what comes back:

    from kdjax import generation, models

    model = models.transformer(vocab_size, width=128, depth=4, num_heads=4)
    tokens, mask = generation.sample(
        model, variables, key, prompts, length=64, temperature=0.8, stop=end_of_text
    )
"""

import functools
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from kdjax.losses import _inputs, _numbers
from kdjax.metrics import known
from kdjax.types import Batch, Decode, Model, PyTree, Variables

__all__ = ["Samples", "continued", "draw", "sample", "uncached"]

_BLOCK = 256


class Samples(NamedTuple):
    """Prompts and their continuations, [batch, prompt + length]; where these are, in booleans.

    A continuation ends with `stop`, if it does; behind it there is `stop` and no mask.
    """

    tokens: Array
    mask: Array


def sample(
    model: Model,
    variables: Variables,
    key: Array,
    prompts: Array,
    *,
    length: int,
    temperature: float | Array = 1.0,
    stop: int | None = None,
    prompt_lengths: Array | None = None,
) -> Samples:
    """Continue prompts, a token at a time, with what is drawn from a language model.

    The prompts are read at once, then every token is, with the keys and values of those before it
    in a cache: in the time of one pass over all tokens, and `length` passes over one. It may stand
    in a compiled step. Nothing here has a gradient.

    Args:
        model: one that can decode, as `kdjax.models.transformer` can; or any that answers tokens
            [batch, tokens] with logits [batch, tokens, vocab_size] and sees none that come later:
            it reads everything again for every token (`uncached`).
        variables: of the model.
        key: what is drawn depends on it, and on nothing else.
        prompts: [batch, prompt], integers.
        length: how many tokens to add to each.
        temperature: softens the probabilities, a number or a scalar array; 0 always takes the
            likeliest token, and as a number saves what drawing costs.
        stop: the token that ends a text.
        prompt_lengths: how many of each row of `prompts` count, [batch], at least 1; the rest only
            fills up, and the continuation comes in its place. All of them by default.

    Returns:
        `tokens`, [batch, prompt + length], int32 or wider, and `mask`, where the continuations are
        in them. A token is -1 where the model's probabilities are nan, or the temperature no
        temperature.

    Raises:
        TypeError: if prompts are no integers.
        ValueError: if shapes do not fit, `length` is not positive, the temperature is negative, or
            prompt and length together are more than the model's context.

    Example:
        >>> import functools
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from kdjax import generation, models
        >>> model = models.transformer(16, width=8, depth=1, num_heads=2)
        >>> prompts = jnp.ones((2, 3), jnp.int32)
        >>> variables = jax.eval_shape(model.init, jax.random.key(0), prompts)
        >>> sample = functools.partial(generation.sample, model, length=4)
        >>> jax.eval_shape(sample, variables, jax.random.key(1), prompts).tokens.shape
        (2, 7)
    """
    decode = model.decode or uncached(model)
    length = _numbers.as_count("sample", "length", length)
    prompts = _checked(prompts, length, decode)
    shape = (len(prompts),)
    if prompt_lengths is None:
        prompt_lengths = jnp.full(shape, prompts.shape[1], jnp.int32)
    counts = _inputs.as_integers("sample", "prompt_lengths", prompt_lengths)
    _inputs.check_shape("sample", "prompt_lengths", counts, shape, "a number for each prompt")
    _check_range("prompt_lengths", counts, 1, prompts.shape[1])
    if decode.vocab_size is not None:
        _check_range("prompts", prompts, 0, decode.vocab_size - 1)
        _check_range("stop", jnp.asarray(0 if stop is None else stop), 0, decode.vocab_size - 1)
    greedy = isinstance(temperature, int | float) and temperature == 0
    if not greedy:
        wide = jnp.float32
        temperature = _numbers.as_number(
            "sample", "temperature", temperature, wide, _numbers.NOT_NEGATIVE
        )
    fixed = decode, length, greedy, stop
    found: Samples = _sampled(*fixed, variables, key, prompts, counts, temperature)
    return found


def continued(
    model: Model,
    variables: Variables,
    key: Array,
    batch: Batch,
    *,
    prompt_length: int,
    temperature: float | Array = 1.0,
    stop: int | None = None,
) -> Batch:
    """Let a model continue the rows of a batch: what a student learns from on its own policy.

    The first tokens of each row stay; the labels, the tokens behind, are the model's own and only
    they count; a row whose prompt is of several documents does not. A teacher that looks at the
    batch then judges what the student does itself.

    Agarwal et al., "On-Policy Distillation of Language Models: Learning from Self-Generated
    Mistakes", 2023, arXiv:2306.13649.

    Args:
        model: see `sample`.
        variables: of the model.
        key: what is drawn depends on it.
        batch: `tokens` and `label` [batch, length], `mask` likewise or none; where a prompt is not
            all there, its row does not count.
        prompt_length: how many tokens stay, from 1 to `length`.
        temperature: see `sample`.
        stop: see `sample`.

    Returns:
        The batch with other `tokens`, `label` and `mask`; each row is one `document`.

    Raises:
        ValueError: if the prompt is longer than a row, and as `sample`.

    Example:
        >>> import functools
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from kdjax import generation, models
        >>> model = models.transformer(16, width=8, depth=1, num_heads=2)
        >>> tokens = jnp.ones((2, 8), jnp.int32)
        >>> variables = jax.eval_shape(model.init, jax.random.key(0), tokens)
        >>> batch = {"tokens": tokens, "label": tokens, "mask": jnp.full((2, 8), True)}
        >>> continued = functools.partial(generation.continued, model, prompt_length=3)
        >>> view = jax.eval_shape(continued, variables, jax.random.key(1), batch)
        >>> view["tokens"].shape
        (2, 8)
    """
    tokens = batch["tokens"]
    length = tokens.shape[1]
    if not 1 <= prompt_length <= length:
        raise ValueError(
            f"continued: prompt_length is {prompt_length}, expected 1 to {length}, the tokens of "
            "a row"
        )
    own, mask = sample(
        *(model, variables, key, tokens[:, :prompt_length]),
        length=length + 1 - prompt_length,
        temperature=temperature,
        stop=stop,
    )
    changed = {"tokens": own[:, :-1], "label": own[:, 1:], "mask": mask[:, 1:]}
    if "mask" in batch:
        given = jnp.broadcast_to(
            jnp.reshape(batch["mask"], (len(tokens), -1)), (len(tokens), length)
        )
        # The last label of the prompt is not read, but the token that it names is there.
        there = given[:, max(prompt_length - 2, 0), None]
        changed["mask"] = changed["mask"].astype(there.dtype) * there
    if "document" in batch:
        of = batch["document"]
        alone = jnp.all(of[:, :prompt_length] == of[:, :1], axis=1, keepdims=True)
        changed["document"] = jnp.broadcast_to(of[:, :1], of.shape)
        changed["mask"] = changed["mask"] * alone.astype(changed["mask"].dtype)
    return {**batch, **changed}


def draw(key: Array, logits: Array, temperature: float | Array = 1.0) -> Array:
    """Draw a class from each row's probabilities: where their running sum passes a random number.

    One random number for a row, and sums over blocks of classes before those within one. With
    `jax.random.categorical`, which takes one for each class, drawing is the larger part of sampling
    from a large vocabulary on a CPU. Probabilities count to 2^-23 of the sum.

    Args:
        key: what is drawn depends on it.
        logits: [..., num_classes], any floating type; a class at -inf is never drawn.
        temperature: not negative, a number or [...]; at 0 it is the likeliest class.

    Returns:
        Classes, [...], int32; -1 where the probabilities are nan.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from kdjax import generation
        >>> print(generation.draw(jax.random.key(0), jnp.array([[0.0, 99.0], [99.0, 0.0]])))
        [1 0]
    """
    wide = jnp.promote_types(logits.dtype, jnp.float32)
    temperature = jnp.broadcast_to(jnp.asarray(temperature, wide), logits.shape[:-1])
    # So low a temperature leaves nothing but the likeliest.
    temperature = jnp.where(temperature == 0, np.finfo(wide).tiny, temperature)
    temperature = jnp.where(temperature > 0, temperature, jnp.nan)[..., None]
    logits = logits.astype(wide)
    mass = jnp.exp((logits - jnp.max(logits, -1, keepdims=True)) / temperature)
    missing = -mass.shape[-1] % _BLOCK
    blocks = jnp.pad(mass, [(0, 0)] * (mass.ndim - 1) + [(0, missing)])
    blocks = jnp.reshape(blocks, (*mass.shape[:-1], -1, _BLOCK))
    sums = jnp.sum(blocks, -1)
    whole = jnp.sum(sums, -1)
    block, point = _passed(sums, jax.random.uniform(key, mass.shape[:-1], wide) * whole)
    chosen = jnp.take_along_axis(blocks, block[..., None, None], -2)[..., 0, :]
    return jnp.where(jnp.isnan(whole), -1, _BLOCK * block + _passed(chosen, point)[0])


@functools.lru_cache(maxsize=8)
def uncached(model: Model) -> Decode:
    """Let any language model decode, by reading everything again for every token.

    Args:
        model: it answers tokens [batch, tokens] with logits [batch, tokens, vocab_size], and none
            of these depends on a later token.

    Returns:
        What `Model.decode` is, with a cache of the tokens themselves.

    Example:
        >>> from kdjax import generation, models
        >>> decode = generation.uncached(models.mlp(16, widths=(8,)))
        >>> decode.start(2, 5).tokens.shape
        (2, 5)
    """

    def start(batch_size: int, length: int) -> _Read:
        tokens = jnp.zeros((batch_size, length), jnp.int32)
        return _Read(tokens, jnp.zeros((batch_size,), jnp.int32))

    def apply(params: PyTree, state: PyTree, tokens: Array, cache: _Read) -> tuple[Array, _Read]:
        rows = jnp.arange(len(tokens))[:, None]
        places = cache.read[:, None] + jnp.arange(tokens.shape[1])[None, :]
        whole = cache.tokens.at[rows, places].set(tokens.astype(jnp.int32))
        outputs, _ = model.apply(params, state, whole, train=False)
        return outputs.logits[rows, places], _Read(whole, cache.read + tokens.shape[1])

    return Decode(start, apply, None, sys.maxsize)


class _Read(NamedTuple):
    tokens: Array
    read: Array


def _passed(mass: Array, point: Array) -> tuple[Array, Array]:
    """Return where the running sum of masses passes a point, and how far that is behind it."""
    total = jnp.cumsum(mass, -1)
    # Rounding may put the point at the very end: the last one that has a mass is meant.
    place = jnp.sum(total <= point[..., None], -1)
    last = mass.shape[-1] - 1 - jnp.argmax(jnp.flip(mass > 0, -1), -1)
    place = jnp.minimum(place, last).astype(jnp.int32)
    here = jnp.take_along_axis(total - mass, place[..., None], -1)[..., 0]
    # Rounded, too, what was before may be more than the point: nothing without mass is passed.
    return place, jnp.maximum(point - here, 0)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _sampled(
    decode: Decode,
    length: int,
    greedy: bool,
    stop: int | None,
    variables: Variables,
    key: Array,
    prompts: Array,
    counts: Array,
    temperature: Any,
) -> Samples:
    batch_size, width = prompts.shape
    rows = jnp.arange(batch_size)
    cache = decode.start(batch_size, width + length)
    if width > 1:
        _, cache = decode.apply(*variables, prompts[:, :-1], cache)
    last = counts.astype(jnp.int32) - 1
    cache = cache._replace(read=last)

    def step(carry: tuple[Array, Any, Array], i: Array) -> tuple[Any, tuple[Array, Array]]:
        token, cache, ended = carry
        logits, cache = decode.apply(*variables, token[:, None], cache)
        logits = logits[:, 0]
        if greedy:
            new = jnp.argmax(logits, -1).astype(prompts.dtype)
            new = jnp.where(jnp.isnan(jnp.max(logits, -1)), -1, new)
        else:
            new = draw(jax.random.fold_in(key, i), logits, temperature).astype(prompts.dtype)
        if stop is None:
            return (new, cache, ended), (new, ~ended)
        new = jnp.where(ended, jnp.asarray(stop, new.dtype), new)
        return (new, cache, ended | (new == stop)), (new, ~ended)

    first = prompts[rows, last], cache, jnp.zeros((batch_size,), bool)
    _, (new, there) = jax.lax.scan(step, first, jnp.arange(length))
    places = last[:, None] + 1 + jnp.arange(length)[None, :]
    tokens = jnp.pad(prompts, ((0, 0), (0, length)))
    mask = jnp.zeros(tokens.shape, bool).at[rows[:, None], places].set(there.T)
    return Samples(tokens.at[rows[:, None], places].set(new.T), mask)


def _checked(prompts: Any, length: int, decode: Decode) -> Array:
    """Return prompts as integers, if they and what is added fit into the context."""
    found = _inputs.as_integers("sample", "prompts", prompts)
    expected = "[batch, prompt] with a token at least"
    _inputs.check_fits(found.ndim == 2 and found.shape[1] > 0, "sample", "prompts", found, expected)
    # The last token is never read.
    if found.shape[1] + length > decode.context + 1:
        raise ValueError(
            f"sample: prompts of {found.shape[1]} tokens and {length} more are "
            f"{found.shape[1] + length}, and the model's context is {decode.context}"
        )
    return found


def _check_range(name: str, values: Array, low: int, high: int) -> None:
    """Raise a ValueError if values are known, and one is out of range."""
    found = known(values)
    if found is not None and found.size and not low <= found.min() <= found.max() <= high:
        wrong = found.min() if found.min() < low else found.max()
        raise ValueError(f"sample: {name} has {wrong}, expected {low} to {high}")
