"""PyTorch state dicts: names, layouts, files, and what is refused."""

import functools
import json
import pathlib
import re
import zipfile

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util

from kdjax import models
from kdjax.models import _torch_names, from_pytorch, normalization_of, read_state_dict

KEY = jax.random.key(0)
IMAGES = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
TEACHERS = pathlib.Path(__file__).parents[2] / "../shared/teachers"


def conv(rng, arrays, name, out, inputs, size):
    arrays[f"{name}.weight"] = rng.normal(size=(out, inputs, size, size)) / (3 * inputs**0.5)


def norm(rng, arrays, name, width):
    arrays[f"{name}.weight"] = rng.uniform(0.5, 1.5, width)
    arrays[f"{name}.bias"] = rng.normal(size=width) / 5
    arrays[f"{name}.running_mean"] = rng.normal(size=width) / 5
    arrays[f"{name}.running_var"] = rng.uniform(0.5, 1.5, width)
    arrays[f"{name}.num_batches_tracked"] = np.array(3)


def resnet_state_dict(num_blocks=1, classes=4):
    rng, arrays, width = np.random.default_rng(1), {}, 16
    conv(rng, arrays, "conv1", 16, 3, 3)
    norm(rng, arrays, "bn1", 16)
    for stage, out in enumerate((16, 32, 64), start=1):
        for block in range(num_blocks):
            name = f"layer{stage}.{block}"
            conv(rng, arrays, f"{name}.conv1", out, width, 3)
            norm(rng, arrays, f"{name}.bn1", out)
            conv(rng, arrays, f"{name}.conv2", out, out, 3)
            norm(rng, arrays, f"{name}.bn2", out)
            if width != out:
                conv(rng, arrays, f"{name}.downsample.0", out, width, 1)
                norm(rng, arrays, f"{name}.downsample.1", out)
            width = out
    arrays["fc.weight"], arrays["fc.bias"] = (
        rng.normal(size=(classes, 64)),
        rng.normal(size=classes),
    )
    return {k: v if v.dtype == int else v.astype(np.float32) for k, v in arrays.items()}


def reference_conv(x, weight, stride):
    """Cross-correlate NCHW images with an OIHW kernel, k // 2 pixels of zeros on every side."""
    size = weight.shape[-1]
    pad = size // 2
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(2, 3))
    return np.einsum("nihwab,oiab->nohw", windows[:, :, ::stride, ::stride], weight)


def reference_norm(x, arrays, name):
    def channel(leaf):
        return arrays[f"{name}.{leaf}"].reshape(1, -1, 1, 1)

    x = (x - channel("running_mean")) / np.sqrt(channel("running_var") + 1e-5)
    return x * channel("weight") + channel("bias")


def reference_block(arrays, name, x):
    shortcut, stride = x, 1
    if f"{name}.downsample.0.weight" in arrays:
        stride = 2
        shortcut = reference_conv(x, arrays[f"{name}.downsample.0.weight"], stride)
        shortcut = reference_norm(shortcut, arrays, f"{name}.downsample.1")
    y = reference_conv(x, arrays[f"{name}.conv1.weight"], stride)
    y = np.maximum(reference_norm(y, arrays, f"{name}.bn1"), 0)
    y = reference_norm(reference_conv(y, arrays[f"{name}.conv2.weight"], 1), arrays, f"{name}.bn2")
    return np.maximum(y + shortcut, 0)


def reference_resnet(arrays, images, num_blocks=1):
    x = reference_conv(np.moveaxis(images, -1, 1), arrays["conv1.weight"], 1)
    x = np.maximum(reference_norm(x, arrays, "bn1"), 0)
    for name in [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(num_blocks)]:
        x = reference_block(arrays, name, x)
    return x.mean((2, 3)) @ arrays["fc.weight"].T + arrays["fc.bias"]


