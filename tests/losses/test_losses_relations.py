"""Relations between examples, and contrast with remembered ones."""

import functools

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_relations as reference

from kdjax import losses, terms
from kdjax.losses._numerics import relations
from kdjax.testing import check_loss
from kdjax.types import Outputs, TermInputs

PKT = ("probabilistic_kt/PKT", "RepDistiller/PKT", "mdistiller/pkt_loss", "torchdistill/PKTLoss")
SP = ("RepDistiller/SP", "mdistiller/sp_loss")
CCKD = ("torchdistill/CCKD_bilinear", "torchdistill/CCKD_gaussian")
# How much of distance and angle each peer's loss has, by its hyper-parameters.
RKD = {
    "RKD/RkdDistance": lambda h: (1, 0),
    "RKD/RKdAngle": lambda h: (0, 1),
    "RepDistiller/RKD": lambda h: (h["w_d"], h["w_a"]),
    "mdistiller/rkd_loss": lambda h: (h["distance_weight"], h["angle_weight"]),
    "torchdistill/RKDLoss": lambda h: (h["dist_factor"], h["angle_factor"]),
}
CRD = ("RepDistiller/CRD", "mdistiller/CRD")

COVERED = {
    **dict.fromkeys(RKD, "test_distances_and_angles"),
    "RKD/HardDarkRank": "test_ranks",
    **dict.fromkeys(SP, "test_similarity"),
    "torchdistill/SPKDLoss": "test_similarity_is_not_in_rows_of_sum_one: a quirk",
    **dict.fromkeys(CCKD, "test_kernels_as_torchdistill_reduces_them: a convention"),
    "RepDistiller/CC": "test_consecutive",
    "RepDistiller/CC_embed": "test_consecutive_through_learned_maps",
    **dict.fromkeys(PKT, "test_neighbour_probabilities"),
    "TTM/ITRD_correlation": "test_information",
    "TTM/ITRD_mutual": "test_information",
    **dict.fromkeys(CRD, "test_contrast"),
    "torchdistill/CRDLoss": "test_contrast_of_embeddings_as_given",
}
LEFT_OUT: dict[str, str] = {}


@functools.cache
def with_gradient(loss, *names):
    """The mean of a loss and its gradient by the student, compiled; keywords by name are traced."""

    def mean(student, teacher, values):
        return jnp.mean(loss(student, teacher, **dict(zip(names, values, strict=True))))

    return jax.jit(jax.value_and_grad(mean))


def rkd(student, teacher, *, distance_weight, angle_weight):
    distances = losses.distance_relation_loss(student, teacher)
    return distance_weight * distances + angle_weight * losses.angle_relation_loss(student, teacher)


def embeddings(arrays):
    return arrays["inputs/student_emb"], arrays["inputs/teacher_emb"]


def assert_agrees(entry, arrays, result, key="inputs/student_emb"):
    value, grad = result
    assert value.dtype == grad.dtype == jnp.float64
    golden.assert_close(value, arrays["output/loss"], entry["rtol"])
    golden.assert_close(grad, arrays[f"grad/{key}"], entry["rtol"])


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("entry", golden.cases(*RKD))
def test_distances_and_angles(entry):
    arrays, hyper = golden.load(entry), entry["hyper"]
    weights = tuple(map(float, RKD[entry["loss_id"]](hyper)))
    if hyper.get("squared"):
        assert weights == (1, 0)
        squared = with_gradient(SQUARED)
        assert_agrees(entry, arrays, squared(*embeddings(arrays), ()))
    else:
        joint = with_gradient(rkd, "distance_weight", "angle_weight")
        assert_agrees(entry, arrays, joint(*embeddings(arrays), weights))


SQUARED = functools.partial(losses.distance_relation_loss, squared=True)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("entry", golden.cases("RKD/HardDarkRank"))
def test_ranks(entry):
    arrays, hyper = golden.load(entry), entry["hyper"]
    assert hyper["permute_len"] == 4
    ranks = with_gradient(losses.hard_dark_rank_loss, "scale", "power")
    result = ranks(*embeddings(arrays), (float(hyper["alpha"]), float(hyper["beta"])))
    assert_agrees(entry, arrays, result)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("entry", golden.cases(*PKT))
