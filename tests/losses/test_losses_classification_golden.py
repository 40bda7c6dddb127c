"""Losses on the logits of classifiers against values and gradients of the peers' own code.

Theirs is the mean over the batch of ours, unless the test says otherwise; cross-entropy with the
labels is added where it is part of the peer's loss. What a peer gets wrong is reproduced here, from
ours, and shown to differ.
"""

import functools

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses

QUICK = {"xla_llvm_disable_expensive_passes": True, "xla_backend_optimization_level": 0}


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


@functools.cache
def compiled(fn):
    """The mean of a loss and its gradient by the first argument, compiled once for a shape."""
    step = jax.value_and_grad(lambda *args: jnp.mean(fn(*args)))
    return jax.jit(step, compiler_options=QUICK)


def named(arrays, *names):
    return [arrays[f"inputs/{name}"] for name in names]


def logits(arrays):
    return named(arrays, "student_logits", "teacher_logits")


def assert_agrees(entry, arrays, value, grad):
    assert value.dtype == grad.dtype == jnp.float64
    golden.assert_close(value, arrays["output/loss"], entry["rtol"])
    golden.assert_close(grad, arrays["grad/inputs/student_logits"], entry["rtol"])


def dkd(x, v, y, t, a, b):
    return losses.dkd_loss(x, v, y, temperature=t, target_weight=a, nontarget_weight=b)


def standardized_dkd(x, v, y, t, a, b):
    return dkd(*(losses.standardize_logits(z, eps=1e-7) for z in (x, v)), y, t, a, b)


def soft(x, v, t):
    return losses.soft_target_loss(x, v, temperature=t)


def standardized(x, v, t):
    return soft(*(losses.standardize_logits(z, eps=1e-7) for z in (x, v)), t)


def weighed(x, v, y, t, a, b):
    return a * losses.cross_entropy(x, y) + b * soft(x, v, t)


def standardized_weighed(x, v, y, t, a, b):
    return a * losses.cross_entropy(x, y) + b * standardized(x, v, t)


def nkd(x, v, y, t, g):
    return losses.nkd_loss(x, v, y, temperature=t, nontarget_weight=g)


def wsld(x, v, y, t, a):
    return a * losses.wsld_loss(x, v, y, temperature=t)


def wsld_total(x, v, y, t, a):
    return wsld(x, v, y, t, a) + losses.cross_entropy(x, y)


def soft_cross_entropy(x, v, t, a):
    """The KL and the teacher's entropy, which has no gradient."""
    log_p = losses.tempered_log_softmax(v, t)
    return a * (soft(x, v, t) - t * t * jnp.sum(jnp.exp(log_p) * log_p, axis=-1))


# By loss: ours, and the hyper-parameters that it takes. The logits come first, then the labels.
LABELLED = {
    "mdistiller/dkd_loss": (dkd, ("T", "alpha", "beta")),
    "logit-standardization-KD/dkd_loss": (standardized_dkd, ("T", "alpha", "beta")),
    "torchdistill/KDLoss": (weighed, ("T", "alpha", "beta")),
    "torchdistill/LogitStdKDLoss": (standardized_weighed, ("T", "alpha", "beta")),
    "cls_KD/NKDLoss": (nkd, ("T", "gamma")),
    "cls_KD/WSLDLoss": (wsld, ("T", "alpha")),
    "Weighted-Soft-Label-Distillation/WSLDistiller": (wsld_total, ("T", "alpha")),
}


def hyper_of(entry, names):
    hyper = {"beta": 1 - entry["hyper"].get("alpha", 0), **entry["hyper"]}
    return [float(hyper[name]) for name in names]


@pytest.mark.parametrize("entry", golden.cases(*LABELLED))
def test_with_labels(entry):
    arrays, (fn, names) = golden.load(entry), LABELLED[entry["loss_id"]]
    args = [*logits(arrays), arrays["inputs/labels"], *hyper_of(entry, names)]
    assert_agrees(entry, arrays, *compiled(fn)(*args))


def ttm(x, v, power):
    return losses.ttm_loss(x, v, temperature=1 / power)


def wttm(x, v, power):
    return losses.wttm_loss(x, v, temperature=1 / power)


def instance(x, v, t):
    return soft(x, v, t) / t**2


def batch_correlation(x, v, t):
    return losses.batch_correlation_loss(x, v, temperature=t)


def class_correlation(x, v, t):
    return losses.class_correlation_loss(x, v, temperature=t)


