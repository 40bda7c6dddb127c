"""Where the arrays of our networks live: paths, and which axis of an array is split over what.

The first pattern that is found in an array's path decides. `fsdp` splits what is gathered again
before it is used; `tensor` splits the units of a layer, so that the layer behind it sums over
them: of two layers in a row the first has them on its last axis and the second on its first, and
nothing is gathered in between. Paths of optimizer moments end in the parameter's, so that the same
line places them. Where both split an axis, `tensor` comes first: what is gathered again are then
neighbours.
"""

from jax.sharding import PartitionSpec as P

from kdjax.sharding._placement import Rules

MLP_RULES: Rules = (
    (r"hidden_\d*[02468]/kernel$", P("fsdp", "tensor")),
    (r"hidden_\d*[02468]/bias$", P("tensor")),
    (r"hidden_\d*[13579]/kernel$", P("tensor", "fsdp")),
    (r"head/kernel$", P(("tensor", "fsdp"), None)),
)
"""For `kdjax.models.mlp`: kernels are [inputs, units]."""

RESNET_RULES: Rules = (
    (r"conv_1/kernel$", P(None, None, "fsdp", "tensor")),
    (r"(norm_1|depthwise_norm)/(scale|bias|mean|var)$", P("tensor")),
    (r"depthwise/kernel$", P(None, None, None, "tensor")),
    (r"conv_2/kernel$", P(None, None, "tensor", "fsdp")),
    (r"(stem|conv|conv_3)/kernel$", P(None, None, None, "fsdp")),
    (r"head/kernel$", P(("tensor", "fsdp"), None)),
)
"""For all of `kdjax.models` with convolutions: kernels are [height, width, inputs, outputs]."""

TRANSFORMER_RULES: Rules = (
    (r"attention/(query|key|value)/kernel$", P("fsdp", "tensor", None)),
    (r"attention/(query|key|value)/bias$", P("tensor", None)),
    (r"attention/out/kernel$", P("tensor", None, "fsdp")),
    (r"mlp/up/kernel$", P("fsdp", "tensor")),
    (r"mlp/up/bias$", P("tensor")),
    (r"mlp/down/kernel$", P("tensor", "fsdp")),
    (r"patches/kernel$", P(None, None, None, "fsdp")),
    (r"tokens/position$", P(None, None, "fsdp")),
    (r"head/kernel$", P(("tensor", "fsdp"), None)),
)
"""For `kdjax.models.vit`: kernels of attention are [width, heads, head_width], out's reversed."""

NETWORK_RULES: Rules = (*MLP_RULES, *RESNET_RULES, *TRANSFORMER_RULES)
"""For any of them: no path means two things."""
