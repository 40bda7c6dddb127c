"""Losses on hidden states and heads: the plain form's numbers, in the memory of a chunk."""

import functools
import re

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from kdjax import heads, losses, metrics, sharding
from kdjax.heads import Head, TopK, chunked_mean

KD = functools.partial(losses.kd_loss, temperature=2.0)
SHAPE, VOCAB = (8, 8), 40


def jsd(student, teacher, labels):
    student, teacher = (losses.tempered_log_softmax(x, 1.0) for x in (student, teacher))
    return losses.generalized_js_divergence(student, teacher) + 0 * labels


def drawn(dtype=np.float32, vocab=VOCAB, others=VOCAB, scale=1.0):
    rng = np.random.default_rng(0)
    student = rng.normal(size=(*SHAPE, 8)), rng.normal(size=(vocab, 8)), rng.normal(size=vocab)
    teacher = rng.normal(size=(*SHAPE, 12)), rng.normal(size=(others, 12))
    hidden, kernel, bias, *teacher = (jnp.asarray(scale * x, dtype) for x in (*student, *teacher))
    labels = jnp.asarray(rng.integers(0, min(vocab, others), SHAPE))
    return hidden, Head(kernel, bias, 5.0), teacher[0], Head(teacher[1]), labels


def logits(hidden, head):
    x = hidden.astype(jnp.promote_types(hidden.dtype, np.float32)) @ head.kernel.T
    x = x if head.bias is None else x + jnp.broadcast_to(head.bias, x.shape)
    return x if head.soft_cap is None else head.soft_cap * jnp.tanh(x / head.soft_cap)


def plain(loss_fn, hidden, head, teacher_hidden, teacher_head, labels, mask):
    values = loss_fn(logits(hidden, head), logits(teacher_hidden, teacher_head), labels)
    return metrics.mean_of(*metrics.masked_sum(values, mask)), values


def close(ours, theirs, tolerance):
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        largest = np.max(np.abs(other))
        np.testing.assert_allclose(one, other, atol=tolerance * float(largest), rtol=0)


@pytest.mark.parametrize("loss", [KD, jsd], ids=["kd", "jsd"])
def test_it_is_the_plain_form(loss):
    """Weights, a bias, a soft cap, another width of the teacher's; a chunk that divides nothing."""
    given = drawn()
    weights = jnp.asarray(np.random.default_rng(1).integers(0, 3, SHAPE), jnp.float32)
    run = functools.partial(jax.value_and_grad, argnums=(0, 1, 2, 3), has_aux=True)

    def ours(*args):
        *args, labels = args
        return chunked_mean(loss, *args, labels=labels, mask=weights, chunk_size=10)

    (mean, values), by = jax.jit(run(ours))(*given)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: np.asarray(x, np.result_type(x, "f8")), jax.device_get(given))
        wide = (*wide[:-1], np.asarray(given[-1]))
        wide_run = jax.jit(run(lambda *args: plain(loss, *args, np.asarray(weights))))
        (wide_mean, wide_values), wide_by = wide_run(*wide)
    np.testing.assert_allclose(mean, wide_mean, rtol=1e-6)
    np.testing.assert_allclose(values, np.where(weights > 0, wide_values, 0), rtol=1e-5)
    close(by[:2], wide_by[:2], 5e-6)
    assert all(not np.any(x) for x in jax.tree.leaves(by[2:]))


def test_numbers_that_a_loss_closes_over_have_their_gradient():
    given = drawn()

    def both(temperature, weight):
        loss = functools.partial(losses.kd_loss, temperature=temperature, soft_weight=weight)
        mask = jnp.ones(SHAPE, bool)
        ours = chunked_mean(loss, *given[:4], labels=given[4], chunk_size=16)[0]
        return ours, plain(loss, *given, mask)[0]

    ours, theirs = (jax.jit(jax.grad(lambda *x, i=i: both(*x)[i], (0, 1))) for i in range(2))
    np.testing.assert_allclose(ours(2.0, 0.7), theirs(2.0, 0.7), rtol=1e-5)