def test_neighbour_probabilities(entry):
    arrays = golden.load(entry)
    assert entry["hyper"] == {"eps": 1e-7}
    transfer = with_gradient(losses.probabilistic_transfer_loss)
    assert_agrees(entry, arrays, transfer(*embeddings(arrays), ()))


def stages_of(arrays):
    """Pairs of features by stage, the peers' loss being the sum over them."""
    count = sum(key.startswith("inputs/student_feat") for key in arrays)
    return [(f"inputs/student_feat_{i}", f"inputs/teacher_feat_{i}") for i in range(count)]


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("entry", golden.cases(*SP))
def test_similarity(entry):
    arrays, total = golden.load(entry), 0.0
    for student, teacher in stages_of(arrays):
        preserve = with_gradient(losses.similarity_preserving_loss)
        pair = (np.moveaxis(arrays[key], 1, -1) for key in (student, teacher))
        value, grad = preserve(*pair, ())
        golden.assert_close(np.moveaxis(grad, -1, 1), arrays[f"grad/{student}"], entry["rtol"])
        total += value
    golden.assert_close(total, arrays["output/loss"], entry["rtol"])


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("entry", golden.cases("torchdistill/SPKDLoss"))
def test_similarity_is_not_in_rows_of_sum_one(entry):
    """The peer passes 1 where the axis was meant, for p, and so divides by absolute sums.

    Of several stages its entry has the first alone.
    """
    arrays = golden.load(entry)
    student, teacher = (reference.rows(arrays[key]) for key in stages_of(arrays)[0])
    products = [x @ x.T for x in (student, teacher)]
    theirs = np.subtract(*(g / np.abs(g).sum(1, keepdims=True) for g in products))
    golden.assert_close(np.square(theirs).mean(), arrays["output/loss"], entry["rtol"])
    ours = with_gradient(losses.similarity_preserving_loss)(student, teacher, ())[0]
    assert ours > 1.2 * arrays["output/loss"]


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("entry", golden.cases(*CCKD))
def test_kernels_as_torchdistill_reduces_them(entry):
    """Its Frobenius norm is not squared and divided by n^2, the root of our mean by n; no row is
    normalised. The bilinear kernel is the Gaussian one's first power over its factor.
    """
    arrays, hyper = golden.load(entry), entry["hyper"]
    gamma, max_power = hyper.get("gamma", 0.4), hyper.get("max_p", 1)
    factor = 1.0 if hyper else np.exp(2 * gamma) / (2 * gamma)

    def congruence(student, teacher):
        values = losses.correlation_congruence_loss(
            student, teacher, gamma=gamma, max_power=max_power, normalize=False
        )
        return factor * jnp.sqrt(jnp.mean(values)) / len(student)

    result = jax.jit(jax.value_and_grad(congruence))(*embeddings(arrays))
    assert_agrees(entry, arrays, result)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("entry", golden.cases("RepDistiller/CC"))
def test_consecutive(entry):
    """The convention is another loss, of which ours has a function of its own."""
    arrays = golden.load(entry)
    consecutive = with_gradient(losses.consecutive_correlation_loss)
    assert_agrees(entry, arrays, consecutive(*embeddings(arrays), ()))


def inputs_of(arrays, batch, student):
    student, teacher = (Outputs(x, {"z": x}) for x in (student, arrays["inputs/teacher_emb"]))
    return TermInputs(batch, student, teacher, jnp.ones(len(teacher.logits), bool))


def params_of(arrays, prefix="params"):
    """Linear maps of both networks as our terms keep them: the kernel is the weight transposed."""
    return {
        name: {
            "kernel": arrays[f"{prefix}/embed_{name[0]}.linear.weight"].T,
            "bias": arrays[f"{prefix}/embed_{name[0]}.linear.bias"],
        }
        for name in ("student", "teacher")
    }


def assert_tree_close(got, want, rtol):
    jax.tree.map(lambda a, b: golden.assert_close(a, b, rtol), got, want)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("entry", golden.cases("RepDistiller/CC_embed"))
