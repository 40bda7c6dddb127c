"""The losses against values and gradients that the peers' own code computed.

The conventions under which they agree: ours is one value per example, theirs the mean over all of
them. T^2 is in all but optax's and distillm's, which take temperature 1. Where cross-entropy is
part of the peer's loss, the soft part has the weight `alpha` or KD_WEIGHT and the labels the rest.
"""

import functools

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses

SOFT = ("RepDistiller/KD", "mdistiller/kd_loss")
TOTAL = ("mdistiller/KD_total", "attention-transfer/distillation", "tunix/LogitStrategy")
OPTAX = ("optax/kl_divergence", "optax/kl_divergence_with_log_targets")
HINT = ("RepDistiller/Hint", "mdistiller/FitNet")
COVERED = {
    **dict.fromkeys(SOFT, "test_soft_targets"),
    **dict.fromkeys(OPTAX, "test_divergence_of_log_probabilities"),
    "tunix/LogitStrategy": "test_soft_targets_and_labels, and of the top k test_the_top_k",
}
LEFT_OUT: dict[str, str] = {}


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


@functools.cache
def with_gradient(name):
    """The loss of that name with its gradient with respect to the first argument, compiled."""

    def soft(x, v, t):
        return jnp.mean(losses.soft_target_loss(x, v, temperature=t))

    def total(x, v, labels, t, w):
        return jnp.mean(losses.kd_loss(x, v, labels, temperature=t, soft_weight=w))

    def divergence(x, v):
        return jnp.mean(losses.kl_divergence(jax.nn.log_softmax(x), jax.nn.log_softmax(v)))

    def reverse(x, v, mask):
        x, v = (losses.tempered_log_softmax(z, 1.0) for z in (x, v))
        return jnp.sum(losses.reverse_kl_divergence(x, v) * mask) / jnp.sum(mask)

    functions = {"soft": soft, "total": total, "divergence": divergence, "reverse": reverse}
    return jax.jit(jax.value_and_grad(functions[name]))


def logits(arrays):
    return arrays["inputs/student_logits"], arrays["inputs/teacher_logits"]


def assert_agrees(entry, arrays, result):
    value, grad = result
    assert value.dtype == grad.dtype == jnp.float64
    golden.assert_close(value, arrays["output/loss"], entry["rtol"])
    golden.assert_close(grad, arrays["grad/inputs/student_logits"], entry["rtol"])


@pytest.mark.parametrize("entry", golden.cases(*SOFT))
def test_soft_targets(entry):
    arrays = golden.load(entry)
    result = with_gradient("soft")(*logits(arrays), float(entry["hyper"]["T"]))
    assert_agrees(entry, arrays, result)


def first_of_a_size(entry):
    return entry["case"].startswith("b8c10")


@pytest.mark.parametrize("entry", golden.cases(SOFT[0], choose=first_of_a_size))
@pytest.mark.parametrize("absent", [-1e4, -np.inf])
def test_classes_out_of_reach_change_nothing(entry, absent):
    """Peers mask with -1e4, and most return nan for -inf: both are the loss without the class."""
    arrays = golden.load(entry)
    padded = [np.insert(x, [0, 4, 10], absent, axis=-1) for x in logits(arrays)]
    value, grad = with_gradient("soft")(*padded, float(entry["hyper"]["T"]))
    # At T = 20 there is exp(-500) left of -1e4; of -inf nothing is.
    assert np.max(np.abs(grad[:, [0, 5, 12]])) <= (1e-150 if np.isfinite(absent) else 0)
    kept = np.delete(grad, [0, 5, 12], axis=-1)
    assert_agrees(entry, arrays, (value, kept))


def without_top_k(entry):
    return not entry["hyper"].get("top_k")