def imagenet_state_dict(classes=4):
    """Name and shape the arrays of an ImageNet ResNet of 18 layers as torchvision does."""
    rng, arrays, width = np.random.default_rng(2), {}, 64
    conv(rng, arrays, "conv1", 64, 3, 7)
    norm(rng, arrays, "bn1", 64)
    for stage, out in enumerate((64, 128, 256, 512), start=1):
        for block in range(2):
            name = f"layer{stage}.{block}"
            conv(rng, arrays, f"{name}.conv1", out, width, 3)
            norm(rng, arrays, f"{name}.bn1", out)
            conv(rng, arrays, f"{name}.conv2", out, out, 3)
            norm(rng, arrays, f"{name}.bn2", out)
            if width != out:
                conv(rng, arrays, f"{name}.downsample.0", out, width, 1)
                norm(rng, arrays, f"{name}.downsample.1", out)
            width = out
    arrays["fc.weight"] = rng.normal(size=(classes, 512))
    arrays["fc.bias"] = rng.normal(size=classes)
    return {k: v if v.dtype == int else v.astype(np.float32) for k, v in arrays.items()}


def reference_imagenet(arrays, images):
    x = reference_conv(np.moveaxis(images, -1, 1), arrays["conv1.weight"], 2)
    x = np.maximum(reference_norm(x, arrays, "bn1"), 0)
    x = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))
    x = windows[:, :, ::2, ::2].max((-2, -1))
    for name in [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in range(2)]:
        x = reference_block(arrays, name, x)
    return x.mean((2, 3)) @ arrays["fc.weight"].T + arrays["fc.bias"]


def resnet_like(depth=8, classes=4):
    return jax.eval_shape(models.resnet(depth, classes).init, KEY, IMAGES)


def test_resnet_equals_a_numpy_reference_of_pytorch():
    arrays = resnet_state_dict(num_blocks=2)
    like = resnet_like(14)
    variables = from_pytorch(arrays, like)
    chex.assert_trees_all_equal_shapes_and_dtypes(variables, like)
    outputs, _ = models.resnet14(4).apply(*variables, IMAGES, train=False)
    expected = reference_resnet(arrays, IMAGES, num_blocks=2)
    error = np.abs(np.asarray(outputs.logits) - expected).max()
    assert error < 1e-5 * np.abs(expected).max()


def test_resnet18_equals_a_numpy_reference_of_torchvisions():
    arrays = imagenet_state_dict()
    model = models.resnet18(4)
    like = jax.eval_shape(model.init, KEY, IMAGES)
    variables = from_pytorch(arrays, like)
    chex.assert_trees_all_equal_shapes_and_dtypes(variables, like)
    images = np.random.default_rng(0).normal(size=(2, 38, 35, 3)).astype(np.float32)
    outputs, _ = jax.jit(lambda v, x: model.apply(*v, x, train=False))(variables, images)
    expected = reference_imagenet(arrays, images)
    error = np.abs(np.asarray(outputs.logits) - expected).max()
    assert error < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("prefix", ["module.", "model.", "state_dict.", "state_dict.model.module."])
def test_wrappers_and_other_usual_names(prefix):
    arrays = resnet_state_dict()
    expected = from_pytorch(arrays, resnet_like())
    renamed = {
        prefix + re.sub("^fc", "linear", name).replace("downsample", "shortcut"): array
        for name, array in arrays.items()
    }
    chex.assert_trees_all_equal(from_pytorch(renamed, resnet_like()), expected)
    assert normalization_of(renamed) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 14}, r"layer1.1.bn1.bias \(16,\) is missing; .*; and 27 more"),
        ({"classes": 7}, r"fc.weight has shape \(4, 64\), expected \(7, 64\)"),
    ],
)
def test_another_architecture_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        from_pytorch(resnet_state_dict(), resnet_like(**change))


