"""What sampling costs: a draw by running sums against jax.random.categorical, a cache against none.

python -m benchmarks.generation

Sizes: 8 rows of 49,152 words; 8 prompts of 32 tokens continued by 96, by a decoder of 4 blocks.
"""

import functools

import jax
import jax.numpy as jnp

from benchmarks.timing import command, line, ratio
from kdjax import generation, models

ROWS, VOCAB, PROMPT, LENGTH = 8, 49_152, 32, 96


def main() -> None:
    """Print both ratios."""
    key = jax.random.key(0)
    logits = 3 * jax.random.normal(key, (ROWS, VOCAB))
    ours = functools.partial(_finished, jax.jit(generation.draw), key, logits)
    jaxs = functools.partial(_finished, jax.jit(jax.random.categorical), key, logits)
    print(line("draw against jax.random.categorical", ratio(ours, jaxs), 0.5))
    model = models.transformer(2048, width=128, depth=4, num_heads=4)
    prompts = jnp.zeros((ROWS, PROMPT), jnp.int32)
    variables = jax.jit(model.init)(key, prompts)
    cached, uncached = (
        functools.partial(_sampled, own, variables, key, prompts)
        for own in (model, model._replace(decode=None))
    )
    found = ratio(cached, uncached, repeats=5)
    print(line("sampling with a cache against none", found, 0.5))
    print(f"{ROWS * LENGTH / found[0]:,.0f} tokens a second with a cache")


def _finished(fn: object, *args: jax.Array) -> None:
    assert callable(fn)
    jax.block_until_ready(fn(*args))


def _sampled(model: object, *args: object) -> None:
    sampled = generation.sample(model, *args, length=LENGTH)  # type: ignore[arg-type]
    jax.block_until_ready(sampled.tokens)


if __name__ == "__main__":
    command(main, __doc__)