@pytest.mark.parametrize("entry", golden.cases(*TOTAL, choose=without_top_k))
def test_soft_targets_and_labels(entry):
    arrays, hyper = golden.load(entry), entry["hyper"]
    weight = hyper["KD_WEIGHT"] if "KD_WEIGHT" in hyper else hyper["alpha"]
    assert hyper.get("CE_WEIGHT", 1 - weight) == pytest.approx(1 - weight, rel=1e-12)
    labels = arrays.get("inputs/labels", arrays.get("inputs/labels_onehot"))
    result = with_gradient("total")(*logits(arrays), labels, float(hyper["T"]), jnp.array(weight))
    assert_agrees(entry, arrays, result)


@pytest.mark.parametrize("entry", golden.cases(*OPTAX))
def test_divergence_of_log_probabilities(entry):
    arrays = golden.load(entry)
    assert_agrees(entry, arrays, with_gradient("divergence")(*logits(arrays)))
    student, teacher = map(jax.nn.log_softmax, logits(arrays))
    rows = losses.kl_divergence(student, teacher)
    np.testing.assert_allclose(rows, arrays["output/per_row"], rtol=entry["rtol"])


@pytest.mark.parametrize("entry", golden.cases(TOTAL[2], choose=lambda e: e["hyper"]["top_k"]))
def test_the_top_k(entry):
    """They are a `where`: tunix restricts the soft part to them, the labels to no class."""
    arrays, hyper = golden.load(entry), entry["hyper"]
    student, teacher = logits(arrays)
    where = teacher >= np.sort(teacher, axis=-1)[..., -hyper["top_k"], None]

    def loss(x):
        soft = losses.soft_target_loss(x, teacher, temperature=hyper["T"], where=where)
        hard = losses.cross_entropy(x, arrays["inputs/labels_onehot"])
        return jnp.mean(hyper["alpha"] * soft + (1 - hyper["alpha"]) * hard)

    assert_agrees(entry, arrays, jax.jit(jax.value_and_grad(loss))(student))


@pytest.mark.parametrize("entry", golden.cases("distillm/reverse_kl"))
def test_reverse_divergence(entry):
    """The caller masks: padded tokens have the label -100."""
    arrays = golden.load(entry)
    mask = (arrays["inputs/labels"] != -100).astype(np.float64)
    assert_agrees(entry, arrays, with_gradient("reverse")(*logits(arrays), mask))


@pytest.mark.parametrize("entry", golden.cases(*HINT, choose=lambda e: e["case"] == "same"))
def test_hint(entry):
    """Maps of one size: the projection is a 1 x 1 convolution, batch norm and relu, written here.

    mdistiller adds the cross-entropy outside and multiplies the hint by FEAT_WEIGHT.
    """
    arrays = golden.load(entry)
    weight = entry["hyper"].get("FEAT_WEIGHT", 1.0)

    def loss(x, params):
        kernel = params["conv.weight"][:, :, 0, 0]
        scale, bias = (params[name].reshape(1, 1, 1, -1) for name in ("bn.weight", "bn.bias"))
        # The convolution's own bias goes with the mean.
        x = jnp.einsum("nchw,dc->nhwd", x, kernel, precision="highest")
        centered = x - jnp.mean(x, axis=(0, 1, 2), keepdims=True)
        variance = jnp.mean(centered**2, axis=(0, 1, 2), keepdims=True)
        x = jax.nn.relu(centered * jax.lax.rsqrt(variance + 1e-5) * scale + bias)
        teacher = jnp.moveaxis(arrays["inputs/teacher_feat"], 1, -1)
        return weight * jnp.mean(losses.hint_loss(x, teacher))

    names = ("conv.weight", "bn.weight", "bn.bias")
    params = {name: arrays[f"params/{name}"] for name in names}
    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    value, (by_student, by_params) = step(arrays["inputs/student_feat"], params)
    rtol = entry["rtol"]
    golden.assert_close(value, arrays["output/loss"], rtol)
    golden.assert_close(by_student, arrays["grad/inputs/student_feat"], rtol)
    for name in names:
        golden.assert_close(by_params[name], arrays[f"grad/params/{name}"], rtol)
