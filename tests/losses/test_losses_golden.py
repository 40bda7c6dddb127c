"""Equal to the peers' own code, in float64, values and gradients."""

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses

FLOAT64 = jax.enable_x64


def check(entry, loss_fn, data, *, value="output/loss", grad="grad/inputs/student_logits"):
    """Hold loss_fn(student) and its gradient against an entry."""
    student = jnp.asarray(data["inputs/student_logits"])
    got, gradient = jax.value_and_grad(loss_fn)(student)
    np.testing.assert_allclose(got, data[value], rtol=entry["rtol"])
    largest = np.abs(data[grad]).max()
    np.testing.assert_allclose(gradient, data[grad], rtol=0, atol=entry["rtol"] * largest)


@pytest.mark.parametrize("entry", golden.entries("RepDistiller/KD", "mdistiller/kd_loss"))
def test_soft_targets(entry):
    with FLOAT64(True):
        data, temperature = golden.arrays(entry), float(entry["hyper"]["T"])
        teacher = jnp.asarray(data["inputs/teacher_logits"])
        check(
            entry,
            lambda s: losses.soft_target_loss(s, teacher, temperature=temperature).mean(),
            data,
        )


@pytest.mark.parametrize(
    "entry", golden.entries("mdistiller/KD_total", "attention-transfer/distillation")
)
def test_whole_kd(entry):
    """Both weigh the soft part: KD_WEIGHT, or alpha."""
    with FLOAT64(True):
        data, hyper = golden.arrays(entry), entry["hyper"]
        teacher = jnp.asarray(data["inputs/teacher_logits"])
        labels = jnp.asarray(data["inputs/labels"], jnp.int32)
        weight = hyper.get("KD_WEIGHT", hyper.get("alpha"))
        assert hyper.get("CE_WEIGHT", 1 - weight) == pytest.approx(1 - weight)

        def loss_fn(student):
            return losses.kd_loss(
                student, teacher, labels, temperature=float(hyper["T"]), soft_weight=weight
            ).mean()

        check(entry, loss_fn, data)


@pytest.mark.parametrize("entry", golden.entries("tunix/LogitStrategy"))
def test_tunix(entry):
    """Its top-k restricts both networks to the teacher's k classes: that is `where`."""
    with FLOAT64(True):
        data, hyper = golden.arrays(entry), entry["hyper"]
        teacher = jnp.asarray(data["inputs/teacher_logits"])
        labels = jnp.asarray(data["inputs/labels_onehot"])
        where = None
        if hyper["top_k"]:
            where = teacher >= jnp.sort(teacher, axis=-1)[..., -hyper["top_k"], None]

        def loss_fn(student):
            soft = losses.soft_target_loss(
                student, teacher, temperature=hyper["T"], where=where
            ).mean()
            hard = losses.cross_entropy(student, labels).mean()
            return hyper["alpha"] * soft + (1 - hyper["alpha"]) * hard

        check(entry, loss_fn, data)


@pytest.mark.parametrize(
    "entry",
    golden.entries("optax/kl_divergence", "optax/kl_divergence_with_log_targets"),
)
def test_optax(entry):
    with FLOAT64(True):
        data = golden.arrays(entry)
        teacher = jax.nn.log_softmax(jnp.asarray(data["inputs/teacher_logits"]))

        def values(student):
            return losses.kl_divergence(jax.nn.log_softmax(student), teacher)

        check(entry, lambda s: values(s).mean(), data)
        rows = values(jnp.asarray(data["inputs/student_logits"]))
        np.testing.assert_allclose(rows, data["output/per_row"], rtol=entry["rtol"])
