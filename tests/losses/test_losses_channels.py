"""Losses on channels, class maps, pixels and embeddings against what the peers' code computed.

Ours is one value per example; where a peer divides by the batch twice or takes another mean, the
test says so and multiplies.
"""

import functools

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses

COVERED = {
    "CAT-KD/CAT_loss": "test_class_attention",
    "CAT-KD/variants": "test_class_attention_variants: the teacher's map is data, prepared before",
    "MGD/cls": "test_masked_generation",
    "MGD/det": "test_masked_generation",
    "SimKD/SemCKD": "test_semantic_calibration",
    "SimKD/SimKD": "tests/models/test_models_heads.py: test_simkd",
    "TorchDistiller/CWD": "test_channel_wise",
    "TorchDistiller/IFV": "test_intra_class_variation",
    "TorchDistiller/PixelKD": "test_soft_targets_of_pixels: ours has T^2 and sums over classes",
    "cls_KD/SRRLLoss": "test_softmax_regression",
    "keras/FeatureDistillation_cosine": "test_cosine",
    "optax/cosine_distance": "test_cosine",
    "torchdistill/AffinityLoss": "test_affinity",
    "torchdistill/ChSimLoss": "test_inter_channel_correlation",
    "torchdistill/PADL2Loss": "test_prime_aware",
}
LEFT_OUT = dict.fromkeys(
    ("RepDistiller/KDSVD", "mdistiller/kdsvd_loss"),
    "ill-defined: the value depends on the signs that a singular value decomposition happens to "
    "choose, and changes by 1 % with an equally valid choice",
)


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


def nhwc(x):
    return np.moveaxis(x, 1, -1) if x.ndim == 4 else x


def hwio(x):
    return jnp.transpose(x, (2, 3, 1, 0))


@functools.cache
def compiled(name, by=0, **hyper):
    """The mean of the loss over the batch and its gradients, compiled once for all entries."""
    loss = functools.partial(getattr(losses, name), **hyper)
    return jax.jit(jax.value_and_grad(lambda *args: jnp.mean(loss(*args)), argnums=by))


def assert_agrees(entry, arrays, value, grads, scale=1.0):
    """Compare a value and gradients by name, all of which the entry has to have, and no others."""
    assert value.dtype == jnp.float64
    golden.assert_close(scale * value, arrays["output/loss"], entry["rtol"])
    assert set(grads) == {k.removeprefix("grad/") for k in arrays if k.startswith("grad/")}
    for name, grad in grads.items():
        golden.assert_close(scale * grad, nhwc(arrays[f"grad/{name}"]), entry["rtol"])


def features(arrays, suffix=""):
    return [nhwc(arrays[f"inputs/{whose}_feat{suffix}"]) for whose in ("student", "teacher")]


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("entry", golden.cases("TorchDistiller/CWD"))
def test_channel_wise(entry):
    arrays = golden.load(entry)
    step = compiled("channel_wise_loss", temperature=entry["hyper"]["T"])
    value, grad = step(*features(arrays))
    assert_agrees(entry, arrays, value, {"inputs/student_feat": grad})


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("entry", golden.cases("torchdistill/ChSimLoss"))
def test_inter_channel_correlation(entry):
    """The peer divides by the batch twice."""
    arrays = golden.load(entry)
    student, teacher = features(arrays, "_0")
    value, grad = compiled("inter_channel_correlation_loss")(student, teacher)
    assert_agrees(entry, arrays, value, {"inputs/student_feat_0": grad}, 1 / len(student))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("entry", golden.cases("torchdistill/AffinityLoss"))
def test_affinity(entry):
    arrays = golden.load(entry)
    value, grad = compiled("affinity_loss")(*features(arrays, "_0"))
    assert_agrees(entry, arrays, value, {"inputs/student_feat_0": grad})


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("entry", golden.cases("CAT-KD/CAT_loss"))
def test_class_attention(entry):
    arrays, hyper = golden.load(entry), entry["hyper"]
    step = compiled(
        "class_attention_loss", resolution=hyper["CAM_RESOLUTION"], normalize=hyper["IF_NORMALIZE"]
    )
    value, grad = step(*features(arrays))
    assert_agrees(entry, arrays, value, {"inputs/student_feat": grad})


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("entry", golden.cases("CAT-KD/variants"))
def test_class_attention_variants(entry):
    """The variants change the maps before the loss, which is ours: a binary map of the teacher's,
    and a selection of its largest n classes, of which the peer takes one too few (strict >).
    """
    arrays, hyper = golden.load(entry), entry["hyper"]
    student, teacher = features(arrays)
    step = compiled("class_attention_loss", resolution=hyper["res"])

    def of_classes(count):
        order = np.argsort(-arrays["inputs/teacher_logits"], axis=-1)[:, None, None, :count]
        chosen = np.broadcast_to(order, (*student.shape[:-1], count))
        maps = [np.take_along_axis(x, chosen, axis=-1) for x in (student, teacher)]
        value, small = step(*maps)
        grad = np.zeros_like(student)
        np.put_along_axis(grad, chosen, np.asarray(small), axis=-1)
        return value, grad

    if hyper["binarize"]:
        level = np.mean(np.abs(teacher), axis=(1, 2), keepdims=True)
        value, grad = step(student, (teacher > level).astype(float))
    else:
        value, grad = of_classes(hyper["n"] - 1)
        assert not np.isclose(hyper["weight"] * of_classes(hyper["n"])[0], arrays["output/loss"])
    assert_agrees(entry, arrays, value, {"inputs/student_feat": grad}, hyper["weight"])


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("entry", golden.cases("TorchDistiller/IFV"))
def test_intra_class_variation(entry):
    arrays = golden.load(entry)
    step = compiled("intra_class_variation_loss", num_classes=entry["hyper"]["classes"])
    value, grad = step(*features(arrays), arrays["inputs/label_map"])
    assert_agrees(entry, arrays, value, {"inputs/student_feat": grad})


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("entry", golden.cases("TorchDistiller/PixelKD"))
def test_soft_targets_of_pixels(entry):
    """The peer leaves out T^2 and divides the divergence by the number of classes as well."""
    arrays, temperature = golden.load(entry), entry["hyper"]["T"]
    student, teacher = features(arrays)
    value, grad = compiled("soft_target_loss", temperature=temperature)(student, teacher)
    missing = temperature**2 * student.shape[-1]
    assert not np.allclose(value, arrays["output/loss"], rtol=0.5)
    assert_agrees(entry, arrays, value, {"inputs/student_feat": grad}, 1 / missing)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("entry", golden.cases("cls_KD/SRRLLoss"))