def test_vocabularies_of_two_sizes_end_at_the_smaller():
    for sizes in ((40, 33), (33, 40)):
        hidden, head, teacher, teacher_head, labels = drawn(vocab=sizes[0], others=sizes[1])
        cut = head._replace(kernel=head.kernel[:33], bias=head.bias[:33])
        mask = jnp.ones(SHAPE, bool)
        args = cut, teacher, Head(teacher_head.kernel[:33]), labels, mask
        run = jax.jit(jax.value_and_grad(lambda h, *rest: plain(KD, h, *rest)[0]))
        value, by = run(hidden, *args)
        ours = jax.jit(
            jax.value_and_grad(lambda h, *rest: chunked_mean(KD, h, *rest[:3], labels=rest[3])[0])
        )
        ours_value, ours_by = ours(hidden, head, teacher, teacher_head, labels)
        np.testing.assert_allclose(ours_value, value, rtol=1e-6)
        close(ours_by, by, 1e-6)
        with pytest.raises(ValueError, match="labels has 33, expected 0 to 32"):
            chunked_mean(KD, hidden, head, teacher, teacher_head, labels=labels.at[0, 0].set(33))


def test_a_stored_top_k_or_stored_logits_take_the_teachers_place():
    hidden, head, teacher, teacher_head, labels = drawn()
    dense = logits(teacher, teacher_head)
    values, ids = jax.lax.top_k(dense, 5)
    # Of two that name one id the larger counts; an id below 0 is none.
    ids, values = (jnp.concatenate([x, x[..., :1]], -1) for x in (ids, values))
    stored = TopK(values.at[..., -1].add(-1), ids)
    stored = TopK(*(jnp.concatenate([x, 0 * x[..., :1] - 1], -1) for x in stored))
    sparse = jnp.where(dense >= values[..., 4:5], dense, -jnp.inf)
    run = jax.jit(
        lambda stored, none: chunked_mean(
            KD, hidden, head, stored, none, labels=jnp.asarray(labels), chunk_size=20
        )
    )
    expected = jax.jit(KD)(logits(hidden, head), sparse, labels)
    np.testing.assert_allclose(run(stored, None)[1], expected, rtol=2e-5)
    expected = jax.jit(KD)(logits(hidden, head), dense, labels)
    np.testing.assert_allclose(run(dense, None)[1], expected, rtol=2e-5)
    alone = functools.partial(chunked_mean, losses.cross_entropy)
    alone = jax.jit(alone)(hidden, head, None, None, labels=labels)
    expected = jax.jit(losses.cross_entropy)(logits(hidden, head), labels)
    np.testing.assert_allclose(alone[1], expected, rtol=2e-5)


def test_what_does_not_count_may_be_anything():
    hidden, head, teacher, teacher_head, labels = drawn()
    labels = labels.at[:, 3:].set(-100)
    hidden = hidden.at[0, 3].set(jnp.nan)
    run = functools.partial(chunked_mean, KD, teacher_head=teacher_head)
    run = functools.partial(jax.jit(run, static_argnames="ignore_label"), teacher_hidden=teacher)
    by_student = jax.jit(
        jax.grad(lambda h, head: run(h, head, labels=labels, ignore_label=-100)[0], (0, 1))
    )
    kept = run(hidden[:, :3], head, teacher_hidden=teacher[:, :3], labels=labels[:, :3])[0]
    for mask in ({"ignore_label": -100}, {"mask": labels >= 0}):
        np.testing.assert_allclose(run(hidden, head, labels=labels, **mask)[0], kept, rtol=1e-6)
    declared = functools.partial(KD, ignore_label=-100)
    args, found = (hidden, head, teacher, teacher_head), functools.partial(chunked_mean, declared)
    np.testing.assert_allclose(jax.jit(found)(*args, labels=labels)[0], kept, rtol=1e-6)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(by_student(hidden, head)))
    mean, by = jax.jit(
        jax.value_and_grad(
            lambda head: run(hidden, head, labels=labels, mask=jnp.zeros(SHAPE, bool))[0]
        )
    )(head)
    assert mean == 0
    assert all(not np.any(x) for x in jax.tree.leaves(by))