def test_consecutive_through_learned_maps(entry):
    arrays = golden.load(entry)
    term = terms.consecutive_correlation("z", "z", width=entry["hyper"]["feat_dim"])

    def loss(student, params):
        return jnp.mean(term.apply(params, {}, inputs_of(arrays, {}, student))[0])

    step = jax.jit(jax.value_and_grad(loss, (0, 1)))
    value, (grad, by_params) = step(arrays["inputs/student_emb"], params_of(arrays))
    assert_agrees(entry, arrays, (value, grad))
    assert_tree_close(by_params, params_of(arrays, "grad/params"), entry["rtol"])


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("entry", golden.cases("TTM/ITRD_correlation", "TTM/ITRD_mutual"))
def test_information(entry):
    arrays, correlates = golden.load(entry), "correlation" in entry["loss_id"]
    term = terms.itrd(
        "z",
        "z",
        order=entry["hyper"].get("alpha_it", 1.5),
        correlation_weight=float(correlates),
        mutual_weight=float(not correlates),
    )

    def loss(student, params):
        return jnp.mean(term.apply(params, {}, inputs_of(arrays, {}, student))[0])

    def params(prefix):
        weight, bias = (arrays[f"{prefix}/embed.linear.{name}"] for name in ("weight", "bias"))
        return {"kernel": weight.T, "bias": bias}

    step = jax.jit(jax.value_and_grad(loss, (0, 1)))
    value, (grad, by_params) = step(arrays["inputs/student_emb"], params("params"))
    assert_agrees(entry, arrays, (value, grad))
    expected = params("grad/params")
    golden.assert_close(by_params["kernel"], expected["kernel"], entry["rtol"])
    # Correlations do not change with the bias: rounding, beside the kernel's gradient.
    scale = np.max(np.abs(expected["kernel"]))
    atol = entry["rtol"] * (scale if correlates else np.max(np.abs(expected["bias"])))
    np.testing.assert_allclose(by_params["bias"], expected["bias"], rtol=0, atol=atol)


def crd_state(arrays, hyper):
    """A peer's memory is ours; v1 is the student's. Its Z of -1 stands for none as yet."""
    known = hyper["Z_v1_in"] > 0
    z = [np.log(hyper[key]) if known else 0.0 for key in ("Z_v1_in", "Z_v2_in")]
    return {
        "banks": {"student": arrays["inputs/memory_v1"], "teacher": arrays["inputs/memory_v2"]},
        "log_normalizers": dict(zip(("student", "teacher"), map(jnp.float64, z), strict=True)),
        "num_batches": jnp.int32(known),
        "key": jax.random.key(0),
    }


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("entry", golden.cases(*CRD))
def test_contrast(entry):
    """Values, gradients, memories and normalisers after a step; column 0 is the positive."""
    arrays, hyper, rtol = golden.load(entry), entry["hyper"], entry["rtol"]
    term = terms.crd(
        "z",
        "z",
        num_examples=hyper["n_data"],
        num_negatives=hyper["K"],
        width=hyper["feat_dim"],
        temperature=hyper["tau"],
        momentum=hyper["momentum"],
    )
    np.testing.assert_array_equal(arrays["inputs/idx"], arrays["inputs/contrast_idx"][:, 0])
    index = {
        "index": arrays["inputs/idx"],
        "contrast_index": arrays["inputs/contrast_idx"][:, 1:],
    }

    def loss(student, params, state):
        values, state = term.apply(params, state, inputs_of(arrays, index, student))
        return jnp.mean(values), state

    step = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (value, state), (grad, by_params) = step(
        arrays["inputs/student_emb"], params_of(arrays), crd_state(arrays, hyper)
    )
    assert_agrees(entry, arrays, (value, grad))
    assert_tree_close(by_params, params_of(arrays, "grad/params"), rtol)
    for name, number in (("student", "v1"), ("teacher", "v2")):
        golden.assert_close(state["banks"][name], arrays[f"output/memory_{number}_after"], rtol)
        normalizer = np.exp(state["log_normalizers"][name])
        golden.assert_close(normalizer, arrays[f"output/Z_{number}"], rtol)
    assert int(state["num_batches"]) == (hyper["Z_v1_in"] > 0) + 1


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("entry", golden.cases("torchdistill/CRDLoss"))
def test_contrast_of_embeddings_as_given(entry):
    """The peer takes embeddings that are normalised elsewhere: here the functions, not the term."""
    arrays, hyper, rtol = golden.load(entry), entry["hyper"], entry["rtol"]
    student, teacher = embeddings(arrays)
    memories = [arrays[f"inputs/memory_v{i}"] for i in (1, 2)]
    settings = {"num_examples": hyper["n_data"]}

    def side(embedded, memory):
        rows = memory[arrays["inputs/contrast_idx"]]
        scores = jnp.einsum("bw,bkw->bk", embedded, rows) / hyper["tau"]
        scores = scores[:, 0], scores[:, 1:]
        log_z = losses.contrastive_log_normalizer(*scores, **settings)
        values = losses.contrastive_representation_loss(*scores, log_normalizer=log_z, **settings)
        return jnp.mean(values), log_z

    def loss(student):
        values, log_z = zip(side(student, memories[1]), side(teacher, memories[0]), strict=True)
        return sum(values), log_z

    (value, log_z), grad = jax.jit(jax.value_and_grad(loss, has_aux=True))(student)
    assert_agrees(entry, arrays, (value, grad))
    for i, new in enumerate((student, teacher)):
        index, momentum = arrays["inputs/idx"], hyper["momentum"]
        rows = losses.remembered_embeddings(memories[i][index], new, momentum=momentum)
        golden.assert_close(rows, arrays[f"output/memory_v{i + 1}_after"][index], rtol)
        golden.assert_close(np.exp(log_z[i]), arrays[f"output/Z_v{i + 1}"], rtol)


