"""Networks as pairs of pure functions: adapters for Flax, the field's networks, PyTorch weights."""

from kdjax.models._heads import simkd, with_class_maps
from kdjax.models._imagenet import ImageNetResNet, imagenet_resnet, resnet18, resnet34
from kdjax.models._linen import from_linen
from kdjax.models._networks import (
    MLP,
    BasicBlock,
    Pool,
    ResNet,
    mlp,
    normalized,
    num_params,
    resnet,
    resnet8,
    resnet14,
    resnet20,
    resnet32,
    resnet44,
    resnet56,
    resnet110,
)
from kdjax.models._nnx import from_nnx, variables_of
from kdjax.models._pytorch import from_pytorch, normalisation_of, read_state_dict
from kdjax.models._remat import rematerialised
from kdjax.models._transformer import VisionTransformer, vit, vit_b, vit_mu, vit_s, vit_ti

__all__ = [
    "MLP",
    "BasicBlock",
    "ImageNetResNet",
    "Pool",
    "ResNet",
    "VisionTransformer",
    "from_linen",
    "from_nnx",
    "from_pytorch",
    "imagenet_resnet",
    "mlp",
    "normalisation_of",
    "normalized",
    "num_params",
    "read_state_dict",
    "rematerialised",
    "resnet",
    "resnet8",
    "resnet14",
    "resnet18",
    "resnet20",
    "resnet32",
    "resnet34",
    "resnet44",
    "resnet56",
    "resnet110",
    "simkd",
    "variables_of",
    "vit",
    "vit_b",
    "vit_mu",
    "vit_s",
    "vit_ti",
    "with_class_maps",
]
