"""Networks as pairs of pure functions: adapters for Flax, the field's networks, PyTorch weights."""

# fmt: off
# isort: off
from kdjax._renamed import moved
from kdjax.models._blocks import BasicBlock
from kdjax.models._build import Network, NetworkSpec, build, load_network, save_network
from kdjax.models._convnet import ConvNet, convnet
from kdjax.models._decoder import Decoder, decoder, head_of, transformer
from kdjax.models._decoder_files import Pretrained, load_decoder, save_decoder
from kdjax.models._decoder_spec import DecoderSpec, Details, LongContext, Rotary
from kdjax.models._heads import probed, simkd, with_class_maps
from kdjax.models._layers import Pool
from kdjax.models._linen import from_linen
from kdjax.models._llama import from_llama
from kdjax.models._mlp import MLP, mlp
from kdjax.models._mobile import MobileNetV2, imagenet_mobilenet_v2, mobilenet_v2
from kdjax.models._nnx import from_nnx, variables_of
from kdjax.models._pytorch import classes_of, from_pytorch, normalization_of
from kdjax.models._residual import (
    BottleneckResNet, ImageNetResNet, ResNet, bottleneck_resnet, cifar_resnet50, imagenet_resnet,
    resnet, resnet8, resnet8x4, resnet14, resnet18, resnet20, resnet32, resnet32x4, resnet34,
    resnet44, resnet50, resnet56, resnet101, resnet110,
)
from kdjax.models._shuffle import ShuffleNetV1, ShuffleNetV2, shufflenet_v1, shufflenet_v2
from kdjax.models._torch import from_torch
from kdjax.models._torch_files import read_state_dict
from kdjax.models._transformer import VisionTransformer, vit, vit_b, vit_mu, vit_s, vit_ti
from kdjax.models._unet import UNet, unet
from kdjax.models._vgg import (
    VGG, ImageNetVGG, imagenet_vgg, imagenet_vgg11, imagenet_vgg13, imagenet_vgg16, imagenet_vgg19,
    vgg, vgg8, vgg13,
)
from kdjax.models._wide import WideResNet, wide_resnet, wrn_16_1, wrn_16_2, wrn_40_1, wrn_40_2
from kdjax.models._wrappers import normalized, num_params, rematerialized, scaled

__all__ = [
    "MLP",
    "VGG",
    "BasicBlock",
    "BottleneckResNet",
    "ConvNet",
    "Decoder",
    "DecoderSpec",
    "Details",
    "ImageNetResNet",
    "ImageNetVGG",
    "LongContext",
    "MobileNetV2",
    "Network",
    "NetworkSpec",
    "Pool",
    "Pretrained",
    "ResNet",
    "Rotary",
    "ShuffleNetV1",
    "ShuffleNetV2",
    "UNet",
    "VisionTransformer",
    "WideResNet",
    "bottleneck_resnet",
    "build",
    "cifar_resnet50",
    "classes_of",
    "convnet",
    "decoder",
    "from_linen",
    "from_llama",
    "from_nnx",
    "from_pytorch",
    "from_torch",
    "head_of",
    "imagenet_mobilenet_v2",
    "imagenet_resnet",
    "imagenet_vgg",
    "imagenet_vgg11",
    "imagenet_vgg13",
    "imagenet_vgg16",
    "imagenet_vgg19",
    "load_decoder",
    "load_network",
    "mlp",
    "mobilenet_v2",
    "normalization_of",
    "normalized",
    "num_params",
    "probed",
    "read_state_dict",
    "rematerialized",
    "resnet",
    "resnet8",
    "resnet8x4",
    "resnet14",
    "resnet18",
    "resnet20",
    "resnet32",
    "resnet32x4",
    "resnet34",
    "resnet44",
    "resnet50",
    "resnet56",
    "resnet101",
    "resnet110",
    "save_decoder",
    "save_network",
    "scaled",
    "shufflenet_v1",
    "shufflenet_v2",
    "simkd",
    "transformer",
    "unet",
    "variables_of",
    "vgg",
    "vgg8",
    "vgg13",
    "vit",
    "vit_b",
    "vit_mu",
    "vit_s",
    "vit_ti",
    "wide_resnet",
    "with_class_maps",
    "wrn_16_1",
    "wrn_16_2",
    "wrn_40_1",
    "wrn_40_2",
]

_, __getattr__ = moved(__name__)