def scores(rng):
    return 3 * rng.normal(size=8), 3 * rng.normal(size=(8, 5))


SIGNED = {"nonnegative": False, "zero_at_equality": False}
CHECKS = {
    "distance_relation_loss": {},
    "angle_relation_loss": {},
    "similarity_preserving_loss": {},
    "correlation_congruence_loss": {},
    "consecutive_correlation_loss": {},
    # Probabilities are shifted by eps, which may take a value that far below zero.
    "probabilistic_transfer_loss": {"zero_atol": 1e-7},
    "hard_dark_rank_loss": {"zero_at_equality": False},
    "itrd_correlation_loss": SIGNED,
    "itrd_mutual_loss": SIGNED,
}


def embedded(rng):
    """Vectors: that maps are flattened is seen below."""
    return rng.normal(size=(8, 6)), rng.normal(size=(8, 6))


@pytest.mark.parametrize("name", CHECKS)
def test_every_law(name):
    loss, expected = (getattr(of, name) for of in (losses, reference))
    check_loss(loss, reference=expected, inputs=embedded, **CHECKS[name])


def test_every_law_of_contrast():
    settings = {"log_normalizer": 2.5, "num_examples": 50}
    check_loss(
        functools.partial(losses.contrastive_representation_loss, **settings),
        reference=functools.partial(reference.contrastive_representation_loss, **settings),
        inputs=scores,
        teacher_is_data=False,
        zero_at_equality=False,
    )


def pair_of(n):
    rng = np.random.default_rng(0)
    return [rng.normal(size=(n, width)).astype(np.float32) for width in (5, 7)]


RELATIONS = [
    losses.distance_relation_loss,
    losses.angle_relation_loss,
    losses.hard_dark_rank_loss,
    losses.similarity_preserving_loss,
    losses.correlation_congruence_loss,
    losses.probabilistic_transfer_loss,
    losses.itrd_mutual_loss,
]


@pytest.mark.parametrize("loss", RELATIONS, ids=lambda f: f.__name__)
def test_duplicates_and_zero_rows_have_finite_values_and_gradients(loss):
    student, teacher = pair_of(6)
    evaluate = jax.jit(jax.value_and_grad(lambda s, t: loss(s, t).sum()))

    def degenerate(x):
        return np.stack([x[0], x[0], 0 * x[0], *x[3:]])

    for changed in ("student", "teacher", "both"):
        s = student if changed == "teacher" else degenerate(student)
        t = teacher if changed == "student" else degenerate(teacher)
        value, grad = evaluate(s, t)
        expected = getattr(reference, loss.__name__)(s, t).sum()
        np.testing.assert_allclose(value, expected, rtol=1e-4, err_msg=changed)
        assert np.max(np.abs(grad)) < 1e3, changed


