"""Where the arrays of our networks live: paths, and which axis of an array is split over what.

The first pattern that is found in an array's path decides. `fsdp` splits what is gathered again
before it is used; `tensor` splits the units of a layer, so that the layer behind it sums over
them: of two layers in a row the first has them on its last axis and the second on its first, and
nothing is gathered in between. Paths of optimizer moments end in the parameter's, so that the same
line places them. Where both split an axis, `tensor` comes first: what is gathered again are then
neighbors.
"""

from kdjax.sharding._mesh import split_by as by
from kdjax.sharding._placement import Rules

MLP_RULES: Rules = (
    (r"hidden_\d*[02468]/kernel$", by("fsdp", "tensor")),
    (r"hidden_\d*[02468]/bias$", by("tensor")),
    (r"hidden_\d*[13579]/kernel$", by("tensor", "fsdp")),
    (r"head/kernel$", by(("tensor", "fsdp"), None)),
)
"""For `kdjax.models.mlp`: kernels are [inputs, units]."""

RESNET_RULES: Rules = (
    (r"conv_1/kernel$", by(None, None, "fsdp", "tensor")),
    (r"(norm_1|depthwise_norm)/(scale|bias|mean|var)$", by("tensor")),
    (r"depthwise/kernel$", by(None, None, None, "tensor")),
    (r"conv_2/kernel$", by(None, None, "tensor", "fsdp")),
    (r"(stem|conv|conv_3)/kernel$", by(None, None, None, "fsdp")),
    (r"head/kernel$", by(("tensor", "fsdp"), None)),
)
"""For all of `kdjax.models` with convolutions: kernels are [height, width, inputs, outputs]."""

TRANSFORMER_RULES: Rules = (
    (r"attention/(query|key|value)/kernel$", by("fsdp", "tensor", None)),
    (r"attention/(query|key|value)/bias$", by("tensor", None)),
    (r"attention/out/kernel$", by("tensor", None, "fsdp")),
    (r"mlp/(up|gate)/kernel$", by("fsdp", "tensor")),
    (r"mlp/up/bias$", by("tensor")),
    (r"mlp/down/kernel$", by("tensor", "fsdp")),
    (r"patches/kernel$", by(None, None, None, "fsdp")),
    (r"tokens/position$", by(None, None, "fsdp")),
    (r"tokens/embedding$", by(("tensor", "fsdp"), None)),
    (r"project_(in|out)/kernel$", by(None, "fsdp")),
    (r"head/kernel$", by(("tensor", "fsdp"), None)),
)
"""For `kdjax.models.vit` and `transformer`: kernels of attention are [width, heads, head_width],
out's reversed; a language model's head and embedding are [vocab_size, width]."""

NETWORK_RULES: Rules = (*MLP_RULES, *RESNET_RULES, *TRANSFORMER_RULES)
"""For any of them: no path means two things."""
