"""What a term is fed: a drawn batch, and the outputs of a student and a teacher."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from kdjax.types import Outputs, TermInputs

Shapes = Mapping[str, tuple[int, ...]]

STUDENT_FEATURES: Shapes = {
    "hidden": (5,),
    "tokens": (5, 6),
    "stage_1": (8, 8, 4),
    "stage_2": (4, 4, 6),
    "stage_3": (2, 2, 8),
}
TEACHER_FEATURES: Shapes = {
    "hidden": (7,),
    "tokens": (5, 8),
    "stage_1": (8, 8, 6),
    "stage_2": (4, 4, 8),
    "stage_3": (2, 2, 10),
}


def term_inputs(
    *,
    num_examples: int = 8,
    num_classes: int = 6,
    student_features: Shapes = STUDENT_FEATURES,
    teacher_features: Shapes = TEACHER_FEATURES,
    seed: int = 0,
) -> TermInputs:
    """Draw what a term may look at: a batch, and the outputs of a student and a teacher.

    Args:
        num_examples: in the batch, which has `image`, `label`, `index` and `mask`.
        num_classes: of labels and logits.
        student_features: shapes without the batch axis, by name.
        teacher_features: likewise.
        seed: of the draws.

    Returns:
        Inputs in float32, every example of which counts.
    """
    rng = np.random.default_rng(seed)

    def outputs(features: Shapes) -> Outputs:
        logits = jnp.asarray(3 * rng.normal(size=(num_examples, num_classes)), jnp.float32)
        drawn = {
            name: jnp.asarray(rng.normal(size=(num_examples, *shape)), jnp.float32)
            for name, shape in features.items()
        }
        return Outputs(logits, drawn)

    mask = jnp.ones(num_examples, bool)
    batch = {
        "image": jnp.asarray(rng.normal(size=(num_examples, 8, 8, 3)), jnp.float32),
        "label": jnp.asarray(rng.integers(0, num_classes, num_examples), jnp.int32),
        "index": jnp.arange(num_examples, dtype=jnp.int32),
        "mask": mask,
    }
    return TermInputs(batch, outputs(student_features), outputs(teacher_features), mask)