def direction(x, v, r):
    return losses.direction_relation_loss(x, v, regularization=r)


def squares(x, v):
    return x.shape[-1] * losses.logit_mse_loss(x, v)


def euclidean(x, v):
    return losses.logit_distance_loss(x, v, eps=1e-12)


def log_euclidean(x, v):
    return euclidean(*(losses.tempered_log_softmax(z, 1.0) for z in (x, v)))


def hard(x, v, smoothing):
    return losses.hard_target_loss(x, v, smoothing=smoothing)


# cls_KD has cross-entropy, not KL; SKD's instance part has no T^2; big_vision sums over classes.
UNLABELLED = {
    "logit-standardization-KD/kd_loss": (standardized, ("T",)),
    "MLKD/kd_loss": (soft, ("T",)),
    "MLKD/bc_loss": (batch_correlation, ("T",)),
    "MLKD/cc_loss": (class_correlation, ("T",)),
    "TTM/TTM": (ttm, ("l",)),
    "TTM/WTTM": (wttm, ("l",)),
    "cls_KD/KDLoss": (soft_cross_entropy, ("T", "alpha")),
    "torchdistill/SKDInstanceLoss": (instance, ("T",)),
    "torchdistill/SKDDirectionLoss": (direction, ("tikhonov",)),
    "big_vision/euclidean": (euclidean, ()),
    "big_vision/logsoftmax_euclidean": (log_euclidean, ()),
    "big_vision/l2": (squares, ()),
    "big_vision/hard": (hard, ("ls",)),
}


@pytest.mark.parametrize("entry", golden.cases(*UNLABELLED))
def test_without_labels(entry):
    arrays, (fn, names) = golden.load(entry), UNLABELLED[entry["loss_id"]]
    assert_agrees(entry, arrays, *compiled(fn)(*logits(arrays), *hyper_of(entry, names)))


@functools.cache
def dist(eps):
    def loss(x, v, t, b, g):
        return losses.dist_loss(x, v, temperature=t, inter_weight=b, intra_weight=g, eps=eps)

    return loss


DIST = ("DIST_KD/DIST", "image_classification_sota/DIST", "torchdistill/DISTLoss")


@pytest.mark.parametrize("entry", golden.cases(*DIST))
def test_dist(entry):
    """Torchdistill holds each norm above eps instead of adding eps to their product: eps is 0."""
    arrays, hyper = golden.load(entry), entry["hyper"]
    student, teacher = (np.moveaxis(x, 1, -1) for x in logits(arrays))
    fn = dist(0.0 if entry["loss_id"].startswith("torchdistill") else hyper["eps"])
    weights = float(hyper["beta"]), float(hyper["gamma"])
    value, grad = compiled(fn)(student, teacher, float(hyper.get("tau", 1)), *weights)
    assert_agrees(entry, arrays, value, np.moveaxis(grad, -1, 1))


@pytest.mark.parametrize("entry", golden.cases("torchdistill/DISTPlusLoss"))
def test_dist_plus_rewards_channels_that_do_not_correlate(entry):
    """A quirk: the channels' correlation is added, the other three are subtracted from 1."""
    arrays = golden.load(entry)
    value, grad = compiled(dist(0.0))(*logits(arrays), 1.0, 1.0, 1.0)
    golden.assert_close(grad, arrays["grad/inputs/student_logits"], entry["rtol"])
    s, t = named(arrays, "student_feat", "teacher_feat")

    def correlation(a, b, axis, **kwargs):
        a, b = (x - x.mean(axis, keepdims=True) for x in (a, b))
        return np.mean(np.sum(a * b, axis) / np.sqrt(np.sum(a * a, axis) * np.sum(b * b, axis)))

    channels = correlation(s, t, 1)
    spatial = 1 - correlation(*(x.sum(1).reshape(len(x), -1) for x in (s, t)), 0)
    np.testing.assert_allclose(value + channels + spatial, arrays["output/loss"], rtol=1e-6)
    assert abs(value + (1 - channels) + spatial - arrays["output/loss"]) > 0.1


@pytest.mark.parametrize("entry", golden.cases("torchdistill/KDLoss_soft_only"))
def test_without_labels_the_peer_forgets_t_squared(entry):
    arrays, t = golden.load(entry), float(entry["hyper"]["T"])
    value, grad = compiled(soft)(*logits(arrays), t)
    assert_agrees(entry, arrays, value / t**2, grad / t**2)
    assert t == 1 or abs(value / arrays["output/loss"] - 1) > 0.5


