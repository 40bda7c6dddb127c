"""What PyTorch's implementations of our networks call the layers that we name otherwise."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from kdjax.models._mobile import STAGES

Rule = tuple[str, str | Callable[[re.Match[str]], str]]

LEAVES = {
    "kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean",
    "var": "running_var",
}  # fmt: skip
HEADS = (
    "fc", "linear", "classifier", "head", "head.fc", "heads.head", "output", "classifier.0",
    "classifier.1", "classifier.6", "last_linear", "logits", "_fc", "cls_classifier",
)  # fmt: skip
"""What classifiers are called."""
SECOND_HEADS = ("distillation_classifier.", "head_dist.")
"""What begins the names of a transformer's head that learns from its teacher."""
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
# torchvision's blocks are numbered through; the first one has no convolution that widens.
_MOBILE_NUMBERED: Sequence[Rule] = (
    ("^stage_1/block_0/depthwise_norm", "features/1/conv/0/1"),
    ("^stage_1/block_0/depthwise", "features/1/conv/0/0"),
    ("^stage_1/block_0/conv_2", "features/1/conv/1"),
    ("^stage_1/block_0/norm_2", "features/1/conv/2"),
    (r"^stage_(\d)/block_(\d+)", lambda m: f"features/{_mobile_number(int(m[1]), int(m[2]))}/conv"),
    ("depthwise_norm", "1/1"), ("depthwise", "1/0"),
    ("conv_1", "0/0"), ("norm_1", "0/1"), ("conv_2", "2"), ("norm_2", "3"),
    ("^stem_norm", "features/0/1"), ("^stem", "features/0/0"),
    ("^final/norm", "features/18/1"), ("^final/conv", "features/18/0"), ("^head", "classifier/1"),
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
# Transformers: those of timm, of Hugging Face and of torchvision.
_ATTENTION = "attention/(query|key|value)"
_TIMM: Sequence[Rule] = (
    ("^tokens/class_token", "cls_token"), ("^tokens/position", "pos_embed"),
    ("^patches", "patch_embed/proj"), (r"^block_(\d+)", r"blocks/\1"), (r"norm_(\d)", r"norm\1"),
    ("attention/out", "attn/proj"), (_ATTENTION, r"attn/qkv/\1"), ("mlp/up", "mlp/fc1"),
    ("mlp/down", "mlp/fc2"), ("^tokens/distillation_token", "dist_token"),
    ("^distillation_head", "head_dist"),
)  # fmt: skip
_HUGGING_FACE: Sequence[Rule] = (
    ("^tokens/class_token", "embeddings/cls_token"),
    ("^tokens/distillation", "embeddings/distillation"),
    ("^distillation_head", "distillation_classifier"),
    ("^tokens/position", "embeddings/position_embeddings"),
    ("^patches", "embeddings/patch_embeddings/projection"), (r"^block_(\d+)", r"encoder/layer/\1"),
    ("norm_1", "layernorm_before"), ("norm_2", "layernorm_after"), ("^norm", "layernorm"),
    ("attention/out", "attention/output/dense"), (_ATTENTION, r"attention/attention/\1"),
    ("mlp/up", "intermediate/dense"), ("mlp/down", "output/dense"), ("^head", "classifier"),
)  # fmt: skip
# Files keep those, while version 5 of transformers holds the network by these.
_HUGGING_FACE_5: Sequence[Rule] = (
    (r"^block_(\d+)", r"layers/\1"), ("attention/out", "attention/o_proj"),
    ("attention/(query|key|value)", lambda m: f"attention/{m[1][0]}_proj"),
    ("mlp/up", "mlp/fc1"), ("mlp/down", "mlp/fc2"), *_HUGGING_FACE,
)  # fmt: skip
_TORCHVISION: Sequence[Rule] = (
    ("^tokens/class_token", "class_token"), ("^tokens/position", "encoder/pos_embedding"),
    ("^patches", "conv_proj"), (r"^block_(\d+)", r"encoder/layers/encoder_layer_\1"),
    (r"norm_(\d)", r"ln_\1"), ("^norm", "encoder/ln"), ("mlp/up", "mlp/0"), ("mlp/down", "mlp/3"),
    ("attention/out", "self_attention/out_proj"), (_ATTENTION, r"self_attention/qkv/\1"),
    ("^head", "heads/head"),
)  # fmt: skip

LLAMA: Sequence[Rule] = (
    ("^tokens/embedding", "model/embed_tokens/weight"), ("^head", "lm_head"),
    ("^norm", "model/norm"), (r"^block_(\d+)", r"model/layers/\1"),
    ("norm_1", "input_layernorm"), ("norm_2", "post_attention_layernorm"),
    ("attention/(query|key)_norm", lambda m: f"self_attn/{m[1][0]}_norm"),
    ("attention/(query|key|value|out)", lambda m: f"self_attn/{m[1][0]}_proj"),
    ("mlp/(gate|up|down)", r"mlp/\1_proj"),
)  # fmt: skip
"""What Hugging Face calls the layers of a decoder."""

NUM_CUSTOMS = 4


def rules_of(layers: Collection[str], custom: int = 0) -> Sequence[Rule] | None:
    """Return the rules for a network with these layers; None if there are none.

    Args:
        layers: paths such as "stage_1/block_0/conv_1".
        custom: which of several customs to go by, below `NUM_CUSTOMS`.
    """
    vgg = _numbered_vgg(layers) if "hidden_0" in layers else _VGG
    marks: tuple[tuple[str, tuple[Sequence[Rule], ...]], ...] = (
        ("tokens", (_TIMM, _HUGGING_FACE, _HUGGING_FACE_5, _TORCHVISION)),
        ("stage_1/block_0/shortcut_depthwise", (_SPLIT,)),
        ("final/conv", (_MOBILE, _MOBILE_NUMBERED)),
        ("stage_1/block_0/depthwise", (_GROUPED,)),
        ("final/norm", (_WIDE,)),
        ("stage_0/block_0/conv", (vgg,)),
        ("stem", (_RESNET,)),
    )
    customs = next((customs for mark, customs in marks if mark in layers), ())
    return dict(enumerate(customs)).get(custom)


def torch_name(path: Sequence[str], rules: Sequence[Rule]) -> str:
    """Name an array: stage_1/block_0/conv_1/kernel is layer1.0.conv1.weight in a ResNet.

    Args:
        path: where it is in `params`, or in a collection of the state.
        rules: what `rules_of` returned.
    """
    name = "/".join((*path[:-1], LEAVES.get(path[-1], path[-1])))
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name.replace("/", ".")


def usual_names(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return arrays by the names that rules give: shortcuts, and each part of attention alone."""
    found: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        fused = re.sub(r"\.in_proj_(weight|bias)$", r".qkv.\1", name)
        start, _, leaf = fused.rpartition(".")
        if start.endswith(".qkv") and array.ndim and len(array) % 3 == 0:
            parts = np.split(array, 3)
            found |= {
                f"{start}.{part}.{leaf}": x
                for part, x in zip(("query", "key", "value"), parts, strict=True)
            }
        else:
            found[name.replace(".shortcut.", ".downsample.")] = array
    return found


def _mobile_block(stage: int, block: int) -> str:
    """Find our block among PyTorch's, which are numbered anew where the width changes."""
    earlier = sum(len(rows) for rows in STAGES[: stage - 1])
    for i, row in enumerate(STAGES[stage - 1]):
        if block < row.repeats:
            return f"blocks.{earlier + i}.{block}"
        block -= row.repeats
    raise AssertionError(f"stage {stage} has no block {block}")


def _mobile_number(stage: int, block: int) -> int:
    """Count our block among all of them, from 1."""
    earlier = sum(row.repeats for rows in STAGES[: stage - 1] for row in rows)
    return 1 + earlier + block


def _numbered_vgg(layers: Collection[str]) -> Sequence[Rule]:
    """Return torchvision's names: all layers are numbered through, with ReLU and pooling."""
    step = 3 if "stage_0/block_0/norm" in layers else 2
    found = [re.match(r"stage_(\d)/block_(\d+)/conv$", layer) for layer in layers]
    stages = [int(m[1]) for m in found if m]

    def number(m: re.Match[str]) -> str:
        stage, block = int(m[1]), int(m[2])
        earlier = sum(step * stages.count(i) + 1 for i in range(stage))
        return f"features/{earlier + step * block + (m[3] == 'norm')}"

    return (
        (r"^stage_(\d)/block_(\d+)/(conv|norm)", number), ("^hidden_0", "classifier/0"),
        ("^hidden_1", "classifier/3"), ("^head", "classifier/6"),
    )  # fmt: skip