@pytest.mark.parametrize("loss", RELATIONS, ids=lambda f: f.__name__)
def test_student_and_teacher_may_differ_in_shape(loss):
    rng = np.random.default_rng(3)
    maps = rng.normal(size=(5, 3, 2, 4)).astype(np.float32)
    flat = rng.normal(size=(5, 7)).astype(np.float32)
    fast = jax.jit(loss)
    np.testing.assert_array_equal(fast(maps, flat), fast(maps.reshape(5, -1), flat))
    with pytest.raises(ValueError, match=rf"{loss.__name__}: teacher_features has shape \(4, 7\)"):
        loss(maps, flat[:4])


@pytest.mark.parametrize("loss", [losses.angle_relation_loss, losses.distance_relation_loss])
@pytest.mark.parametrize("limit", [1, 300])
def test_rounds_of_anchors_change_nothing(monkeypatch, loss, limit):
    student, teacher = pair_of(13)
    mask = jnp.arange(13) != 4

    def evaluate(student):
        values = loss(student, teacher, mask=mask)
        return jnp.dot(values, jnp.arange(13.0)), values

    grad, values = jax.jit(jax.grad(evaluate, has_aux=True))(student)
    monkeypatch.setattr(relations, "_MAX_ELEMENTS", limit)
    program = jax.jit(jax.grad(lambda x: evaluate(x), has_aux=True))
    assert "while" in program.lower(student).as_text()
    grad_of_rounds, values_of_rounds = program(student)
    np.testing.assert_allclose(values_of_rounds, values, rtol=1e-6)
    np.testing.assert_allclose(grad_of_rounds, grad, rtol=1e-4, atol=1e-6)


def test_angles_of_a_large_batch_take_less_than_one_array_of_triplets():
    x = jax.ShapeDtypeStruct((384, 64), jnp.float32)
    gradient = jax.grad(lambda s, t: losses.angle_relation_loss(s, t).sum())
    memory = jax.jit(gradient).lower(x, x).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 384**3 * 4


def test_close_neighbours_keep_their_digits():
    """Far from the origin, inner products would leave nothing of the distances in float32."""
    rng = np.random.default_rng(5)
    student = (1000 + rng.normal(size=(6, 8))).astype(np.float32)
    teacher = rng.normal(size=(6, 8)).astype(np.float32)
    for name in ("distance_relation_loss", "angle_relation_loss"):
        expected = getattr(reference, name)(student, teacher)
        got = jax.jit(getattr(losses, name))(student, teacher)
        np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_transfer_keeps_its_digits_where_student_and_teacher_nearly_agree():
    rng = np.random.default_rng(6)
    student = rng.normal(size=(16, 32)).astype(np.float32)
    teacher = (student + 1e-3 * rng.normal(size=(16, 32))).astype(np.float32)
    got = jax.jit(losses.probabilistic_transfer_loss)(student, teacher)
    wide = [x.astype(np.float64) for x in (student, teacher)]
    np.testing.assert_allclose(got, reference.probabilistic_transfer_loss(*wide), rtol=2e-2)


def test_a_feature_that_does_not_vary_is_uncorrelated():
    student, teacher = (np.array(x[:, :5]) for x in pair_of(6))
    student[:, 2] = 0.1
    evaluate = with_gradient(losses.itrd_correlation_loss)
    value, grad = evaluate(student, teacher, ())
    others = np.delete(np.arange(5), 2)
    rest = reference.itrd_correlation_loss(student[:, others], teacher[:, others])[0]
    np.testing.assert_allclose(2**value, 2**rest + 1, rtol=1e-5)
    assert np.any(grad)
    assert not np.any(grad[:, 2])
    value, grad = evaluate(student[:1], teacher[:1], ())
    np.testing.assert_allclose(value, np.log2(5), rtol=1e-6)
    assert not np.any(grad)


def test_perfect_correlation_is_short_of_one_by_the_deviations_definition():
    student = pair_of(8)[0]
    got = jax.jit(losses.itrd_correlation_loss)(student, student, order=2.0)
    np.testing.assert_allclose(got, np.log2(5 * (1 / 8) ** 4), rtol=1e-5)


def test_momentum_is_how_much_of_the_old_stays():
    old, new = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]])
    got = losses.remembered_embeddings(old, new, momentum=0.75)
    np.testing.assert_allclose(got, np.array([[3, 1]]) / np.sqrt(10), rtol=1e-6)