@pytest.mark.parametrize("entry", golden.cases("torchdistill/SRDLoss"))
def test_logits_of_simple_recipe_distillation(entry):
    """Without T^2. The feature part is one logarithm of a sum over the batch, -inf at equality."""
    arrays, t = golden.load(entry), float(entry["hyper"]["temperature"])
    value, grad = compiled(soft)(*logits(arrays), t)
    gap = np.subtract(*named(arrays, "student_emb", "teacher_emb"))
    features = 2 * np.log(np.sum(np.abs(gap) ** entry["hyper"]["exponent"]))
    assert_agrees(entry, arrays, value / t**2 + features, grad / t**2)


@pytest.mark.parametrize("entry", golden.cases("TAID/DKD"))
def test_padding_does_not_dilute(entry):
    """A quirk: the peer leaves padded tokens out of the sum and counts them in the divisor."""
    arrays, hyper = golden.load(entry), entry["hyper"]
    mask = arrays["inputs/labels"] != -100
    labels = np.where(mask, arrays["inputs/labels"], 0)
    rows = jax.jit(dkd, compiler_options=QUICK)(
        *logits(arrays), labels, *hyper_of(entry, ("T", "alpha", "beta"))
    )
    golden.assert_close(jnp.sum(rows * mask) / mask.size, arrays["output/loss"], entry["rtol"])
    total = np.sum(rows * mask) / np.sum(mask)
    assert 0 < np.mean(mask) < 1
    assert hyper["T"] > 0
    assert total > 1.05 * arrays["output/loss"]


def curriculum_terms(x, v, mask, parameter, strength):
    """The masked mean of CTKD as the peer has it: a cross-entropy, so that T sees the entropy."""
    t = losses.curriculum_temperature(parameter, strength)
    return jnp.sum(soft_cross_entropy(x, v, t, 1.0) * mask) / jnp.sum(mask)


@pytest.mark.parametrize("entry", golden.cases("TAID/CTKD"))
def test_the_temperature_climbs(entry):
    """A quirk: the peer multiplies the temperature's gradient by + lambda, so that it descends.

    Its lambda falls from 1 to 0, where the authors' goes from 0 to -1.
    """
    arrays = golden.load(entry)
    args = [*logits(arrays), arrays["inputs/mask"], 1.0, arrays["output/lambda_"]]
    step = jax.jit(jax.value_and_grad(curriculum_terms, (0, 3)), compiler_options=QUICK)
    value, (grad, climb) = step(*args)
    assert_agrees(entry, arrays, value, grad)
    golden.assert_close(climb, -arrays["output/grad_global_temperature"], entry["rtol"])
    assert abs(climb) > 1


def test_the_strength_rises_as_the_authors_have_it():
    rising = [losses.curriculum_strength(epoch, 10) for epoch in (0, 1, 5, 10, 200)]
    authors = [-(0.5 * (np.cos(min(e, 10) * np.pi / 10) + 1) - 1) for e in (0, 1, 5, 10, 200)]
    np.testing.assert_allclose(rising, authors, atol=1e-6)


def uncertain_levels(x, v):
    return losses.multi_level_loss(x, v, confidence_quantile=0.5)


@pytest.mark.parametrize("entry", golden.cases("MLKD/KD_ours_total"))
def test_confidences_choose_and_do_not_scale(entry):
    """A quirk: sums that are already reduced are multiplied by the mean of a mask.

    Also, two temperatures of the strong view use the weak one, and its correlations are dropped.
    """
    arrays, hyper = golden.load(entry), entry["hyper"]
    weak = named(arrays, "student_logits_weak", "teacher_logits_weak")
    strong = named(arrays, "student_logits_strong", "teacher_logits_strong")
    probs = np.asarray(losses.tempered_softmax(weak[1], 1.0))
    rows, classes = (np.mean(c <= np.percentile(c, 50)) for c in (probs.max(1), probs.sum(0)))

    def at(fn, pair, t):
        return compiled(fn)(*pair, t)[0]

    temperatures = (hyper["T0"], 3.0, 5.0, 2.0, 6.0)
    total = sum(rows * (at(soft, weak, t) + at(batch_correlation, weak, t))
                + classes * at(class_correlation, weak, t) for t in temperatures)  # fmt: skip
    total += sum(at(soft, strong, t) for t in temperatures[:3])
    total += sum(at(soft, weak, t) for t in temperatures[3:])
    hard = sum(np.mean(losses.cross_entropy(x, arrays["inputs/labels"]))
               for x in (weak[0], strong[0]))  # fmt: skip
    theirs = hyper["CE_WEIGHT"] * hard + hyper["KD_WEIGHT"] * total
    golden.assert_close(theirs, arrays["output/loss"], entry["rtol"])
    of_strong = compiled(losses.multi_level_loss)(*strong)[0]
    parts = (soft, batch_correlation, class_correlation)
    right = sum(at(fn, strong, t) for t in temperatures for fn in parts)
    golden.assert_close(of_strong, right, entry["rtol"])
    of_weak = compiled(uncertain_levels)(*weak)[0]
    ours = hyper["CE_WEIGHT"] * hard + hyper["KD_WEIGHT"] * (of_weak + of_strong)
    assert abs(ours / theirs - 1) > 0.05


