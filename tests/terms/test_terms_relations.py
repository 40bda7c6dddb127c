"""The terms of relations, and the one that remembers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

from kdjax import checkpoint, losses, sharding, step, terms
from kdjax.objective import combine
from kdjax.terms import _contrastive
from kdjax.testing import check_term, term_inputs
from kdjax.types import Outputs, TermInputs

PATHS = ("hidden", "hidden")
HIDDEN = dict(zip(("student", "teacher"), PATHS, strict=True))
SP = losses.similarity_preserving_loss
CRD = functools.partial(terms.crd, *PATHS, num_examples=12, num_negatives=5, width=4)
CHECKS = {
    "angle_relation": (terms.of(losses.angle_relation_loss, **HIDDEN), {}),
    "hard_dark_rank, normalised": (
        terms.normalized(terms.of(losses.hard_dark_rank_loss, **HIDDEN)),
        {},
    ),
    "similarity_preserving": (
        terms.of(losses.similarity_preserving_loss, student="stage_2", teacher="stage_3"),
        {},
    ),
    "consecutive_correlation": (
        terms.consecutive_correlation("stage_3", "hidden", width=3),
        {"learns": True},
    ),
    "itrd": (terms.itrd(*PATHS), {"learns": True}),
}


@pytest.mark.parametrize("name", CHECKS)
def test_every_term_conforms(name):
    term, options = CHECKS[name]
    check_term(term, name=name, **options)


def test_the_term_with_a_memory_conforms():
    def init(key, inputs):
        """Behind the first batch, which estimates the normalisers."""
        variables = CRD().init(key, inputs)
        state = variables.state
        known = {name: z + 3 for name, z in state["log_normalizers"].items()}
        later = {**state, "log_normalizers": known, "num_batches": state["num_batches"] + 1}
        return variables._replace(state=later)

    check_term(CRD()._replace(init=init), name="crd", learns=True, remembers=True)


def test_an_order_of_normalised_features_does_not_depend_on_their_size():
    inputs = term_inputs()
    larger = inputs.student._replace(features={"hidden": 9 * inputs.student.features["hidden"]})
    unit = terms.normalized(terms.of(losses.hard_dark_rank_loss, **HIDDEN))
    values = [unit.apply({}, {}, x)[0] for x in (inputs, inputs._replace(student=larger))]
    np.testing.assert_allclose(*values, rtol=1e-4)
    student, teacher = (
        x.features["hidden"] / jnp.linalg.norm(x.features["hidden"], axis=-1, keepdims=True)
        for x in (inputs.student, inputs.teacher)
    )
    expected = losses.hard_dark_rank_loss(student, teacher, mask=inputs.mask)
    np.testing.assert_allclose(values[0], expected, rtol=1e-4)


def test_stages_are_summed():
    inputs = term_inputs()
    both = terms.of(
        losses.similarity_preserving_loss,
        student=["stage_2", "stage_3"],
        teacher=["stage_2", "stage_3"],
    )
    one, two = (terms.of(SP, student=f"stage_{i}", teacher=f"stage_{i}") for i in (2, 3))
    values = [jax.jit(lambda x, t=t: t.apply({}, {}, x)[0])(inputs) for t in (both, one, two)]
    np.testing.assert_allclose(values[0], values[1] + values[2], rtol=1e-5)
    with pytest.raises(ValueError, match="angle_relation_loss: "):
        terms.of(losses.angle_relation_loss, student=["stage_2", "stage_3"], teacher="stage_2")


def crd_inputs(index, mask=None, contrast_index=None, seed=0):
    inputs = term_inputs(num_examples=len(index), seed=seed)
    mask = jnp.ones(len(index), bool) if mask is None else jnp.asarray(mask)
    batch = {"index": jnp.asarray(index, jnp.int32), "mask": mask}
    if contrast_index is not None:
        batch["contrast_index"] = jnp.asarray(contrast_index, jnp.int32)
    return TermInputs(batch, inputs.student, inputs.teacher, mask)


APPLY = jax.jit(CRD().apply)


def variables_of_crd(inputs):
    return jax.jit(CRD().init)(jax.random.key(3), inputs)


def test_memory_is_renewed_where_examples_count_and_nowhere_else():
    inputs = crd_inputs([3, 7, 3, 5], mask=[True, True, True, False])
    params, state = variables_of_crd(inputs)
    values, new = APPLY(params, state, inputs)
    assert values[3] == 0
    for who, outputs in (("student", inputs.student), ("teacher", inputs.teacher)):
        embedded = outputs.features["hidden"] @ params[who]["kernel"]
        embedded /= np.linalg.norm(embedded, axis=1, keepdims=True)
        old, got = state["banks"][who], new["banks"][who]
        for place, example in ((3, 2), (7, 1)):  # of an example that is there twice, the last
            moved = old[place] / 2 + embedded[example] / 2
            np.testing.assert_allclose(got[place], moved / np.linalg.norm(moved), rtol=1e-5)
        others = np.delete(np.arange(12), [3, 7])
        np.testing.assert_array_equal(got[others], old[others])


def test_negatives_are_a_function_of_the_state_or_given():
    inputs = crd_inputs([0, 4, 8])
    params, state = variables_of_crd(inputs)
    key = jax.random.fold_in(state["key"], 0)
    drawn = np.asarray(jax.random.randint(key, (5,), 0, 12))
    values, new = APPLY(params, state, inputs)
    given = crd_inputs([0, 4, 8], contrast_index=np.tile(drawn, (3, 1)))
    values_given, new_given = APPLY(params, state, given)
    np.testing.assert_allclose(values_given, values, rtol=1e-5)
    np.testing.assert_allclose(
        new_given["log_normalizers"]["student"], new["log_normalizers"]["student"], rtol=1e-5
    )
    again, _ = APPLY(params, {**new, "banks": state["banks"]}, inputs)
    assert not np.allclose(again, values, rtol=1e-3)  # other negatives in the next batch


@pytest.mark.parametrize("num_negatives", [2, 5])
def test_scores_are_products_with_rows_of_the_bank(num_negatives):
    """12 rows of width 4: two rows are fewer numbers than products with all of them, five not."""
    rng = np.random.default_rng(0)
    bank, embedded = (rng.normal(size=(n, 4)).astype(np.float32) for n in (12, 3))
    index, negatives = np.array([0, 4, 12]), rng.integers(0, 12, (3, num_negatives))
    scores = jax.jit(functools.partial(_contrastive._scores, temperature=0.5))
    own, others = scores(bank, embedded, index, negatives)
    expected = 2 * np.einsum("bw,bkw->bk", embedded, bank[negatives])
    np.testing.assert_allclose(others, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(own[:2], 2 * (embedded[:2] * bank[[0, 4]]).sum(1), rtol=1e-5)
    assert np.isnan(own[2])


def test_normalisers_are_estimated_once_and_not_from_padding():
    inputs = crd_inputs([0, 4, 8])
    params, state = variables_of_crd(inputs)
    nobody = inputs._replace(mask=jnp.zeros(3, bool))
    values, untouched = APPLY(params, state, nobody)
    np.testing.assert_array_equal(values, 0)
    jax.tree.map(np.testing.assert_array_equal, untouched["banks"], state["banks"])
    assert int(untouched["num_batches"]) == 0
    _, first = APPLY(params, untouched, inputs)
    _, second = APPLY(params, first, crd_inputs([1, 2, 3], seed=1))
    assert int(second["num_batches"]) == 2
    assert first["log_normalizers"]["student"] != 0
    jax.tree.map(np.testing.assert_array_equal, second["log_normalizers"], first["log_normalizers"])


def test_an_index_that_is_out_of_range_poisons_its_value_alone():
    inputs = crd_inputs([0, 12, -1])
    params, state = variables_of_crd(inputs)
    known = {**state, "num_batches": jnp.int32(1)}
    values, new = APPLY(params, known, inputs)
    np.testing.assert_array_equal(np.isnan(values), [False, True, True])
    assert all(np.all(np.isfinite(bank)) for bank in new["banks"].values())


def test_misuse_is_explained():
    for settings in ({"num_examples": 0}, {"num_negatives": 0}, {"width": 0}, {"temperature": 0}):
        with pytest.raises(ValueError, match=f"crd: {next(iter(settings))} is 0"):
            CRD(**settings)
    inputs = crd_inputs([0, 4, 8])
    variables = variables_of_crd(inputs)
    for batch, words in (
        ({}, "crd: the batch has no 'index'"),
        ({"index": inputs.batch["index"][:2]}, r"crd: index has shape \(2,\)"),
        (
            {**inputs.batch, "contrast_index": jnp.zeros((3, 6), jnp.int32)},
            r"contrast_index has shape \(3, 6\), expected \(3, 5\)",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            CRD().apply(*variables, inputs._replace(batch=batch))


def trainer(**settings):
    """A step of relations and contrast on a network of one hidden layer."""
    model, optimizer = toys.linear_model(), optax.sgd(0.01)
    parts = {"crd": terms.crd(*PATHS, num_examples=40, num_negatives=9, width=8)}
    if not settings:
        parts |= {
            # Of the others, `CHECKS` has the same by itself.
            "distances": terms.of(losses.distance_relation_loss, **HIDDEN),
            "neighbours": terms.of(losses.probabilistic_transfer_loss, **HIDDEN),
        }
    objective = combine(parts, dict.fromkeys(parts, 1.0))
    batch, outputs = batch_at(0)
    state = step.init_train_state(jax.random.key(0), model, objective, optimizer, batch, outputs)
    return state, step.make_train_step(model, objective, optimizer, **settings)


def batch_at(seed):
    batch = toys.batch_of(16, seed)
    batch["index"] = np.random.default_rng(seed).permutation(40)[:16].astype(np.int32)
    batch["mask"] = np.arange(16) % 5 != 3
    features = np.random.default_rng(seed + 9).normal(size=(16, 9)).astype(np.float32)
    return batch, Outputs(features[:, : toys.NUM_CLASSES], {"hidden": features})


def test_eight_devices_remember_and_relate_like_one():
    """The batch's value, not the shard's; the banks may be split by rows."""
    mesh = sharding.make_mesh()
    results = []
    for split in (False, True):
        state, run = trainer()
        if split:
            state = sharding.replicate(state, mesh)
            banks = state.term_state["crd"]["banks"]
            rows = sharding.batch_sharding(mesh)
            state.term_state["crd"]["banks"] = jax.device_put(banks, rows)
        for seed in range(3):
            batch, outputs = batch_at(seed)
            if split:
                batch = sharding.shard_batch(batch, mesh)
                outputs = jax.device_put(outputs, sharding.batch_sharding(mesh))
            state, metrics = run(state, batch, outputs)
        results.append(jax.device_get((state.params, state.term_state["crd"]["banks"], metrics)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *results)


def test_micro_batches_are_batches_to_the_memory(tmp_path):
    """Each renews the banks for the next. The state is saved and comes back, its key included."""
    state, run = trainer(num_micro_batches=2)
    state, _ = run(state, *batch_at(0))
    memory = state.term_state["crd"]
    assert int(memory["num_batches"]) == 2
    before = trainer(num_micro_batches=2)[0].term_state["crd"]["banks"]["student"]
    changed = np.any(np.asarray(memory["banks"]["student"]) != before, axis=1)
    batch, _ = batch_at(0)
    np.testing.assert_array_equal(np.flatnonzero(changed), np.sort(batch["index"][batch["mask"]]))
    checkpoint.save(tmp_path, 1, state)
    _, restored = checkpoint.restore(tmp_path, state)
    jax.tree.map(
        np.testing.assert_array_equal, restored.term_state["crd"]["banks"], memory["banks"]
    )
    key = restored.term_state["crd"]["key"]
    np.testing.assert_array_equal(jax.random.key_data(key), jax.random.key_data(memory["key"]))


@pytest.mark.parametrize("dtype", [np.int32, np.int8])
def test_one_index_that_is_none_is_nan_alone(dtype):
    """The normalizer is estimated of the first batch, and stays."""
    term, inputs = terms.crd("hidden", "hidden", num_examples=128, num_negatives=4), term_inputs()
    batch = {**inputs.batch, "index": np.array([0, 1, 2, 3, 4, 5, 6, -1], dtype)}
    first = inputs._replace(batch=batch)
    params, state = term.init(jax.random.key(0), first)
    values, state = jax.jit(term.apply)(params, state, first)
    np.testing.assert_array_equal(np.isnan(values), np.arange(8) == 7)
    later = first._replace(batch={**batch, "index": np.arange(8, dtype=dtype)})
    assert np.isfinite(jax.jit(term.apply)(params, state, later)[0]).all()