def test_the_next_example_is_the_next_that_counts():
    student = jnp.array([[1.0], [7.0], [2.0], [3.0]])
    mask = jnp.array([True, False, True, True])
    got = jax.jit(losses.consecutive_correlation_loss)(student, jnp.zeros((4, 1)), mask=mask)
    np.testing.assert_allclose(got, 1.5 * np.array([1 * 2, 0, 2 * 3, 0]))


def test_fewer_neighbours_than_are_ranked():
    student, teacher = pair_of(3)
    fast = jax.jit(losses.hard_dark_rank_loss, static_argnames="num_ranked")
    expected = reference.hard_dark_rank_loss(student, teacher, num_ranked=9)
    np.testing.assert_allclose(fast(student, teacher, num_ranked=9), expected, rtol=1e-5)
    np.testing.assert_array_equal(fast(student, teacher, num_ranked=1), 0)


def test_contrast_does_not_overflow_and_knows_its_normaliser():
    positive, negative = np.float32([200, -200]), np.float32([[-300, 300], [0, 1]])
    settings = {"num_examples": 4}

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1))
    def evaluate(*scores):
        loss = losses.contrastive_representation_loss
        return loss(*scores, log_normalizer=0.0, **settings).sum()

    value, grads = evaluate(positive, negative)
    assert np.isfinite(value)
    assert all(np.all(np.isfinite(g)) for g in grads)
    normalizer = jax.jit(functools.partial(losses.contrastive_log_normalizer, **settings))
    every = normalizer(positive, negative, mask=np.array([True, True]))
    np.testing.assert_allclose(every, 300 + np.log(4 / 6), rtol=1e-6)
    second = normalizer(positive, negative, mask=np.array([False, True]))
    np.testing.assert_allclose(second, np.log(4 * (np.exp(-200) + 1 + np.e) / 3), rtol=1e-6)
    assert normalizer(positive, negative, mask=np.array([False, False])) == 0


X, Y = jnp.zeros((4, 3)), jnp.zeros((4, 5))
ONE, TWO = X[:, 0], jnp.zeros((3, 2))
MISUSE = {
    "angle_relation_loss: student_features has shape (4,), expected [batch, ...]": (ONE, Y),
    "similarity_preserving_loss: mask has shape (3,), expected (4,) like the batch": (
        *(X, Y),
        {"mask": jnp.ones(3, bool)},
    ),
    "distance_relation_loss: mask has dtype float32, expected bool": (X, Y, {"mask": ONE}),
    "distance_relation_loss: eps is -1": (X, Y, {"eps": -1}),
    "itrd_mutual_loss: teacher_features has dtype int32": (X, Y.astype(jnp.int32)),
    "itrd_correlation_loss: teacher_features has shape (4, 5), expected (4, 3)": (X, Y),
    "itrd_correlation_loss: order is 0": (X, X, {"order": 0}),
    "consecutive_correlation_loss: teacher_features has shape (4, 5)": (X, Y),
    "hard_dark_rank_loss: num_ranked is 0": (X, Y, {"num_ranked": 0}),
    "hard_dark_rank_loss: num_ranked is 2.0": (X, Y, {"num_ranked": 2.0}),
    "hard_dark_rank_loss: scale is 0": (X, Y, {"scale": 0}),
    "hard_dark_rank_loss: power is -1": (X, Y, {"power": -1}),
    "correlation_congruence_loss: gamma is -1": (X, Y, {"gamma": -1}),
    "correlation_congruence_loss: max_power is 0": (X, Y, {"max_power": 0}),
    "probabilistic_transfer_loss: eps is 0": (X, Y, {"eps": 0}),
    "contrastive_log_normalizer: positive_scores and negative_scores have shapes (4,) and (3, 2)": (
        *(ONE, TWO),
        {"num_examples": 9},
    ),
    "contrastive_log_normalizer: negative_scores has shape (4, 0)": (
        *(ONE, X[:, :0]),
        {"num_examples": 9},
    ),
    "contrastive_log_normalizer: num_examples is 0": (ONE, X, {"num_examples": 0}),
    "remembered_embeddings: momentum is 1.5": (X, X, {"momentum": 1.5}),
}


@pytest.mark.parametrize("words", MISUSE)
def test_misuse_is_explained(words):
    first, second, *keywords = MISUSE[words]
    with pytest.raises((ValueError, TypeError)) as raised:
        getattr(losses, words.split(":")[0])(first, second, **(keywords[0] if keywords else {}))
    assert words in str(raised.value)
