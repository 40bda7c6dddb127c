"""The steps of `benchmarks.works` in PyTorch: networks of as many parameters, the same work.

Where PyTorch has a GPU the step is compiled by `torch.compile`, images are in the layout that its
convolutions like best, the optimizer is fused, and products of float32 may be TF32, as in JAX.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks.works import SOFT_WEIGHT, TEMPERATURE, Work, make_batch


class Block(nn.Module):
    """Two convolutions with BatchNorm and a shortcut, projected where the shape changes."""

    def __init__(self, before: int, width: int, stride: int):
        super().__init__()
        self.first, self.second = layer(before, width, 3, stride), layer(width, width, 3, 1)
        same = before == width and stride == 1
        self.shortcut = nn.Identity() if same else layer(before, width, 1, stride)

    def forward(self, x: Any) -> Any:
        """Return [batch, width, height / stride, width / stride]."""
        y = self.second(torch.relu(self.first(x)))
        return torch.relu(y + self.shortcut(x))


class Vision(nn.Module):
    """A vision transformer with a class token."""

    def __init__(self, num_classes: int, sizes: dict[str, int], side: int):
        super().__init__()
        width, patch = sizes["width"], sizes["patch_size"]
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.zeros(1, 1 + (side // patch) ** 2, width))
        hidden, options = 4 * width, {"batch_first": True, "norm_first": True, "dropout": 0.0}
        self.blocks = nn.Sequential(*(
            nn.TransformerEncoderLayer(width, sizes["num_heads"], hidden, activation="gelu",
                                       layer_norm_eps=1e-6, **options)
            for _ in range(sizes["depth"])
        ))  # fmt: skip
        self.head = nn.Sequential(nn.LayerNorm(width, eps=1e-6), nn.Linear(width, num_classes))

    def forward(self, x: Any) -> Any:
        """Return logits [batch, classes]."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        return self.head(self.blocks(x)[:, 0])


class DecoderBlock(nn.Module):
    """Causal attention with rotary positions, and a gated perceptron."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        hidden, self.num_heads = -(-8 * width // 96) * 32, num_heads
        self.norms = nn.ModuleList([nn.RMSNorm(width, eps=1e-6) for _ in range(2)])
        self.qkv, self.out = nn.Linear(width, 3 * width, False), nn.Linear(width, width, False)
        self.up, self.down = nn.Linear(width, 2 * hidden, False), nn.Linear(hidden, width, False)

    def forward(self, x: Any, cos: Any, sin: Any) -> Any:
        """Return [batch, tokens, width]."""
        parts = self.qkv(self.norms[0](x)).chunk(3, -1)
        q, k, v = (y.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for y in parts)
        q, k = (rotated(y, cos, sin).to(v.dtype) for y in (q, k))
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        gate, up = self.up(self.norms[1](x)).chunk(2, -1)
        return x + self.down(functional.silu(gate) * up)


class Decoder(nn.Module):
    """A language model whose head is its embedding table."""

    def __init__(self, vocab_size: int, sizes: dict[str, int], length: int):
        super().__init__()
        width, heads = sizes["width"], sizes["num_heads"]
        self.table = nn.Embedding(vocab_size, width)
        self.blocks = nn.ModuleList([DecoderBlock(width, heads) for _ in range(sizes["depth"])])
        self.norm = nn.RMSNorm(width, eps=1e-6)
        half = width // heads // 2
        angles = torch.outer(torch.arange(length), 10_000.0 ** (-torch.arange(half) / half))
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, tokens: Any) -> Any:
        """Return logits [batch, tokens, words]."""
        x = self.table(tokens)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return functional.linear(self.norm(x), self.table.weight)


def layer(before: int, width: int, size: int, stride: int) -> Any:
    """Return a convolution with BatchNorm."""
    convolution = nn.Conv2d(before, width, size, stride, size // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(width))


def rotated(x: Any, cos: Any, sin: Any) -> Any:
    """Turn the two halves of [..., tokens, head width] by the positions' angles."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def perceptron(num_classes: int, sizes: Any, inputs: tuple[int, ...]) -> Any:
    """Return dense layers with ReLUs between."""
    widths = (int(np.prod(inputs[1:])), *sizes["widths"])
    pairs = itertools.pairwise(widths)
    hidden = [x for m, n in pairs for x in (nn.Linear(m, n), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(widths[-1], num_classes))


def residual(num_classes: int, sizes: Any, _: Any) -> Any:
    """Return the residual network for small images."""
    first, *widths = sizes["widths"]
    parts, before = [layer(3, first, 3, 1), nn.ReLU()], first
    for i, width in enumerate(widths):
        for j in range((sizes["depth"] - 2) // 6):
            parts.append(Block(before, width, 2 if i and not j else 1))
            before = width
    pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, num_classes)]
    return nn.Sequential(*parts, *pooled)