def test_labels_and_ids_are_compared_in_a_type_that_holds_them():
    rng = np.random.default_rng(0)
    hidden, head = rng.normal(size=(2, 4)).astype(np.float32), Head(np.eye(300, 4, dtype="f"))
    labels = np.array([156, 3], np.uint8)
    run = functools.partial(chunked_mean, losses.cross_entropy, hidden, head, None, None)
    expected = run(labels=labels.astype(np.int32))
    jax.tree.map(np.testing.assert_array_equal, run(labels=labels, ignore_label=-100), expected)
    ids = np.array([[7, 100], [2, 0]])
    found = [
        chunked_mean(
            losses.soft_target_loss, hidden, head, TopK(np.ones((2, 2), np.float32), i), None
        )[1]
        for i in (ids.astype(np.int8), ids)
    ]
    np.testing.assert_array_equal(*found)


def test_float16_keeps_the_shares_of_many_tokens():
    """Divided by the number of tokens a probability is too small for float16."""
    tokens, vocab, width = 4096, 500, 8
    r = np.random.default_rng(0)
    hidden, kernel = (r.normal(size=(n, width)).astype(np.float16) for n in (tokens, vocab))
    labels = r.integers(0, vocab, tokens)

    def mean(hidden, kernel):
        none = None, None
        run = functools.partial(chunked_mean, losses.cross_entropy, labels=labels, chunk_size=512)
        # The scale that trainings in float16 take.
        return 2.0**12 * run(hidden, Head(kernel), *none)[0]

    grads = jax.jit(jax.grad(mean, (0, 1)))
    wide = grads(hidden.astype(np.float32), kernel.astype(np.float32))
    for found, expected in zip(grads(hidden, kernel), wide, strict=True):
        assert found.dtype == jnp.float16
        assert np.linalg.norm(found - expected) < 2e-3 * np.linalg.norm(expected)


def test_half_precision_is_summed_in_single_however_many_the_chunks():
    """A scan that is differentiated rounds the head's gradient once a chunk."""
    hidden, head, teacher, teacher_head, labels = drawn(jnp.bfloat16)
    head = head._replace(soft_cap=None, bias=None)
    wide = jax.tree.map(lambda x: x.astype(np.float32), (hidden, head, teacher, teacher_head))
    mask = jnp.ones(SHAPE, bool)
    exact = jax.jit(jax.grad(lambda head: plain(KD, wide[0], head, *wide[2:], labels, mask)[0]))
    exact = exact(wide[1])

    def error(size):
        def mean(head):
            rest = teacher, teacher_head
            return chunked_mean(KD, hidden, head, *rest, labels=labels, chunk_size=size)[0]

        by = jax.jit(jax.grad(mean))(head).kernel
        assert by.dtype == jnp.bfloat16
        return np.max(np.abs(by - exact.kernel)) / np.max(np.abs(exact.kernel))

    def scanned(kernel):
        def one(total, x):
            h, t, y = x
            value = plain(KD, h, Head(kernel), t, teacher_head, y, jnp.ones(1, bool))[0]
            return total + value, None

        flat = [x.reshape(64, 1, *x.shape[2:]) for x in (hidden, teacher, labels)]
        return jax.lax.scan(jax.checkpoint(one), 0.0, tuple(flat))[0] / 64

    rounded = np.max(np.abs(jax.jit(jax.grad(scanned))(head.kernel) - exact.kernel))
    few, many = error(64), error(1)
    assert many <= max(5e-3, 1.1 * few)
    assert rounded / np.max(np.abs(exact.kernel)) > 1.5 * many


