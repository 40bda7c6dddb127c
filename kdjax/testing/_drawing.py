"""What losses and terms are fed: arrays drawn after names, and outputs of two networks."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from kdjax.terms._signature import Signature
from kdjax.types import Outputs, PyTree, TermInputs

Inputs = Callable[[np.random.Generator], tuple[PyTree, ...]]
"""Draws the positional arguments of a loss: student, teacher, labels, whatever it takes."""

NUM_EXAMPLES, NUM_CLASSES = 8, 6
_IMAGES, _TOKENS, _VECTORS = (8, 4, 4, 6), (8, 5, 6), (8, 6)

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


def draw(signature: Signature, rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[Any, ...]:
    """Draw positional arguments of one shape, float32 and integer NumPy arrays.

    Logits are multiples of 2^-10, so that adding a moderate constant to them rounds nothing.

    Raises:
        TypeError: if a parameter's name says nothing about what it takes.
    """
    student = [0] if signature.teacher is None else [0, signature.teacher]
    args = []
    for i, name in enumerate(signature.positional):
        if i == signature.labels:
            args.append(_labels(name, signature, rng, shape))
        elif i in student:
            args.append(_floats(signature, rng, shape))
        else:
            raise TypeError(
                f"check_loss: do not know what to draw for parameter {name!r} of "
                f"{signature.name}; pass inputs=lambda rng: (student, teacher, ...)"
            )
    return tuple(args)


def shapes_for(signature: Signature, *, couples_batch: bool) -> list[tuple[int, ...]]:
    """Return the shapes to try, the main one first."""
    if not signature.has_classes:
        return [_IMAGES, _TOKENS, _VECTORS]
    main = (NUM_EXAMPLES, NUM_CLASSES)
    return [main] if couples_batch else [main, (2, 3, NUM_CLASSES), (NUM_CLASSES,)]


def some_mask(size: int) -> np.ndarray:
    """Return a mask that leaves out a quarter of the examples and more."""
    return np.resize(np.array([1, 0, 1, 1, 0, 1, 1, 1], bool), size)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Normalize over the last axis, in float64."""
    z = np.asarray(logits, np.float64)
    z = z - z.max(-1, keepdims=True)
    found: np.ndarray = z - np.log(np.exp(z).sum(-1, keepdims=True))
    return found


def _floats(signature: Signature, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    drawn = rng.normal(size=shape)
    if signature.is_logits:
        return (np.round(3 * drawn * 1024) / 1024).astype(np.float32)
    return (log_softmax(3 * drawn) if signature.is_log_probs else drawn).astype(np.float32)


def _labels(
    name: str, signature: Signature, rng: np.random.Generator, shape: tuple[int, ...]
) -> np.ndarray:
    if name == "label_probs":
        return np.asarray(np.exp(log_softmax(rng.normal(size=shape))), np.float32)
    batch = shape[:-1] if signature.has_classes else shape[:1]
    return rng.integers(0, NUM_CLASSES, batch).astype(np.int32)


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
        teacher_features: the same of the teacher's.
        seed: of the draws.

    Returns:
        Inputs in float32, every example of which counts.

    Example:
        >>> from kdjax.testing import term_inputs
        >>> inputs = term_inputs()
        >>> inputs.student.logits.shape, sorted(inputs.teacher.features)
        ((8, 6), ['hidden', 'stage_1', 'stage_2', 'stage_3', 'tokens'])
    """
    rng = np.random.default_rng(seed)

    def normal(*shape: int, scale: float = 1.0) -> Any:
        return np.float32(scale * rng.normal(size=(num_examples, *shape)))

    def outputs(features: Shapes) -> Outputs:
        return Outputs(
            normal(num_classes, scale=3.0), {name: normal(*s) for name, s in features.items()}
        )

    mask: Any = np.ones(num_examples, bool)
    batch = {
        "image": normal(8, 8, 3),
        "label": np.int32(rng.integers(0, num_classes, num_examples)),
        "index": np.arange(num_examples, dtype=np.int32),
        "mask": mask,
    }
    student = outputs(student_features)
    inputs: TermInputs = jax.device_put(TermInputs(batch, student, outputs(teacher_features), mask))
    return inputs
