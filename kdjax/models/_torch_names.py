"""What PyTorch's implementations of our networks call the layers that we name otherwise."""

import re
from collections.abc import Callable, Collection, Sequence

from kdjax.models._mobile import STAGES

Rule = tuple[str, str | Callable[[re.Match[str]], str]]

LEAVES = {
    "kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean",
    "var": "running_var",
}  # fmt: skip
_CONVS = (r"conv_(\d)", r"conv\1"), (r"norm_(\d)", r"bn\1")
_ENDS = ("^stem_norm", "bn1"), ("^stem", "conv1"), ("^head", "fc")
_STAGES = (r"^stage_(\d)/block_(\d+)", r"layer\1.\2")
_SHORTCUT = ("shortcut_conv", "downsample.0"), ("shortcut_norm", "downsample.1")
_RESNET: Sequence[Rule] = (_STAGES, *_SHORTCUT, *_CONVS, *_ENDS)
_WIDE: Sequence[Rule] = (
    (r"^stage_(\d)/block_(\d+)", r"block\1.layer.\2"), ("shortcut_conv", "convShortcut"),
    ("norm_0", "bn1"), ("norm_1", "bn2"), ("^final/norm", "bn1"), *_CONVS, *_ENDS,
)  # fmt: skip
# A convolution, a BatchNorm and a ReLU have three numbers.
_VGG: Sequence[Rule] = (
    (r"^stage_(\d)/block_(\d+)/conv", lambda m: f"block{m[1]}.{3 * int(m[2])}"),
    (r"^stage_(\d)/block_(\d+)/norm", lambda m: f"block{m[1]}.{3 * int(m[2]) + 1}"),
    *_ENDS,
)
_MOBILE: Sequence[Rule] = (
    (r"^stage_(\d)/block_(\d+)", lambda m: _mobile_block(int(m[1]), int(m[2])) + ".conv"),
    ("depthwise_norm", "4"), ("depthwise", "3"),
    ("conv_1", "0"), ("norm_1", "1"), ("conv_2", "6"), ("norm_2", "7"),
    ("^stem_norm", "conv1.1"), ("^stem", "conv1.0"),
    ("^final/norm", "conv2.1"), ("^final/conv", "conv2.0"), ("^head", "fc"),
)  # fmt: skip
_GROUPED: Sequence[Rule] = (
    _STAGES, ("norm_2", "bn3"), ("conv_2", "conv3"), ("depthwise_norm", "bn2"),
    ("depthwise", "conv2"), *_CONVS, *_ENDS,
)  # fmt: skip
# The first block of a stage counts its layers on both ways, the short one's first.
_SPLIT: Sequence[Rule] = (
    ("/block_0/norm_2", "/block_0/bn5"), ("/block_0/conv_2", "/block_0/conv5"),
    ("/block_0/depthwise_norm", "/block_0/bn4"), ("/block_0/depthwise", "/block_0/conv4"),
    ("/block_0/norm_1", "/block_0/bn3"), ("/block_0/conv_1", "/block_0/conv3"),
    ("shortcut_depthwise_norm", "bn1"), ("shortcut_depthwise", "conv1"),
    ("shortcut_norm", "bn2"), ("shortcut_conv", "conv2"),
    ("^final/norm", "bn2"), ("^final/conv", "conv2"), *_GROUPED,
)  # fmt: skip


def rules_of(layers: Collection[str]) -> Sequence[Rule] | None:
    """Return the rules for a network with these layers; None if it has no convolutions.

    Args:
        layers: paths such as "stage_1/block_0/conv_1".
    """
    marks = (
        ("stage_1/block_0/shortcut_depthwise", _SPLIT),
        ("final/conv", _MOBILE),
        ("stage_1/block_0/depthwise", _GROUPED),
        ("final/norm", _WIDE),
        ("stage_0/block_0/conv", _VGG),
        ("stem", _RESNET),
    )
    return next((rules for mark, rules in marks if mark in layers), None)


def torch_name(path: Sequence[str], rules: Sequence[Rule]) -> str:
    """Name an array: stage_1/block_0/conv_1/kernel is layer1.0.conv1.weight in a ResNet.

    Args:
        path: where it is in `params`, or in a collection of the state.
        rules: what `rules_of` returned.
    """
    layer = "/".join(path[:-1])
    for pattern, replacement in rules:
        layer = re.sub(pattern, replacement, layer)
    return f"{layer}/{LEAVES[path[-1]]}".replace("/", ".")


def usual_name(name: str) -> str:
    """Return the name that the rules give for a layer, whichever usual name it has."""
    name = re.sub(r"^(linear|classifier)(\.0)?\.", "fc.", name)
    return name.replace(".shortcut.", ".downsample.")


def _mobile_block(stage: int, block: int) -> str:
    """Find our block among PyTorch's, which are numbered anew where the width changes."""
    earlier = sum(len(rows) for rows in STAGES[: stage - 1])
    for i, row in enumerate(STAGES[stage - 1]):
        if block < row.repeats:
            return f"blocks.{earlier + i}.{block}"
        block -= row.repeats
    raise AssertionError(f"stage {stage} has no block {block}")
