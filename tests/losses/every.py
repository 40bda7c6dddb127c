"""Every public function of `kdjax.losses`, with arguments that it takes: eight examples each."""

import functools
import inspect

import jax
import numpy as np

from kdjax import losses

BATCH, CLASSES = 8, 6
MAP, EMBEDDING = (BATCH, 4, 4, 6), (BATCH, 6)
# Not of arrays that a network has made, or not one value for each example.
SCHEDULES = ("curriculum_strength", "taid_schedule_init", "taid_schedule_update")
DRAWS = ("channel_mask", "position_mask")
LISTS = {
    "flow_loss": [[MAP, (BATCH, 2, 2, 6)]] * 2,
    "semantic_calibration_loss": [[[EMBEDDING, MAP]] * 2] * 2,
}
SHAPES = {
    "prime_aware_loss": [EMBEDDING] * 3,
    "softmax_regression_loss": [MAP, MAP, EMBEDDING, EMBEDDING],
    "contrastive_representation_loss": [(BATCH,), (BATCH, 5)],
    "contrastive_log_normalizer": [(BATCH,), (BATCH, 5)],
    "remembered_embeddings": [EMBEDDING] * 2,
    "batch_norm_margin": [(6,)] * 2,
    "layer_attention": [(BATCH, 2, 6), (BATCH, 3, 6)],
}
REQUIRED = {
    "taid_loss": {"interpolation": 0.4},
    "contrastive_representation_loss": {"log_normalizer": 1.0, "num_examples": 50},
    "contrastive_log_normalizer": {"num_examples": 50},
    "intra_class_variation_loss": {"num_classes": 4},
    "top_k_log_probs": {"num_kept": 3},
    "top_k_log_probs_with_tail": {"num_kept": 3},
}
# Their labels are no classes: true or false, or real numbers.
OTHER_LABELS = {"binary_cross_entropy": (0, 2), "bounded_regression_loss": (-4, 4),
                "squared_error": (-4, 4)}  # fmt: skip
NAMES = [name for name in losses.__all__ if name not in SCHEDULES + DRAWS]
TAKES_LABELS = [
    name
    for name in NAMES
    if "labels" in inspect.signature(getattr(losses, name)).parameters and name not in OTHER_LABELS
]


def quick(fn, **hyper):
    """Compile a function for what it is called with; by itself each operation is compiled."""
    return jax.jit(functools.partial(fn, **hyper))


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def drawn(name, rng):
    """Draw the positional arguments of a function by their names, float32 and int32."""

    def normal(shape):
        if isinstance(shape, list):
            return [normal(one) for one in shape]
        return rng.normal(size=shape).astype(np.float32)

    if name in LISTS:
        weights = [normal((BATCH, 2, 2))] if name.startswith("semantic") else []
        return [*normal(LISTS[name]), *weights]
    if name in SHAPES:
        return normal(SHAPES[name])
    parameters = inspect.signature(getattr(losses, name)).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty and p.kind is not p.KEYWORD_ONLY]
    return [_argument(name, argument, rng, normal) for argument in needed]


def _argument(name, argument, rng, normal):
    if argument.endswith("logits"):
        return 3 * normal(EMBEDDING)
    if argument.endswith("log_probs"):
        return log_softmax(3 * normal(EMBEDDING))
    if argument == "labels" and name in OTHER_LABELS:
        return rng.integers(*OTHER_LABELS[name], EMBEDDING).astype(np.int32)
    if argument.endswith("outputs"):
        return normal(EMBEDDING)
    if argument == "labels":
        shape = MAP[:3] if name.startswith("intra") else (BATCH,)
        return rng.integers(0, 4, shape).astype(np.int32)
    others = {
        "temperature": np.float32(2),
        "variance": 0.5 + rng.random(6, np.float32),
        "margin": np.full(6, -0.5, np.float32),
        "keep": rng.random((BATCH, 1, 1, 6)) < 0.7,
        "mask": rng.random((BATCH, 4)) < 0.7,
        "parameter": np.float32(rng.normal(size=BATCH)),
        "generator": {
            **{f"kernel_{i}": normal((3, 3, 6, 6)) for i in (1, 2)},
            **{f"bias_{i}": normal((6,)) for i in (1, 2)},
        },
    }
    return others[argument] if argument in others else normal(MAP)