def test_arrays_left_over_missing_or_not_finite_are_refused():
    arrays = resnet_state_dict()
    deep = resnet_state_dict(num_blocks=2)
    with pytest.raises(ValueError, match=r"layer1.1.conv1.weight \(16, 16, 3, 3\) is unexpected"):
        from_pytorch(deep, resnet_like())
    with pytest.raises(ValueError, match=r"bn1.running_var is not finite"):
        from_pytorch(arrays | {"bn1.running_var": np.full(16, np.nan)}, resnet_like())
    with pytest.raises(ValueError, match=r"conv1.weight has shape \(16, 3, 5, 5\)"):
        from_pytorch(arrays | {"conv1.weight": np.zeros((16, 3, 5, 5))}, resnet_like())
    with pytest.raises(ValueError, match=r"bn1.bias \(16,\) is missing;.* and 44 more"):
        from_pytorch({}, resnet_like())
    with pytest.raises(ValueError, match=r"'conv1.weight' twice"):
        from_pytorch(arrays | {"module.conv1.weight": arrays["conv1.weight"]}, resnet_like())


def mlp_state_dict(names, sizes):
    rng, arrays = np.random.default_rng(2), {}
    for name, inputs, out in zip(names, sizes[:-1], sizes[1:], strict=True):
        arrays[f"{name}.weight"] = rng.normal(size=(out, inputs)).astype(np.float32)
        arrays[f"{name}.bias"] = rng.normal(size=out).astype(np.float32)
    return arrays


def reference_mlp(arrays, x):
    layers = list(arrays.values())
    for weight, bias in zip(layers[:-2:2], layers[1:-2:2], strict=True):
        x = np.maximum(x @ weight.T + bias, 0)
    return x @ layers[-2].T + layers[-1]


@pytest.mark.parametrize("names", [("1", "3", "10"), ("fc1", "fc2", "fc3"), ("in", "mid", "out")])
def test_perceptron_by_order_of_appearance(names):
    arrays = mlp_state_dict(names, (192, 6, 6, 4))
    model = models.mlp(4, widths=(6, 6))
    variables = from_pytorch(
        arrays, jax.eval_shape(model.init, KEY, IMAGES), image_shape=IMAGES.shape[1:]
    )
    outputs, _ = model.apply(*variables, IMAGES, train=False)
    expected = reference_mlp(arrays, np.moveaxis(IMAGES, -1, 1).reshape(2, -1))
    np.testing.assert_allclose(outputs.logits, expected, rtol=1e-4, atol=1e-4)


def test_perceptron_whose_inputs_are_in_our_order():
    arrays = mlp_state_dict(("0", "2"), (192, 6, 4))
    model = models.mlp(4, widths=(6,))
    variables = from_pytorch(arrays, model.init(KEY, IMAGES))
    outputs, _ = model.apply(*variables, IMAGES, train=False)
    np.testing.assert_allclose(
        outputs.logits, reference_mlp(arrays, IMAGES.reshape(2, -1)), rtol=1e-4, atol=1e-4
    )


def test_perceptron_of_another_shape_is_refused():
    like = jax.eval_shape(models.mlp(4, widths=(6,)).init, KEY, IMAGES)
    with pytest.raises(ValueError, match=r"3 layers \(0, 2, 4\), like has 2 \(hidden_0, head\)"):
        from_pytorch(mlp_state_dict(("0", "2", "4"), (192, 6, 6, 4)), like)
    with pytest.raises(ValueError, match=r"0.weight has shape \(5, 192\), expected \(6, 192\)"):
        from_pytorch(mlp_state_dict(("0", "2"), (192, 5, 4)), like)
    with pytest.raises(ValueError, match=r"\(6, 192\), expected 75 inputs for image_shape"):
        from_pytorch(mlp_state_dict(("0", "2"), (192, 6, 4)), like, image_shape=(5, 5, 3))