def test_squares_of_centered_logits_from_gram_matrices():
    hidden, head, teacher, teacher_head, _ = drawn(others=33)
    head = head._replace(soft_cap=None)
    z, v = logits(hidden, head)[..., :33], logits(teacher, teacher_head)
    z, v = (x - x.mean(-1, keepdims=True) for x in (z, v))
    run = jax.value_and_grad(lambda h: heads.logit_mse(h, head, teacher, teacher_head).sum())
    value, by = jax.jit(run)(hidden)
    np.testing.assert_allclose(value, losses.logit_mse_loss(z, v).sum(), rtol=1e-6)
    expected = 2 * np.einsum("btv,vw->btw", z - v, head.kernel[:33]) / 33
    np.testing.assert_allclose(by, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="soft_cap"):
        heads.logit_mse(hidden, head._replace(soft_cap=3.0), teacher, teacher_head)


def small(entry):
    return entry["case"].startswith("b2t6")


@pytest.mark.parametrize("entry", golden.cases("trl/generalized_jsd_loss", choose=small))
def test_the_peers_divergence_in_chunks(entry):
    """Their logits are a teacher's, and a head's whose kernel is the identity."""
    arrays, hyper = golden.load(entry), entry["hyper"]
    student, teacher = (arrays[f"inputs/{who}_logits"] for who in ("student", "teacher"))

    def loss(x, v):
        x, v = (losses.tempered_log_softmax(z, hyper["T"]) for z in (x, v))
        return losses.generalized_js_divergence(x, v, beta=hyper["beta"])

    with jax.enable_x64(True):
        head = Head(jnp.eye(student.shape[-1], dtype=np.float64))
        mask = arrays["inputs/labels"] != -100 if "inputs/labels" in arrays else None
        run = jax.value_and_grad(
            lambda x: chunked_mean(loss, x, head, teacher, head, mask=mask, chunk_size=5)[0]
        )
        value, by = jax.jit(run)(jnp.asarray(student))
    golden.assert_close(value, arrays["output/loss"], entry["rtol"])
    golden.assert_close(by, arrays["grad/inputs/student_logits"], entry["rtol"])


WRONG = {
    "width": (
        lambda h, w, t, e, y: chunked_mean(KD, h, Head(w.kernel[:, 1:]), t, e, labels=y),
        r"student_head.kernel has shape \(40, 7\), expected \[vocab, 8\] .*\(8, 8, 8\)",
    ),
    "tokens": (
        lambda h, w, t, e, y: chunked_mean(KD, h, w, t[:, 1:], e, labels=y),
        r"teacher_hidden has shape \(8, 7, 12\), expected \(8, 8\)",
    ),
    "labels": (
        lambda h, w, t, e, y: chunked_mean(KD, h, w, t, e, labels=y[1:]),
        r"labels has shape \(7, 8\), expected \(8, 8\)",
    ),
    "label": (
        lambda h, w, t, e, y: chunked_mean(KD, h, w, t, e, labels=y - 100),
        r"labels has -\d+, expected 0 to 39",
    ),
    "mask": (
        lambda h, w, t, e, y: chunked_mean(KD, h, w, t, e, labels=y, mask=jnp.ones(7, bool)),
        r"mask has shape \(7,\), expected .*\(8, 8\)",
    ),
    "chunk": (
        lambda h, w, t, e, y: chunked_mean(KD, h, w, t, e, labels=y, chunk_size=0),
        "chunk_size is 0, expected 1 or more",
    ),
    "reduced": (
        lambda h, w, t, e, y: chunked_mean(lambda *x: KD(*x).mean(), h, w, t, e, labels=y),
        r"loss_fn returns shape \(\) for logits \(16, 40\), expected \(16,\)",
    ),
    "relations": (
        lambda h, w, t, e, y: chunked_mean(losses.dist_loss, h, w, t, e),
        "dist_loss relates the tokens of a batch to one another",
    ),
    "kernel": (
        lambda h, w, t, e, y: chunked_mean(KD, h, w.kernel, t, e, labels=y),
        "student_head is of type ArrayImpl, expected heads.Head",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_mistakes_are_one_line(case):
    run, words = WRONG[case]
    with pytest.raises((ValueError, TypeError), match=words) as error:
        run(*drawn())
    assert "\n" not in str(error.value)


def collectives(text):
    found = r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-\w+)(?:-start)?\("
    return re.findall(found, text)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2), (2, 1, 4), (1, 1, 8)], ids=str)
