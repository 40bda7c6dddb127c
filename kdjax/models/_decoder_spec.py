"""What a decoder is made from: its sizes, and what tells families of decoders apart."""

import math
from typing import NamedTuple

import numpy as np


class LongContext(NamedTuple):
    """How Llama 3.1 stretches rotary positions beyond the lengths that it was first trained on.

    Wavelengths longer than `original_context / low` are `factor` times as long, those shorter than
    `original_context / high` as they were, and between them it changes evenly.
    """

    factor: float
    low: float
    high: float
    original_context: int


class Rotary(NamedTuple):
    """Rotary positions: the base of their wavelengths, and how these are stretched, if they are."""

    theta: float = 10_000.0
    stretched: LongContext | None = None

    def frequencies(self, head_width: int) -> np.ndarray:
        """Return the angle per position of every pair of a head's numbers, [head_width / 2]."""
        found = self.theta ** (-np.arange(0, head_width, 2, dtype=np.float64) / head_width)
        if self.stretched is None:
            return found.astype(np.float32)
        factor, low, high, length = self.stretched
        share = (length * found / (2 * math.pi) - low) / (high - low)
        share = np.clip(share, 0, 1)
        return (share * found + (1 - share) * found / factor).astype(np.float32)


class Details(NamedTuple):
    """What tells families of decoders apart.

    `head_width` is that of one head, an even number, by default `width / num_heads`; `epsilon` is
    every RMSNorm's; `bias` says whether queries, keys and values have one (Qwen 2), and
    `query_key_norm` whether queries and keys have an RMSNorm (Qwen 3). `embedding_width` is that of
    the embedding table and the head where it is not that of the hidden states: two projections lie
    between, as where a student shares its teacher's table, which `frozen_embedding` keeps in the
    state, untrained.
    """

    head_width: int | None = None
    rotary: Rotary = Rotary()
    epsilon: float = 1e-5
    bias: bool = False
    query_key_norm: bool = False
    embedding_width: int | None = None
    frozen_embedding: bool = False


class DecoderSpec(NamedTuple):
    """All sizes of a decoder, and its details: what its variables do not say is stored beside them.

    The arguments of `transformer`, whose defaults are filled in; a model's is `model.decode.spec`.
    """

    vocab_size: int
    width: int
    depth: int
    num_heads: int
    num_key_heads: int
    mlp_width: int
    context: int
    tied: bool
    details: Details = Details()

    @property
    def head_width(self) -> int:
        """The width of one head."""
        return self.details.head_width or self.width // self.num_heads

    @property
    def own_width(self) -> int:
        """The width of the embedding table and of the head."""
        return self.details.embedding_width or self.width


def check_spec(spec: DecoderSpec) -> None:
    """Raise a ValueError unless all sizes are in range and fit together."""
    own, (width, num_heads) = spec.details, (spec.width, spec.num_heads)
    sizes = {name: getattr(spec, name) for name in spec._fields[:7]}
    named = ("head_width", own.head_width), ("embedding_width", own.embedding_width)
    sizes |= {f"details.{name}": size for name, size in named if size is not None}
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"transformer: {name} is {size}, expected at least 1")
    if num_heads % spec.num_key_heads:
        raise ValueError(
            f"transformer: num_key_heads is {spec.num_key_heads}, expected a divisor of num_heads, "
            f"{num_heads}"
        )
    head_width = spec.head_width
    if (own.head_width is None and width % num_heads) or head_width % 2:
        raise ValueError(
            f"transformer: heads are {head_width} wide (width {width}, num_heads {num_heads}), "
            "expected an even number, and a width that num_heads divides unless details.head_width "
            "is given"
        )
    _check_numbers(own)


def _check_numbers(details: Details) -> None:
    (theta, stretched), epsilon = details.rotary, details.epsilon
    if stretched is not None and not 0 < stretched.low < stretched.high:
        raise ValueError(
            f"transformer: details.rotary.stretched has low {stretched.low} and high "
            f"{stretched.high}, expected 0 < low < high"
        )
    if not min(theta, epsilon) > 0:
        raise ValueError(
            f"transformer: details.rotary.theta is {theta} and details.epsilon {epsilon}, expected "
            "positive numbers"
        )