def test_networks_of_others_are_refused():
    like = resnet_like()
    like = like._replace(params={"Dense_0": {"kernel": jnp.zeros((3, 2))}}, state={})
    with pytest.raises(ValueError, match=r"no known names in PyTorch: Dense_0, .* holds 0.weight"):
        from_pytorch({"0.weight": np.zeros((2, 3))}, like)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_normalisation_travels_along(prefix):
    arrays = resnet_state_dict()
    both = {
        prefix + "normalisation.mean": np.array([0.1, 0.2, 0.3]),
        prefix + "normalisation.std": np.array([0.4, 0.5, 0.6]),
    }
    mean, std = normalization_of(arrays | both)
    np.testing.assert_allclose(mean, [0.1, 0.2, 0.3], rtol=1e-6)
    np.testing.assert_allclose(std, [0.4, 0.5, 0.6], rtol=1e-6)
    assert mean.dtype == std.dtype == np.float32
    chex.assert_trees_all_equal(
        from_pytorch(arrays | both, resnet_like()), from_pytorch(arrays, resnet_like())
    )
    with pytest.raises(ValueError, match=r"normalisation.std without its counterpart"):
        normalization_of({"normalisation.std": np.ones(3)})
    with pytest.raises(ValueError, match=r"mean has shape \(2,\) and std \(3,\)"):
        normalization_of({"normalisation.mean": np.ones(2), "normalisation.std": np.ones(3)})


def write(file, arrays):
    if file.suffix == ".npz":
        np.savez_compressed(file, **arrays)
    else:
        safetensors.numpy.save_file(arrays, file)


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_files_come_back_as_they_were(tmp_path, kind):
    file = tmp_path / f"teacher.{kind}"
    arrays = mlp_state_dict([str(i) for i in (0, 2, 10)], (5, 4, 3, 2))
    write(file, arrays)
    got = read_state_dict(file)
    chex.assert_trees_all_equal(got, arrays)
    assert [name.split(".")[0] for name in got][::2] == ["0", "2", "10"]


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncated_files_are_refused(tmp_path, kind, share):
    file = tmp_path / f"teacher.{kind}"
    write(file, resnet_state_dict())
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match=rf"teacher\.{kind} is no intact \.{kind} file"):
        read_state_dict(file)


def test_flipped_bits_in_an_npz_are_refused_or_harmless(tmp_path):
    file = tmp_path / "teacher.npz"
    arrays = mlp_state_dict(("0", "2"), (9, 4, 3))
    write(file, arrays)
    data = file.read_bytes()
    refused = 0
    for i in range(0, len(data), 7):
        file.write_bytes(data[:i] + bytes([data[i] ^ 16]) + data[i + 1 :])
        try:
            got = read_state_dict(file)
        except ValueError:
            refused += 1
            continue
        for name in set(got) & set(arrays):
            np.testing.assert_array_equal(got[name], arrays[name])
    assert refused > len(data) // 7 // 2


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none\.npz"):
        read_state_dict(tmp_path / "none.npz")
    for name in ("teacher.h5", "folder.npz"):
        (tmp_path / name).mkdir() if name.startswith("folder") else (tmp_path / name).touch()
        with pytest.raises(ValueError, match=rf"{name} is not a \.npz, \.safetensors or PyTorch"):
            read_state_dict(tmp_path / name)
    np.save(tmp_path / "single.npy", np.ones(3))
    (tmp_path / "single.npy").rename(tmp_path / "single.npz")
    np.savez(tmp_path / "words.npz", a=np.array(["x"]))
    np.savez(tmp_path / "objects.npz", a=np.array([{}], dtype=object))
    (tmp_path / "noise.npz").write_bytes(b"not a zip")
    for name in ("single", "words", "objects", "noise"):
        with pytest.raises(ValueError, match=rf"read_state_dict: .*{name}\.npz") as caught:
            read_state_dict(tmp_path / f"{name}.npz")
        assert "\n" not in str(caught.value)


