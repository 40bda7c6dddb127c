"""The tables' networks in NumPy, channels first, under the names of their PyTorch checkpoints.

Each is a function of `Layers`, which makes an array when a layer is first called: so the names, the
shapes and the order of the layers are written down here once more, apart from ours. They return
logits and maps, those of our stages and what their ReLUs see.
"""

import numpy as np


class Layers:
    """Layers in evaluation mode, on [batch, channels, height, width], and the arrays they made."""

    def __init__(self):
        self.rng, self.arrays = np.random.default_rng(0), {}

    def make(self, name, draw):
        value = self.arrays.setdefault(name, draw().astype(np.float32))
        return value.astype(np.float64)

    def conv(self, name, x, out, size=1, stride=1, groups=1, bias=False):
        ins = x.shape[1] // groups
        shape = (out, ins, size, size)
        scale = (ins * size * size) ** -0.5
        weight = self.make(f"{name}.weight", lambda: scale * self.rng.normal(size=shape))
        pad = size // 2
        x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
        windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(2, 3))
        windows = windows[:, :, ::stride, ::stride]
        windows = windows.reshape(len(x), groups, ins, *windows.shape[2:])
        kernel = weight.reshape(groups, out // groups, *shape[1:])
        y = np.einsum("ngihwab,goiab->ngohw", windows, kernel, optimize=True)
        y = y.reshape(len(x), out, *y.shape[3:])
        if bias:
            y = y + self.make(f"{name}.bias", lambda: self.rng.normal(size=out)).reshape(-1, 1, 1)
        return y

    def norm(self, name, x):
        width = x.shape[1]
        scale = self.make(f"{name}.weight", lambda: self.rng.uniform(0.5, 1.5, width))
        bias = self.make(f"{name}.bias", lambda: self.rng.normal(size=width) / 5)
        mean = self.make(f"{name}.running_mean", lambda: self.rng.normal(size=width) / 5)
        var = self.make(f"{name}.running_var", lambda: self.rng.uniform(0.5, 1.5, width))
        self.arrays[f"{name}.num_batches_tracked"] = np.array(3)
        scale, bias, mean, var = (a.reshape(-1, 1, 1) for a in (scale, bias, mean, var))
        return (x - mean) / np.sqrt(var + 1e-5) * scale + bias

    def linear(self, name, x, out):
        shape = (out, x.shape[1])
        weight = self.make(f"{name}.weight", lambda: self.rng.normal(size=shape))
        return x @ weight.T + self.make(f"{name}.bias", lambda: self.rng.normal(size=out))

    def count(self):
        """Count the parameters: all but statistics."""
        parts = ("running_mean", "running_var", "num_batches_tracked")
        return sum(a.size for name, a in self.arrays.items() if not name.endswith(parts))


def relu(x):
    return np.maximum(x, 0)


def shuffle(x, groups):
    order = np.arange(x.shape[1]).reshape(groups, -1).T.ravel()
    return x[:, order]


def pooled(x, fn, size, stride, pad=0):
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(2, 3))
    return fn(windows[:, :, ::stride, ::stride], axis=(-2, -1))


def residual(layers, x, classes, *, widths, num_blocks):
    x = relu(layers.norm("bn1", layers.conv("conv1", x, widths[0], 3)))
    maps, bare = [], []
    for stage, width in enumerate(widths[1:], start=1):
        for block in range(num_blocks):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = relu(layers.norm(f"{name}.bn1", layers.conv(f"{name}.conv1", x, width, 3, stride)))
            y = layers.norm(f"{name}.bn2", layers.conv(f"{name}.conv2", y, width, 3))
            if x.shape[1] != width:
                x = layers.conv(f"{name}.downsample.0", x, width, 1, stride)
                x = layers.norm(f"{name}.downsample.1", x)
            before = x + y
            x = relu(before)
        maps.append(x)
        bare.append(before)
    return layers.linear("fc", x.mean((2, 3)), classes), maps, bare


def bottlenecks(layers, x, classes, *, sizes):
    x = relu(layers.norm("bn1", layers.conv("conv1", x, 64, 3)))
    maps, bare = [], []
    for stage, num_blocks in enumerate(sizes, start=1):
        width = 32 * 2**stage
        for block in range(num_blocks):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = relu(layers.norm(f"{name}.bn1", layers.conv(f"{name}.conv1", x, width)))
            y = layers.conv(f"{name}.conv2", y, width, 3, stride)
            y = relu(layers.norm(f"{name}.bn2", y))
            y = layers.norm(f"{name}.bn3", layers.conv(f"{name}.conv3", y, 4 * width))
            if x.shape[1] != 4 * width:
                x = layers.conv(f"{name}.shortcut.0", x, 4 * width, 1, stride)
                x = layers.norm(f"{name}.shortcut.1", x)
            before = x + y
            x = relu(before)
        maps.append(x)
        bare.append(before)
    return layers.linear("linear", x.mean((2, 3)), classes), maps, bare