NETWORKS: dict[str, Callable[[int, Any, Any], Any]] = {
    "mnist": perceptron,
    "resnet": residual,
    "vit": lambda classes, sizes, inputs: Vision(classes, sizes, inputs[1]),
    "transformer": lambda classes, sizes, inputs: Vision(classes, sizes, inputs[1]),
    "language": lambda words, sizes, inputs: Decoder(words, sizes, inputs[1]),
}
ADAMW = functools.partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.05)
OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "mnist": functools.partial(torch.optim.Adam, lr=1e-3),
    "resnet": functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=5e-4),
}


def take_of(name: str, work: Work, num_params: int, *, half: bool) -> Callable[[int], None]:
    """Return a function that takes some steps in PyTorch.

    Args:
        name: of the work.
        work: what is done.
        num_params: of the student in JAX.
        half: whether layers compute in bfloat16; parameters and losses do not.

    Raises:
        ValueError: if the student has another number of parameters.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.type == "cuda"
    torch.set_float32_matmul_precision("high")
    student, teacher = (
        NETWORKS[name](work.num_classes, dict(sizes), work.inputs).to(device)
        for sizes in (work.student, work.teacher)
    )
    found = sum(p.numel() for p in student.parameters())
    if found != num_params:
        raise ValueError(
            f"{name}: the student has {found} parameters in PyTorch, {num_params} here"
        )
    teacher.eval().requires_grad_(False)
    x, labels = tensors(work, device)
    if x.ndim == 4 and on_gpu:
        x = x.to(memory_format=torch.channels_last)
        student, teacher = (m.to(memory_format=torch.channels_last) for m in (student, teacher))
    make = OPTIMIZERS.get(name, ADAMW)
    optimizer = make(student.parameters(), **({"fused": True} if on_gpu else {}))

    def loss_fn(x: Any, labels: Any) -> Any:
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            with torch.no_grad():
                v = teacher(x)
            z = student(x)
        return textbook(z.float(), v.float(), labels)

    loss_fn = torch.compile(loss_fn) if on_gpu else loss_fn

    def take(count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            loss_fn(x, labels).backward()
            optimizer.step()
        if on_gpu:
            torch.cuda.synchronize()

    return take


def tensors(work: Work, device: Any) -> tuple[Any, Any]:
    """Return inputs and labels, images with their channels first."""
    batch = {name: np.array(x) for name, x in make_batch(work).items()}
    x, labels = torch.from_numpy(batch[work.name]), torch.from_numpy(batch["label"])
    if x.ndim == 4:
        x = x.permute(0, 3, 1, 2).contiguous()
    return (x if x.ndim == 4 else x.long()).to(device), labels.long().to(device)


def textbook(z: Any, v: Any, labels: Any) -> Any:
    """Return the mean of the usual loss on logits [..., classes]."""
    z, v, labels = z.flatten(0, -2), v.flatten(0, -2), labels.flatten()
    log_q = functional.log_softmax(z / TEMPERATURE, -1)
    p = functional.softmax(v / TEMPERATURE, -1)
    soft = functional.kl_div(log_q, p, reduction="batchmean") * TEMPERATURE**2
    return SOFT_WEIGHT * soft + (1 - SOFT_WEIGHT) * functional.cross_entropy(z, labels)
