"""PyTorch modules as teachers: the logits and features that PyTorch gives, compiled."""

import chex
import jax
import numpy as np
import optax
import pytest

from kdjax import models, teachers, terms
from kdjax.objective import combine
from kdjax.step import init_train_state, make_train_step, with_teacher

torch = pytest.importorskip("torch", reason="PyTorch is not installed: the extra `torch`")
pytest.importorskip("torchax", reason="torchax is not installed: the extra `torch`")

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ZOO = [
    "torchvision:resnet50", "torchvision:convnext_tiny", "torchvision:efficientnet_b0",
    "torchvision:mobilenet_v3_small", "torchvision:regnet_y_400mf", "torchvision:vit_b_16",
    "torchvision:swin_t", "torchvision:densenet121", "torchvision:vgg11_bn",
    "timm:deit_tiny_patch16_224", "timm:convnextv2_atto", "timm:efficientnet_lite0",
]  # fmt: skip


class Block(torch.nn.Module):
    """Convolution, BatchNorm and dropout, then attention over positions, and tied weights."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = torch.nn.Conv2d(3, 8, 3, 2, 1, groups=1), torch.nn.BatchNorm2d(8)
        self.attention = torch.nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = torch.nn.Linear(8, 5)
        self.other, self.tied = self.head, torch.nn.Linear(8, 5)
        self.tied.weight = self.head.weight

    def forward(self, x):
        x = torch.nn.functional.gelu(self.norm(self.conv(x)))
        x = torch.nn.functional.dropout(x, 0.5, self.training).flatten(2).transpose(1, 2)
        y, _ = self.attention(x, x, x)
        hidden = (x + y).mean(1)
        return {
            "logits": self.head(hidden),
            "hidden": (hidden, self.other(hidden), self.tied(hidden)),
        }


def spread(module):
    """Give every parameter and statistic values of its own, none of them zero."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.02)
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.1)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return module


def images_of(side, count=2):
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def in_pytorch(module, images):
    x = (np.float32(images) / 255 - np.float32(MEAN)) / np.float32(STD)
    modes = module.training
    with torch.no_grad():
        outputs = module.eval()(torch.from_numpy(x.transpose(0, 3, 1, 2)))
    module.train(modes)
    return outputs


def test_a_module_teaches_with_pytorchs_logits_and_features_and_is_left_as_it_is():
    module = spread(Block()).train()
    images, features = images_of(12, 4), ("norm", "hidden/0", "hidden/2")
    want = in_pytorch(module, images)
    teacher = teachers.from_torch(module, mean=MEAN, std=STD, features=features)
    batch = {"image": images, "label": np.arange(4) % 5}
    outputs = jax.jit(teacher.apply)(teacher.variables, batch)
    np.testing.assert_allclose(outputs.logits, want["logits"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        outputs.features["hidden/0"], want["hidden"][0], rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(
        outputs.features["hidden/2"], want["hidden"][2], rtol=1e-5, atol=1e-5
    )
    chex.assert_shape(outputs.features["norm"], (4, 6, 6, 8))
    assert module.training
    assert not module.norm._forward_hooks
    assert "head.weight" in teacher.variables.params
    assert not {"other.weight", "tied.weight"} & set(teacher.variables.params)
    # The weights are the teacher's own: another step of PyTorch does not reach them, and they
    # are arguments of the compiled step, which holds no constants of their size.
    with torch.no_grad():
        module.head.weight.add_(1.0)
    again = teacher.apply(teacher.variables, batch)
    np.testing.assert_allclose(again.logits, outputs.logits, rtol=1e-5, atol=1e-5)
    text = jax.jit(teacher.apply).lower(teacher.variables, batch).as_text()
    assert text.count("tensor<8x3x3x3xf32>") and 'dense<"' not in text

    student = models.mlp(5, widths=(4,))
    objective, optimizer = combine({"kd": terms.kd()}, {"kd": 1.0}), optax.sgd(0.1)
    start = {**batch, "image": np.float32(images) / 255}
    with pytest.raises(ValueError, match=r"PyTorch module.*only answers|answers"):
        models.from_torch(module).apply(*teacher.variables, start["image"], train=True)
    source = teachers.from_torch(module)
    state = init_train_state(
        jax.random.key(0),
        student,
        objective,
        optimizer,
        start,
        source.apply(source.variables, start),
    )
    step = with_teacher(make_train_step(student, objective, optimizer), source)
    _, metrics = step(state, start)
    assert np.isfinite(metrics["loss"][0])


class Looks(torch.nn.Module):
    def forward(self, x):
        return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))


class Two(torch.nn.Module):
    def forward(self, x):
        return x, x


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: teachers.from_torch(3), "module is a int, expected one of PyTorch"),
        (lambda: teachers.from_torch(Looks(), mean=MEAN), "mean and std go together"),
        (lambda: ask(Looks()), r"Looks cannot be run on JAX \(.*teachers.stored"),
        (lambda: ask(Two()), "Two returned a tuple of 0, 1, .*a module of your own"),
        (lambda: ask(spread(Block()), features=["nrm"]), "'nrm'.*near matches: norm"),
    ],
)
def test_what_cannot_teach_is_one_line(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def ask(module, **how):
    teacher = teachers.from_torch(module, **how)
    return jax.jit(teacher.apply)(teacher.variables, {"image": np.ones((1, 4, 4, 3), np.float32)})


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_networks_of_torchvision_and_timm(name):
    library, network = name.split(":")
    zoo = pytest.importorskip(library)
    make = zoo.create_model if library == "timm" else zoo.models.get_model
    module, images = spread(make(network)).eval(), images_of(224)
    want = in_pytorch(module, images).numpy()
    teacher = teachers.from_torch(module, mean=MEAN, std=STD)
    got = jax.jit(teacher.apply)(teacher.variables, {"image": images}).logits
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


OURS = {
    "timm:vit_tiny_patch16_224": lambda: models.vit_ti(7, patch_size=16),
    "torchvision:vit_b_16": lambda: models.vit_b(7, patch_size=16),
    "torchvision:resnet50": lambda: models.resnet50(7),
    "torchvision:mobilenet_v2": lambda: models.imagenet_mobilenet_v2(7),
    "torchvision:vgg11": lambda: models.imagenet_vgg11(7),
    "torchvision:vgg16_bn": lambda: models.imagenet_vgg16(7, batch_norm=True),
    "torchvision:resnet101": lambda: models.resnet101(7),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OURS)
def test_weights_of_torchvision_and_timm_in_our_networks(name, tmp_path):
    library, network = name.split(":")
    zoo = pytest.importorskip(library)
    make = zoo.create_model if library == "timm" else zoo.models.get_model
    module, model, images = spread(make(network, num_classes=7)), OURS[name](), images_of(224)
    torch.save({"state_dict": module.state_dict()}, tmp_path / "weights.pth")
    model = models.normalized(model, MEAN, STD)
    like = jax.eval_shape(model.init, jax.random.key(0), images)
    found = models.from_pytorch(models.read_state_dict(tmp_path / "weights.pth"), like)
    got = jax.jit(lambda v, x: model.apply(*v, x, train=False)[0].logits)(found, images)
    want = in_pytorch(module, images).numpy()
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())
