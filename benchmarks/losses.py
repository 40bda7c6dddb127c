"""What exactness costs: soft_target_loss against the textbook sum, value and gradient.

python -m benchmarks.losses
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import command, ratio
from kdjax.losses import soft_target_loss


def textbook(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Return T^2 KL at T = 4, as it is usually written."""
    p, log_p = jax.nn.softmax(teacher / 4), jax.nn.log_softmax(teacher / 4)
    return 16 * jnp.sum(p * (log_p - jax.nn.log_softmax(student / 4)), -1)


def timed(loss: Any, student: jax.Array, teacher: jax.Array) -> Any:
    """Return a function that computes value and gradient twenty times."""
    compiled = jax.jit(jax.value_and_grad(lambda s, t: loss(s, t).mean()))
    return lambda: [jax.block_until_ready(compiled(student, teacher)) for _ in range(20)]


def error_near(loss: Any, gap: float) -> float:
    """Return the relative error of the value where the logits differ by about `gap`."""
    rng = np.random.default_rng(0)
    teacher = rng.normal(size=(64, 100)).astype(np.float32)
    student = (teacher + gap * rng.normal(size=teacher.shape)).astype(np.float32)
    value = np.asarray(loss(jnp.asarray(student), jnp.asarray(teacher)), np.float64)
    with jax.enable_x64(True):
        wide = soft_target_loss(
            jnp.asarray(student, jnp.float64), jnp.asarray(teacher, jnp.float64)
        )
        exact = np.asarray(wide)
    return float(np.max(np.abs(value - exact) / exact))


def main() -> None:
    """Print a table of costs and one of errors."""
    rng = np.random.default_rng(0)
    for shape in ((128, 10), (128, 100), (32, 32_768)):
        student, teacher = (jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(2))
        ours, theirs, quotient = ratio(
            timed(soft_target_loss, student, teacher), timed(textbook, student, teacher)
        )
        print(f"{shape}: {ours * 50:.3f} ms against {theirs * 50:.3f} ms, ratio {quotient:.2f}")
    for gap in (1e-3, 1e-2, 1e-1, 1.0):
        print(
            f"logits {gap:g} apart: relative error {error_near(soft_target_loss, gap):.1e}, "
            f"textbook {error_near(textbook, gap):.1e}"
        )


if __name__ == "__main__":
    command(main, __doc__)