def zipf(order):
    """Shares 1 / rank of the classes in descending order of a score."""
    return 1.0 / (1 + np.argsort(np.argsort(-order, axis=1), axis=1))


@pytest.mark.parametrize("entry", golden.cases("cls_KD/USKDLoss"))
def test_ranks_are_those_of_probabilities(entry):
    """A quirk: the peer ranks the classes by the student's log-probabilities."""
    arrays, hyper = golden.load(entry), entry["hyper"]
    x, features, labels = named(arrays, "student_logits", "student_emb", "labels")
    weak = features @ arrays["params/fc.weight"].T + arrays["params/fc.bias"]
    chosen = np.eye(x.shape[1], dtype=bool)[labels]
    log_q, log_w = (np.asarray(losses.tempered_log_softmax(z, 1.0)) for z in (x, weak))
    w = np.exp(log_w)
    score = w / (1 + 1e-6 - w[chosen][:, None]) + log_q / (1 + 1e-6 - log_q[chosen][:, None])
    shares = np.where(chosen, 0, zipf(score))
    shares /= shares.sum(1, keepdims=True)
    smooth = 0.9 * chosen + 0.1 / x.shape[1]

    def total(x):
        others = losses.tempered_log_softmax(jnp.where(chosen, -jnp.inf, x), 1.0)
        ranked = -jnp.sum(jnp.where(chosen, 0, shares * jnp.where(chosen, 0, others)), axis=1)
        return losses.self_target_loss(x, labels) + hyper["beta"] * ranked

    step = jax.value_and_grad(lambda x: jnp.mean(total(x)))
    value, grad = jax.jit(step, compiler_options=QUICK)(x)
    weakly = hyper["mu"] * np.mean(losses.cross_entropy(weak, smooth))
    assert_agrees(entry, arrays, hyper["alpha"] * value + weakly, grad)
    ours = jax.jit(losses.self_rank_loss, compiler_options=QUICK)(x, weak, labels)
    theirs = -np.sum(shares * np.where(chosen, 0, np.log(others_probs(x, chosen))), axis=1)
    assert np.max(np.abs(ours - theirs)) > 0.01


def others_probs(x, chosen):
    probs = np.where(chosen, 0, np.exp(x - x.max(1, keepdims=True)))
    return np.where(chosen, 1, probs / probs.sum(1, keepdims=True))


COVERED = {
    **dict.fromkeys(LABELLED, "test_with_labels"),
    **dict.fromkeys(UNLABELLED, "test_without_labels"),
    **dict.fromkeys(DIST, "test_dist"),
    **dict.fromkeys(
        ("attention-transfer/distillation", "mdistiller/KD_total"),
        "test_losses_golden.test_soft_targets_and_labels",
    ),
    "MLKD/KD_ours_total": "test_confidences_choose_and_do_not_scale, a quirk",
    "TAID/CTKD": "test_the_temperature_climbs, a quirk",
    "TAID/DKD": "test_padding_does_not_dilute, a quirk",
    "cls_KD/USKDLoss": "test_ranks_are_those_of_probabilities, a quirk of its ranks",
    "torchdistill/DISTPlusLoss": "test_dist_plus_rewards_channels_that_do_not_correlate, a quirk",
    "torchdistill/KDLoss_soft_only": "test_without_labels_the_peer_forgets_t_squared, a quirk",
    "torchdistill/SRDLoss": "test_logits_of_simple_recipe_distillation: the logits' part",
}
LEFT_OUT: dict[str, str] = {}