@pytest.mark.skipif(not TEACHERS.is_dir(), reason="no ../shared/teachers beside the checkout")
def test_the_cifar100_teacher_gives_pytorchs_logits():
    arrays = read_state_dict(TEACHERS / "cifar100_resnet20.npz")
    with np.load(TEACHERS / "cifar100_resnet20_check.npz") as check:
        images, expected = check["images_first_256"], check["logits_first_256"]
        np.testing.assert_array_equal(normalization_of(arrays), [check["mean"], check["std"]])
    model = models.normalized(models.resnet20(100), *normalization_of(arrays))
    variables = from_pytorch(arrays, jax.eval_shape(model.init, KEY, images[:1]))
    apply = jax.jit(lambda v, x: model.apply(*v, x, train=False)[0].logits)
    error = np.abs(np.asarray(apply(variables, images)) - expected).max()
    assert error < 1e-5 * np.abs(expected).max()
    assert models.num_params(variables.params) == 278324


def test_sizes_that_nothing_holds_and_types_that_numpy_lacks_are_one_line(tmp_path):
    header = {"descr": "<f4", "fortran_order": False, "shape": (10**15,)}
    with zipfile.ZipFile(tmp_path / "huge.npz", "w") as archive, archive.open("a.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, header)
    eighth = {"a": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}
    text = json.dumps(eighth).encode()
    content = len(text).to_bytes(8, "little") + text + bytes(2)
    (tmp_path / "eighth.safetensors").write_bytes(content)
    for name in ("huge.npz", "eighth.safetensors"):
        with pytest.raises(ValueError, match=rf"{name} is no intact .* file \(") as raised:
            read_state_dict(tmp_path / name)
        assert "\n" not in str(raised.value)


# By our own module, what three libraries call a transformer's; `|` parts names of fused layers.
TRANSFORMERS = {
    "timm": {
        "tokens/class_token": "cls_token", "tokens/position": "pos_embed",
        "patches": "patch_embed.proj", "norm": "norm", "head": "head",
        "block_0/norm_1": "blocks.0.norm1", "block_0/norm_2": "blocks.0.norm2",
        "block_0/attention/query": "blocks.0.attn.qkv|",
        "block_0/attention/out": "blocks.0.attn.proj",
        "block_0/mlp/up": "blocks.0.mlp.fc1", "block_0/mlp/down": "blocks.0.mlp.fc2",
    },
    "hugging face": {
        "tokens/class_token": "vit.embeddings.cls_token",
        "tokens/position": "vit.embeddings.position_embeddings",
        "patches": "vit.embeddings.patch_embeddings.projection", "norm": "vit.layernorm",
        "head": "classifier", "block_0/norm_1": "vit.encoder.layer.0.layernorm_before",
        "block_0/norm_2": "vit.encoder.layer.0.layernorm_after",
        "block_0/attention/query": "vit.encoder.layer.0.attention.attention.query",
        "block_0/attention/key": "vit.encoder.layer.0.attention.attention.key",
        "block_0/attention/value": "vit.encoder.layer.0.attention.attention.value",
        "block_0/attention/out": "vit.encoder.layer.0.attention.output.dense",
        "block_0/mlp/up": "vit.encoder.layer.0.intermediate.dense",
        "block_0/mlp/down": "vit.encoder.layer.0.output.dense",
    },
    "torchvision": {
        "tokens/class_token": "class_token", "tokens/position": "encoder.pos_embedding",
        "patches": "conv_proj", "norm": "encoder.ln", "head": "heads.head",
        "block_0/norm_1": "encoder.layers.encoder_layer_0.ln_1",
        "block_0/norm_2": "encoder.layers.encoder_layer_0.ln_2",
        "block_0/attention/query": "encoder.layers.encoder_layer_0.self_attention.in_proj_|",
        "block_0/attention/out": "encoder.layers.encoder_layer_0.self_attention.out_proj",
        "block_0/mlp/up": "encoder.layers.encoder_layer_0.mlp.0",
        "block_0/mlp/down": "encoder.layers.encoder_layer_0.mlp.3",
    },
}  # fmt: skip


def in_torchs(path, array):
    """Return an array as a linear layer, a convolution or a vector of PyTorch has it."""
    if array.ndim == 4 and "patches" in path:
        return array.transpose(3, 2, 0, 1)
    if path.startswith("tokens"):
        return array
    if path.endswith("bias"):
        return array.reshape(-1)
    rows = array.shape[-1] if path.endswith(("out/kernel", "mlp/up/kernel")) else None
    if array.ndim == 1:
        return array
    return array.reshape((-1, rows) if rows else (array.shape[0], -1)).T


@pytest.fixture(scope="module")
def transformer():
    model = models.vit_mu(5, patch_size=4)
    drawn = model.init(KEY, IMAGES)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), drawn)


