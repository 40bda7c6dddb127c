"""What chunks of tokens save: memory, time and error of kd_loss on heads against the plain form.

python -m benchmarks.heads [--tokens 4096] [--vocab 131072] [--width 512] [--chunk-sizes 128 512]
    [--timed-tokens 1024] [--repeats 3]

Without flags the sizes are those of docs/language.md; the plain form then needs 20 GiB, and is
compiled for its memory but timed at a quarter of the tokens, or at --timed-tokens. The last lines
are kd_loss alone, against the textbook's formula.
"""

import argparse
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import ratio
from kdjax import heads, losses

KD = functools.partial(losses.kd_loss, temperature=2.0)
SHAPES = ((128, 10), (128, 100), (32, 32_768), (1024, 32_768))


def textbook(student: jax.Array, teacher: jax.Array, labels: jax.Array) -> jax.Array:
    """Return kd_loss at temperature 2, as it is usually written."""
    log_q, p = jax.nn.log_softmax(student / 2), jax.nn.softmax(teacher / 2)
    soft = 4 * jnp.sum(p * (jax.nn.log_softmax(teacher / 2) - log_q), -1)
    picked = jnp.take_along_axis(student, labels[:, None], -1)[:, 0]
    return 0.9 * soft + 0.1 * (jax.nn.logsumexp(student, -1) - picked)


def plain(loss: Any, h: jax.Array, w: jax.Array, t: jax.Array, e: jax.Array, y: jax.Array) -> Any:
    """Return the mean of a loss on whole logits."""
    return jnp.mean(loss(h @ w.T, t @ e.T, y))


def chunked(size: int, h: jax.Array, w: jax.Array, t: jax.Array, e: jax.Array, y: jax.Array) -> Any:
    """Return the same, a chunk at a time."""
    pair = heads.Head(w), t, heads.Head(e)
    return heads.chunked_mean(KD, h, *pair, labels=y, chunk_size=size)[0]


def compiled(fn: Any, args: Any) -> Any:
    """Compile a mean with its gradient for hidden states and head."""
    return jax.jit(jax.value_and_grad(fn, argnums=(0, 1))).lower(*args).compile()


def mebibytes(program: Any) -> float:
    """Return what a program needs beside its arguments and results."""
    return float(program.memory_analysis().temp_size_in_bytes) / 2**20


def drawn(tokens: int, vocab: int, width: int) -> tuple[jax.Array, ...]:
    """Draw hidden states and heads whose logits have a deviation of about 2."""
    rng = np.random.default_rng(0)
    shapes = ((tokens, width), (vocab, width)) * 2
    arrays = [rng.standard_normal(s, np.float32) for s in shapes]
    scale = (1, 2 / np.sqrt(width)) * 2
    drawn = (jnp.asarray(x * np.float32(s)) for x, s in zip(arrays, scale, strict=True))
    return *drawn, jnp.asarray(rng.integers(0, vocab, tokens))


def run(program: Any, args: Any) -> Any:
    """Return a function that runs a program to its end."""
    return lambda: jax.block_until_ready(program(*args))


def on_heads(
    tokens: int, vocab: int, width: int, sizes: list[int], timed: int, repeats: int
) -> None:
    """Print memory at full size, and time and differences at the number of tokens to be timed."""
    shapes = jax.eval_shape(lambda: drawn(tokens, vocab, width))
    whole = mebibytes(compiled(functools.partial(plain, KD), shapes))
    usual = mebibytes(compiled(functools.partial(plain, textbook), shapes))
    print(f"{tokens} tokens, {vocab} words, width {width}: plain {whole:.0f} MiB, "
          f"textbook {usual:.0f} MiB")  # fmt: skip
    args = drawn(timed, vocab, width)
    other = compiled(functools.partial(plain, KD), args)
    expected = jax.tree.leaves(other(*args))
    for size in sizes:
        memory = mebibytes(compiled(functools.partial(chunked, size), shapes))
        program = compiled(functools.partial(chunked, size), args)
        found = jax.tree.leaves(program(*args))
        off = [float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b)))
               for a, b in zip(found, expected, strict=True)]  # fmt: skip
        ours, theirs, quotient = ratio(run(program, args), run(other, args), repeats=repeats)
        print(f"chunks of {size}: {memory:.0f} MiB; at {len(args[0])} tokens {ours:.2f} s against "
              f"{theirs:.2f} s, ratio {quotient:.2f}; value, hidden and head differ by "
              + ", ".join(f"{x:.1e}" for x in off))  # fmt: skip


def often(program: Any, args: Any, times: int) -> Any:
    """Return a function that runs a program several times."""
    return lambda: [jax.block_until_ready(program(*args)) for _ in range(times)]


def alone() -> None:
    """Print what kd_loss takes on logits, of time and of arrays of their size."""
    rng = np.random.default_rng(0)
    for shape in SHAPES:
        logits = [jnp.asarray(rng.standard_normal(shape, np.float32)) for _ in range(2)]
        args = *logits, jnp.asarray(rng.integers(0, shape[1], shape[0]))
        means = [functools.partial(lambda fn, *x: jnp.mean(fn(*x)), fn) for fn in (KD, textbook)]
        pair = [jax.jit(jax.value_and_grad(mean)).lower(*args).compile() for mean in means]
        arrays = [mebibytes(program) * 2**18 / logits[0].size for program in pair]
        times = max(1, 2**20 // logits[0].size)
        found = ratio(*(often(program, args, times) for program in pair), repeats=9)
        ours, theirs = (1e3 * seconds / times for seconds in found[:2])
        print(
            f"kd_loss {shape}: {ours:.3f} ms against {theirs:.3f} ms, ratio {found[2]:.2f}; "
            f"{arrays[0]:.1f} arrays against {arrays[1]:.1f}"
        )


def main() -> None:
    """Print what chunks save, and what kd_loss takes."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--vocab", type=int, default=131_072)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--chunk-sizes", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--timed-tokens", type=int)
    parser.add_argument("--repeats", type=int, default=3)
    flags = parser.parse_args()
    timed = flags.timed_tokens or min(flags.tokens, max(2**27 // flags.vocab, 1))
    on_heads(flags.tokens, flags.vocab, flags.width, flags.chunk_sizes, timed, flags.repeats)
    alone()


if __name__ == "__main__":
    main()