def test_on_a_mesh_every_device_takes_its_own_tokens(sizes):
    """Cut across the devices' tokens, each would take all; summed in the loop, once a chunk."""
    data, fsdp, tensor = sizes
    mesh = sharding.make_mesh(data=data, fsdp=fsdp, tensor=tensor)
    *given, labels = jax.tree.map(jnp.asarray, drawn(vocab=320, others=320))
    split, rows = PartitionSpec(("data", "fsdp")), PartitionSpec("tensor")
    layout = [split, Head(rows, rows, PartitionSpec()), split, Head(rows), split]
    placed = jax.tree.map(
        lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)), [*given, labels], layout
    )

    def compiled(args, chunk_size):
        def run(*args):
            return chunked_mean(KD, *args[:4], labels=args[4], chunk_size=chunk_size)

        step = jax.jit(jax.value_and_grad(run, argnums=(0, 1), has_aux=True))
        return step.lower(*args).compile()

    # As many chunks, and parts of them, on a device as in the whole.
    program, whole = compiled(placed, 32 // data // fsdp), compiled([*given, labels], 32)
    close(program(*placed), whole(*given, labels), 1e-6)
    text = program.as_text()
    sent, outside = collectives(text), collectives(text[text.index("\nENTRY") :])
    assert {name for _, name in sent} == {"all-reduce"}
    kernel = f"f32[{320 // tensor},8]"
    for found in (sent, outside):
        assert sum(kernel in shape for shape, _ in found) == (data * fsdp > 1)
    each, flops = (x.cost_analysis()["flops"] for x in (program, whole))
    # A loop counts once here: with one chunk and part the excess over the plain form is 0.1 %.
    assert each <= 1.05 * flops / 8


@pytest.mark.parametrize("vocab", [2_049, 128_256])
def test_no_vocabulary_is_cut_at_a_multiple_of_anything(vocab):
    """Against float64: a peer's blocks leave a word of 2,049 out, 0.47 nats."""
    rng = np.random.default_rng(0)
    hidden, teacher = (rng.normal(size=(6, 4)).astype(np.float32) for _ in range(2))
    kernels = [2 * rng.normal(size=(vocab, 4)).astype(np.float32) for _ in range(2)]
    labels = np.array([0, 1, vocab // 2, vocab - 2, vocab - 1, 2_048])
    run = jax.jit(functools.partial(chunked_mean, KD, chunk_size=4))
    _, values = run(hidden, Head(kernels[0]), teacher, Head(kernels[1]), labels=labels)
    z, v = (x.astype(np.float64) @ k.T for x, k in zip((hidden, teacher), kernels, strict=True))

    def log_softmax(x):
        x = x - x.max(-1, keepdims=True)
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    log_p, log_q = log_softmax(v / 2), log_softmax(z / 2)
    soft = 4 * np.sum(np.exp(log_p) * (log_p - log_q), -1)
    hard = -log_softmax(z)[np.arange(6), labels]
    np.testing.assert_allclose(values, 0.9 * soft + 0.1 * hard, rtol=3e-6)


def test_the_two_gradients_of_a_tied_embedding_add_up():
    rng = np.random.default_rng(0)
    table = jnp.asarray(rng.normal(size=(30, 8)), jnp.float32)
    ids, labels = (jnp.asarray(rng.integers(0, 30, 12)) for _ in range(2))
    teacher = jnp.asarray(rng.normal(size=(12, 30)), jnp.float32)

    def ours(table):
        hidden = jnp.tanh(table[ids])
        return chunked_mean(KD, hidden, Head(table), teacher, None, labels=labels, chunk_size=5)[0]

    def whole(table):
        return KD(jnp.tanh(table[ids]) @ table.T, teacher, labels).mean()

    one, two = (jax.jit(jax.value_and_grad(fn))(table) for fn in (ours, whole))
    np.testing.assert_allclose(one[0], two[0], rtol=1e-6)
    close(one[1], two[1], 2e-6)