def renamed(variables, names):
    """Return a state dict by another library's names."""
    flat = {
        "/".join(map(str, path)): np.asarray(x)
        for path, x in traverse_util.flatten_dict(variables.params).items()
    }
    found = {}
    for path, array in flat.items():
        layer, _, leaf = path.rpartition("/")
        word = {"kernel": "weight", "scale": "weight"}.get(leaf, leaf)
        if path in names:
            found[names[path]] = array
        elif layer in names and not names[layer].endswith("|"):
            found[f"{names[layer]}.{word}"] = in_torchs(path, array)
        elif layer in names:
            parts = [path.replace("query", part) for part in ("query", "key", "value")]
            dot = "" if names[layer].endswith("_|") else "."
            name = f"{names[layer][:-1]}{dot}{word}"
            found[name] = np.concatenate([in_torchs(part, flat[part]) for part in parts])
    return found


@pytest.mark.parametrize("names", TRANSFORMERS.values(), ids=TRANSFORMERS)
def test_transformers_by_the_names_of_three_libraries(transformer, names):
    arrays = renamed(transformer, names)
    chex.assert_trees_all_equal(from_pytorch(arrays, transformer), transformer)
    wrapped = {f"net.encoder.{name}": x for name, x in arrays.items()}
    chex.assert_trees_all_equal(from_pytorch(wrapped, transformer), transformer)
    with pytest.raises(ValueError, match=r"is missing.*the state dict holds .*looked for are "):
        from_pytorch({n: x for n, x in arrays.items() if names["patches"] not in n}, transformer)


DISTILLED = {
    "timm": {"tokens/distillation_token": "dist_token", "distillation_head": "head_dist"},
    "hugging face": {
        "tokens/distillation_token": "vit.embeddings.distillation_token",
        "distillation_head": "distillation_classifier",
        "head": "cls_classifier",
    },
}


@pytest.mark.parametrize("library", DISTILLED)
def test_transformers_with_a_distillation_token(library):
    model = models.vit_mu(5, patch_size=4, distillation_token=True)
    rng, drawn = np.random.default_rng(0), jax.eval_shape(model.init, KEY, IMAGES)
    own = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), drawn)
    arrays = renamed(own, {**TRANSFORMERS[library], **DISTILLED[library]})
    around = {x.replace("vit.", "deit."): array for x, array in arrays.items()}
    chex.assert_trees_all_equal(from_pytorch(around, own), own)
    like = jax.eval_shape(model.init, KEY, jnp.zeros((1, 16, 16, 3)))
    place = next(x for x in arrays if "pos" in x)
    arrays[place] = np.concatenate([np.arange(64.0).reshape(1, 2, 32), np.full((1, 4, 32), 3.0)], 1)
    position = from_pytorch(arrays, like).params["tokens"]["position"]
    np.testing.assert_allclose(position[0, :2].ravel(), np.arange(64.0))
    np.testing.assert_allclose(position[:, 2:], np.full((1, 16, 32), 3.0), rtol=1e-6)