def wide(layers, x, classes, *, num_blocks, factor):
    x = layers.conv("conv1", x, 16, 3)
    maps, bare = [], []
    for stage in (1, 2, 3):
        width = 8 * factor * 2**stage
        for block in range(num_blocks):
            name, stride = f"block{stage}.layer.{block}", 2 if stage > 1 and block == 0 else 1
            normed = layers.norm(f"{name}.bn1", x)
            if stage > 1 and block == 0:
                bare.append(normed)
            y = layers.conv(f"{name}.conv1", relu(normed), width, 3, stride)
            y = layers.conv(f"{name}.conv2", relu(layers.norm(f"{name}.bn2", y)), width, 3)
            if x.shape[1] != width:
                x = layers.conv(f"{name}.convShortcut", relu(normed), width, 1, stride)
            x = x + y
        maps.append(x)
    bare.append(layers.norm("bn1", x))
    return layers.linear("fc", relu(bare[-1]).mean((2, 3)), classes), maps, bare


def vgg(layers, x, classes, *, num_convs):
    maps, bare = [], []
    for stage, width in enumerate((64, 128, 256, 512, 512)):
        if stage in (1, 2, 3):
            x = pooled(x, np.max, 2, 2)
        for i in range(num_convs):
            before = layers.conv(f"block{stage}.{3 * i}", x, width, 3, bias=True)
            before = layers.norm(f"block{stage}.{3 * i + 1}", before)
            x = relu(before)
        maps.append(x)
        bare.append(before)
    return layers.linear("classifier", x.mean((2, 3)), classes), maps[1:], bare[1:]


def mobile(layers, x, classes):
    x = relu(layers.norm("conv1.1", layers.conv("conv1.0", x, 16, 3, 2)))
    maps = []
    rows = [(1, 8, 1, 1), (6, 12, 2, 1), (6, 16, 3, 2), (6, 32, 4, 2), (6, 48, 3, 1)]
    rows += [(6, 80, 3, 2), (6, 160, 1, 1)]
    for row, (expansion, width, count, first_stride) in enumerate(rows):
        for block in range(count):
            name, stride = f"blocks.{row}.{block}.conv", first_stride if block == 0 else 1
            inner = expansion * x.shape[1]
            y = relu(layers.norm(f"{name}.1", layers.conv(f"{name}.0", x, inner)))
            y = layers.conv(f"{name}.3", y, inner, 3, stride, groups=inner)
            y = relu(layers.norm(f"{name}.4", y))
            y = layers.norm(f"{name}.7", layers.conv(f"{name}.6", y, width))
            x = x + y if stride == 1 and x.shape[1] == width else y
        if row in (1, 2, 4, 6):
            maps.append(x)
    x = relu(layers.norm("conv2.1", layers.conv("conv2.0", x, 1280)))
    return layers.linear("classifier.0", x.mean((2, 3)), classes), maps, maps


def shuffle_v1(layers, x, classes):
    x = relu(layers.norm("bn1", layers.conv("conv1", x, 24)))
    maps, bare = [], []
    for stage, (width, num_blocks) in enumerate(((240, 4), (480, 8), (960, 4)), start=1):
        for block in range(num_blocks):
            name, down = f"layer{stage}.{block}", block == 0
            groups, own = 1 if x.shape[1] == 24 else 3, width - down * x.shape[1]
            y = layers.conv(f"{name}.conv1", x, own // 4, groups=groups)
            y = shuffle(relu(layers.norm(f"{name}.bn1", y)), groups)
            y = layers.conv(f"{name}.conv2", y, own // 4, 3, 1 + down, groups=own // 4)
            y = relu(layers.norm(f"{name}.bn2", y))
            y = layers.norm(f"{name}.bn3", layers.conv(f"{name}.conv3", y, own, groups=3))
            short = pooled(x, np.mean, 3, 2, pad=1) if down else x
            before = np.concatenate([y, short], axis=1) if down else y + short
            x = relu(before)
        maps.append(x)
        bare.append(before)
    return layers.linear("linear", x.mean((2, 3)), classes), maps, bare


def shuffle_v2(layers, x, classes):
    x = relu(layers.norm("bn1", layers.conv("conv1", x, 24)))
    maps, bare = [], []
    for stage, (width, num_blocks) in enumerate(((116, 4), (232, 8), (464, 4)), start=1):
        half = width // 2
        for block in range(num_blocks):
            name, down = f"layer{stage}.{block}", block == 0
            if down:
                short = layers.conv(f"{name}.conv1", x, x.shape[1], 3, 2, groups=x.shape[1])
                short = layers.conv(f"{name}.conv2", layers.norm(f"{name}.bn1", short), half)
                short, y, first = layers.norm(f"{name}.bn2", short), x, 3
            else:
                short, y, first = x[:, :half], x[:, half:], 1
            numbers = (first, first + 1, first + 2)
            convs, norms = ([f"{name}.{kind}{n}" for n in numbers] for kind in ("conv", "bn"))
            y = relu(layers.norm(norms[0], layers.conv(convs[0], y, half)))
            y = layers.norm(norms[1], layers.conv(convs[1], y, half, 3, 1 + down, groups=half))
            y = layers.norm(norms[2], layers.conv(convs[2], y, half))
            before = shuffle(np.concatenate([short, y], axis=1), 2)
            x = relu(before)
        maps.append(x)
        bare.append(before)
    x = relu(layers.norm("bn2", layers.conv("conv2", x, 1024)))
    return layers.linear("linear", x.mean((2, 3)), classes), maps, bare