def test_softmax_regression(entry):
    arrays, hyper = golden.load(entry), entry["hyper"]
    step = compiled(
        "softmax_regression_loss",
        by=(0, 2),
        feature_weight=hyper["alpha"],
        logit_weight=hyper["beta"],
    )
    logits = (arrays[f"inputs/{whose}_logits"] for whose in ("student", "teacher"))
    value, grads = step(*features(arrays), *logits)
    names = ("inputs/student_feat", "inputs/student_logits")
    assert_agrees(entry, arrays, value, dict(zip(names, grads, strict=True)))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("entry", golden.cases("torchdistill/PADL2Loss"))
def test_prime_aware(entry):
    arrays = golden.load(entry)
    names = ("inputs/student_emb", "inputs/teacher_emb", "inputs/log_var")
    step = compiled("prime_aware_loss", by=(0, 2), eps=entry["hyper"]["eps"])
    value, grads = step(*(arrays[name] for name in names))
    assert_agrees(entry, arrays, value, dict(zip(names[::2], grads, strict=True)))


COSINES = ("optax/cosine_distance", "keras/FeatureDistillation_cosine")


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("entry", golden.cases(*COSINES))
def test_cosine(entry):
    """Keras returns minus the cosine: -1 where ours is 0."""
    arrays, is_keras = golden.load(entry), entry["loss_id"].startswith("keras")
    kind = "feat" if is_keras else "emb"
    pair = (arrays[f"inputs/{whose}_{kind}"] for whose in ("student", "teacher"))
    value, grad = compiled("cosine_loss")(*pair)
    golden.assert_close(value - is_keras, arrays["output/loss"], entry["rtol"])
    golden.assert_close(grad, arrays[f"grad/inputs/student_{kind}"], entry["rtol"])


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("entry", golden.cases("MGD/cls", "MGD/det"))
def test_masked_generation(entry):
    """The peer's draws: below lambda is hidden for channels, above 1 - lambda for positions."""
    arrays, hyper = golden.load(entry), entry["hyper"]
    draws, ratio = nhwc(arrays["inputs/rand_uniform"]), hyper["lambda_mgd"]
    keep = draws >= ratio if entry["loss_id"] == "MGD/cls" else draws <= 1 - ratio
    params = {k: v for k, v in arrays.items() if k.startswith("params/")}
    student, teacher = features(arrays)

    def loss(x, p):
        if "params/align.weight" in p:
            kernel = p["params/align.weight"][:, :, 0, 0]
            x = jnp.einsum("bhwc,dc->bhwd", x, kernel) + p["params/align.bias"].reshape(1, 1, 1, -1)
        first, second = (f"params/generation.{i}" for i in (0, 2))
        generator = {
            "kernel_1": hwio(p[f"{first}.weight"]),
            "bias_1": p[f"{first}.bias"],
            "kernel_2": hwio(p[f"{second}.weight"]),
            "bias_2": p[f"{second}.bias"],
        }
        values = losses.masked_generation_loss(x, teacher, keep, generator)
        return hyper["alpha_mgd"] * jnp.mean(values)

    value, (grad, by_params) = jax.jit(jax.value_and_grad(loss, (0, 1)))(student, params)
    golden.assert_close(value, arrays["output/loss"], entry["rtol"])
    golden.assert_close(grad, nhwc(arrays["grad/inputs/student_feat"]), entry["rtol"])
    for name, by_param in by_params.items():
        golden.assert_close(by_param, arrays[f"grad/{name}"], entry["rtol"])


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("entry", golden.cases("SimKD/SemCKD"))
def test_semantic_calibration(entry):
    arrays = golden.load(entry)
    _, num_student, num_teacher = arrays["inputs/weight"].shape

    def pairs(whose):
        return [
            [nhwc(arrays[f"inputs/{whose}_feat_{i}{j}"]) for j in range(num_teacher)]
            for i in range(num_student)
        ]

    step = compiled("semantic_calibration_loss", by=(0, 2))
    value, (grads, by_weight) = step(pairs("student"), pairs("teacher"), arrays["inputs/weight"])
    named = {f"inputs/student_feat_{i}{j}": g for i, r in enumerate(grads) for j, g in enumerate(r)}
    assert_agrees(entry, arrays, value, {**named, "inputs/weight": by_weight})