@pytest.mark.parametrize("form", ["{}", "params/{}", "student.{}"])
def test_arrays_by_our_own_names_are_taken_as_they_are(form, tmp_path):
    model = models.resnet8(3)
    rng, drawn = np.random.default_rng(0), jax.eval_shape(model.init, KEY, np.zeros((1, 8, 8, 3)))
    own = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), drawn)
    flat = {**traverse_util.flatten_dict(own.params), **traverse_util.flatten_dict(own.state)}
    separator = "." if "." in form else "/"
    arrays = {form.format(separator.join(path)): x for path, x in flat.items()}
    np.savez(tmp_path / "own.npz", **arrays)
    arrays = models.read_state_dict(tmp_path / "own.npz")
    chex.assert_trees_all_equal(from_pytorch(arrays, own), own)
    assert models.classes_of(arrays) == 3
    arrays.pop(next(name for name in arrays if name.endswith("kernel")))
    with pytest.raises(ValueError, match=r"kernel \(.* is missing; the state dict holds"):
        from_pytorch(arrays, own)


def test_learned_positions_are_interpolated_for_other_sizes(transformer):
    arrays = renamed(transformer, TRANSFORMERS["timm"])
    model = models.vit_mu(5, patch_size=4)
    like = jax.eval_shape(model.init, KEY, jnp.zeros((1, 16, 16, 3)))
    first, grid = np.arange(32.0)[None, None], np.full((1, 4, 32), 3.0)
    arrays["pos_embed"] = np.concatenate([first, grid], axis=1)
    position = from_pytorch(arrays, like).params["tokens"]["position"]
    np.testing.assert_allclose(position[:, :1], first)
    np.testing.assert_allclose(position[:, 1:], np.full((1, 16, 32), 3.0), rtol=1e-6)
    arrays["pos_embed"] = np.zeros((1, 8, 32))
    with pytest.raises(
        ValueError, match=r"pos_embed has shape \(1, 8, 32\), expected \(1, 17, 32\)"
    ):
        from_pytorch(arrays, like)


@pytest.mark.parametrize("prefix", ["backbone.", "net.", "encoder.", "a.student."])
@pytest.mark.parametrize("head", ["head", "head.fc", "classifier", "output"])
def test_whatever_is_around_the_names_and_the_classifiers_own(prefix, head):
    arrays, like = resnet_state_dict(), resnet_like()
    around = {prefix + name.replace("fc.", f"{head}."): x for name, x in arrays.items()}
    chex.assert_trees_all_equal(from_pytorch(around, like), from_pytorch(arrays, like))


def test_what_is_no_weight_is_passed_over_and_named():
    arrays, like = resnet_state_dict(), resnet_like()
    whole = {
        "epoch": np.int64(3),
        "best_acc": np.float32(0.7),
        "optimizer.state.0.exp_avg": np.ones(3),
    }
    whole |= {f"state_dict.{name}": x for name, x in arrays.items()}
    whole |= {f"ema.{name}": x + 1 for name, x in arrays.items()}
    with pytest.warns(
        UserWarning, match=r"passed over .*: epoch, best_acc, optimizer.* and 47 more"
    ):
        found = from_pytorch(whole, like)
    chex.assert_trees_all_equal(found, from_pytorch(arrays, like))
    two = {f"{of}.{name}": x for of in ("teacher", "student") for name, x in arrays.items()}
    with pytest.raises(ValueError, match=r"network 2 times, under teacher\. and student\."):
        from_pytorch(two, like)


def test_a_file_of_pytorch_is_read_or_its_conversion_said(tmp_path):
    arrays = resnet_state_dict()
    file = tmp_path / "best.pth.tar"
    try:
        import torch
    except ModuleNotFoundError:
        file.touch()
        with pytest.raises(
            ValueError, match=r"kdjax\[torch\].*torch\.load\(.*numpy\.savez\('.*\.npz'"
        ):
            read_state_dict(file)
        return
    tensors = {name: torch.from_numpy(x) for name, x in arrays.items()}
    tensors["fc.bias"] = tensors["fc.bias"].bfloat16().float().bfloat16()
    torch.save({"state_dict": tensors, "epoch": 3, "arch": "resnet8"}, file)
    with pytest.warns(UserWarning, match="passed over .*: epoch"):
        found = from_pytorch(read_state_dict(file), resnet_like())
    np.testing.assert_array_equal(
        found.params["stem"]["kernel"].transpose(3, 2, 0, 1), arrays["conv1.weight"]
    )
    torch.save({"model": pathlib.PurePosixPath("x")}, file)
    with pytest.raises(ValueError, match=r"no intact weights alone .*save model.state_dict"):
        read_state_dict(file)


def mobilenet_state_dict():
    """Random weights by torchvision's names: blocks of (expansion, width, repeats)."""
    rng, arrays, width, number = np.random.default_rng(0), {}, 32, 1
    conv(rng, arrays, "features.0.0", 32, 3, 3)
    norm(rng, arrays, "features.0.1", 32)
    rows = [(1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1)]
    for expansion, out, repeats in rows:
        for _ in range(repeats):
            inner, at = expansion * width, f"features.{number}.conv"
            parts = [(inner, width, 1)] * (expansion > 1) + [(inner, 1, 3)]
            for i, sizes in enumerate(parts):
                conv(rng, arrays, f"{at}.{i}.0", *sizes)
                norm(rng, arrays, f"{at}.{i}.1", inner)
            conv(rng, arrays, f"{at}.{len(parts)}", out, inner, 1)
            norm(rng, arrays, f"{at}.{len(parts) + 1}", out)
            width, number = out, number + 1
    conv(rng, arrays, "features.18.0", 1280, 320, 1)
    norm(rng, arrays, "features.18.1", 1280)
    arrays["classifier.1.weight"] = rng.normal(size=(4, 1280))
    arrays["classifier.1.bias"] = rng.normal(size=4)
    return arrays


def test_mobilenet_by_torchvisions_names():
    arrays = mobilenet_state_dict()
    like = jax.eval_shape(models.imagenet_mobilenet_v2(4).init, KEY, np.zeros((1, 64, 64, 3)))
    params, state = from_pytorch(arrays, like)
    block = params["stage_1"]["block_0"]
    assert set(block) == {"depthwise", "depthwise_norm", "conv_2", "norm_2"}
    kernel = arrays["features.1.conv.0.0.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_allclose(block["depthwise"]["kernel"], kernel, rtol=1e-6)
    last = arrays["features.17.conv.3.running_var"]
    np.testing.assert_allclose(state["batch_stats"]["stage_4"]["block_3"]["norm_2"]["var"], last)


@pytest.mark.parametrize(("batch_norm", "index"), [(False, 18), (True, 25)])
def test_vgg_by_torchvisions_numbers(batch_norm, index):
    """The last convolution of VGG-11 is its layer 18, with BatchNorm 25."""
    small = models.imagenet_vgg11(4, batch_norm=batch_norm)
    like = jax.eval_shape(small.init, KEY, np.zeros((1, 32, 32, 3)))
    layers = {"/".join(str(k.key) for k in path[:-1]) for path, _ in
              jax.tree.leaves_with_path(like.params)}  # fmt: skip
    rules = _torch_names.rules_of(layers)
    name = functools.partial(_torch_names.torch_name, rules=rules)
    assert name(("stage_4", "block_1", "conv", "kernel")) == f"features.{index}.weight"
    assert name(("stage_0", "block_0", "conv", "bias")) == "features.0.bias"
    assert name(("hidden_1", "kernel")) == "classifier.3.weight"
    assert name(("head", "bias")) == "classifier.6.bias"
    if batch_norm:
        assert name(("stage_4", "block_1", "norm", "var")) == "features.26.running_var"
