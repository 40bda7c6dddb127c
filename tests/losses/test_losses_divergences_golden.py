"""Divergences against values and gradients that the peers' own code computed.

Ours is one value per token; `masked_mean` and the like state how each peer reduces them. Padded
tokens have the label -100. T^2 is in none of them but Keras' and big_vision's.
"""

import functools

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_divergences as reference

from kdjax import losses


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def entropy(log_probs):
    finite = jnp.where(jnp.isneginf(log_probs), 0, log_probs)
    return -jnp.sum(jnp.exp(log_probs) * finite, axis=-1)


def js(x, v, h):
    return losses.generalized_js_divergence(x, v, beta=h["beta"])


def kl(x, v, h):
    return losses.kl_divergence(x, v)


def reverse(x, v, h):
    return losses.reverse_kl_divergence(x, v)


def skew(x, v, h):
    return losses.skew_kl_divergence(x, v, skew=h["skew"])


def skew_reverse(x, v, h):
    return losses.skew_reverse_kl_divergence(x, v, skew=h["skew"])


def symmetric(x, v, h):
    return losses.symmetric_kl_divergence(x, v, reverse_weight=h["skew"])


def variation(x, v, h):
    return losses.total_variation(x, v)


def adaptive(x, v, h):
    return losses.adaptive_kl_divergence(x, v, head_mass=1 - h["alpha"])


def taid(x, v, h):
    return losses.taid_loss(x, v, interpolation=h["t"])


def plus_entropy(fn):
    """The peer leaves out the teacher's entropy, a constant: its loss is a cross-entropy."""
    return lambda x, v, h: fn(x, v, h) + entropy(v)


def symmetric_with_entropy(x, v, h):
    return symmetric(x, v, h) + (1 - h["skew"]) * entropy(v)


# By loss: ours, the names of the peer's hyper-parameters, and whether it takes the sum over the
# tokens that count or their mean.
TOKENS = {
    "DSKD/adaptive_kl": (adaptive, {"alpha": "alpha"}, "sum"),
    "DSKD/forward_kl": (kl, {}, "sum"),
    "DSKD/reverse_kl": (reverse, {}, "sum"),
    "DSKD/skewed_forward_kl": (skew, {"lam": "skew"}, "sum"),
    "DSKD/skewed_reverse_kl": (skew_reverse, {"lam": "skew"}, "sum"),
    "TAID/ForwardKL": (plus_entropy(kl), {}, "mean"),
    "TAID/JS": (js, {"teacher_weight": "beta"}, "mean"),
    "TAID/ReverseKL": (reverse, {}, "mean"),
    "TAID/SkewForwardKL": (plus_entropy(skew), {"target_weight": "skew"}, "mean"),
    "TAID/SkewReverseKL": (skew_reverse, {"target_weight": "skew"}, "mean"),
    "TAID/TAID": (taid, {"t": "t"}, "mean"),
    "TAID/TVD": (variation, {}, "mean"),
    "distillm/forward_kl": (plus_entropy(kl), {}, "mean"),
    "distillm/reverse_kl": (reverse, {}, "mean"),
    "distillm/skewed_forward_kl": (plus_entropy(skew), {"lam": "skew"}, "mean"),
    "distillm/skewed_reverse_kl": (skew_reverse, {"lam": "skew"}, "mean"),
    "distillm/symmetric_kl": (symmetric_with_entropy, {"lam": "skew"}, "mean"),
    "distillm/tv_distance": (variation, {}, "mean"),
}


QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@functools.cache
def compiled(fn, *fixed):
    """Sum over marked tokens of a function of log-probabilities, divided by a number.

    `taid` is one of logits, which log-probabilities are, too.
    """

    def total(x, v, mask, divisor, t, h):
        x, v = (losses.tempered_log_softmax(z, t) for z in (x, v))
        values = fn(x, v, {**h, **dict(fixed)})
        return jnp.sum(jnp.where(mask, values, 0)) / divisor

    # It runs a few times on a few numbers: what counts is how fast it compiles.
    return jax.jit(jax.value_and_grad(total), compiler_options=QUICK)


def marked(arrays):
    return (
        arrays["inputs/labels"] != -100 if "inputs/labels" in arrays else arrays["inputs/mask"] > 0
    )


def to_size(x, fill):
    """One size for the small entries, so that they share a program: the rest has no mass."""
    if x.shape[-1] > 37:
        return x
    return np.pad(x, [(0, 15 - len(x)), (0, 37 - x.shape[1])], constant_values=fill)


def check(entry, arrays, fn, h, divisor, *, fixed=(), rtol=None):
    """Compare value and gradient; numbers in `fixed` are no arrays inside."""
    flat = [
        arrays[f"inputs/{side}_logits"].reshape(-1, arrays["inputs/student_logits"].shape[-1])
        for side in ("student", "teacher")
    ]
    student, teacher = (to_size(x, -np.inf) for x in flat)
    mask = np.pad(marked(arrays).ravel(), (0, len(student) - len(flat[0])))
    t = float(entry["hyper"].get("T", 1.0))
    value, grad = compiled(fn, *fixed)(student, teacher, mask, float(divisor), t, h)
    assert value.dtype == grad.dtype == jnp.float64
    rtol = entry["rtol"] if rtol is None else rtol
    golden.assert_close(value, arrays["output/loss"], rtol)
    expected = arrays["grad/inputs/student_logits"].reshape(flat[0].shape)
    golden.assert_close(grad, to_size(expected, 0.0), rtol)


@pytest.mark.parametrize("entry", golden.cases(*TOKENS))
def test_divergences_of_tokens(entry):
    arrays = golden.load(entry)
    fn, names, reduction = TOKENS[entry["loss_id"]]
    h = {ours: float(entry["hyper"][theirs]) for theirs, ours in names.items()}
    divisor = marked(arrays).sum() if reduction == "mean" else 1
    check(entry, arrays, fn, h, divisor)


def beta_of(beta):
    """Ends have to be numbers before the program runs, others need not."""
    return ({}, (("beta", beta),)) if beta in (0, 1) else ({"beta": beta}, ())


@pytest.mark.parametrize("entry", golden.cases("trl/generalized_jsd_loss"))
def test_generalized_js(entry):
    arrays = golden.load(entry)
    h, fixed = beta_of(entry["hyper"]["beta"])
    check(entry, arrays, js, h, marked(arrays).sum(), fixed=fixed)


@pytest.mark.parametrize("entry", golden.cases("distillm/js_distance"))
def test_js_whose_weight_is_the_students(entry):
    """lam weighs the student in the mixture: it is 1 - beta."""
    arrays = golden.load(entry)
    check(entry, arrays, js, {"beta": 1 - entry["hyper"]["lam"]}, marked(arrays).sum())


@pytest.mark.parametrize("entry", golden.cases("DSKD/js_divergence"))
def test_js_with_a_constant_in_its_logarithms(entry):
    """The peer adds 1e-9 to every probability inside a logarithm, and sums over the tokens."""
    check(entry, golden.load(entry), js, {"beta": 0.5}, 1, rtol=2e-8)


@pytest.mark.parametrize("entry", golden.cases("trl/generalized_jsd_loss_red"))
def test_reductions_of_generalized_js(entry):
    """The peer's batchmean without labels divides by the batch, not by its tokens."""
    arrays, kind = golden.load(entry), entry["hyper"]["red"]
    batch, tokens, vocab = arrays["inputs/student_logits"].shape
    divisor = {
        "nolabels": batch,
        "mean": marked(arrays).sum() * vocab,
        "sum": 1,
        "num_items": 7,  # a number that the trainer passes in
    }[kind]
    if kind == "nolabels":
        arrays["inputs/labels"] = np.zeros((batch, tokens), int)
    check(entry, arrays, js, {"beta": 0.5}, divisor)


@functools.cache
def top_k_js(num_kept, tail, beta):
    def fn(x, v, h):
        if tail:  # the peer's kept mass is at most exp(-1e-7)
            transform = functools.partial(
                losses.top_k_log_probs_with_tail, min_tail=-np.expm1(-1e-7)
            )
        else:
            transform = losses.top_k_log_probs
        pair = transform(x, v, num_kept=num_kept)
        return losses.generalized_js_divergence(*pair, beta=beta)

    return fn


@pytest.mark.parametrize("entry", golden.cases("trl/topk_divergence"))
def test_top_k(entry):
    arrays, hyper = golden.load(entry), entry["hyper"]
    fn = top_k_js(hyper["k"], hyper["tail"], hyper["alpha"])
    # The peer takes the tail as 1 minus the kept mass, which costs it digits.
    check(entry, arrays, fn, {}, marked(arrays).sum(), rtol=1e-8)


def their_adaptive_kl(student, teacher, threshold):
    """TAID's, by the words of the index: the head by rank, the gaps by class."""
    q, p = (np.exp(reference.log_softmax(x)) for x in (student, teacher))
    head = np.cumsum(np.sort(p, -1), -1) > threshold
    gaps = np.abs(p - q)
    in_head, in_all = (gaps * head).sum(-1), gaps.sum(-1)
    crossed = -(p * np.log(q)).sum(-1)
    return (in_head * crossed + (in_all - in_head) * reference.kl(q, p)) / in_all


@pytest.mark.parametrize("entry", golden.cases("TAID/AdaptiveKL"))
def test_adaptive_kl_does_not_depend_on_the_order_of_the_classes(entry):
    """The peer applies a mask over ranks to gaps over classes; ours is DSKD's, tested above."""
    arrays, threshold = golden.load(entry), entry["hyper"]["head_threshold"]
    pair = [arrays[f"inputs/{side}_logits"][marked(arrays)] for side in ("student", "teacher")]
    turned = [x[:, ::-1] for x in pair]
    theirs = their_adaptive_kl(*pair, threshold)
    golden.assert_close(theirs.mean(), arrays["output/loss"], entry["rtol"])
    assert abs(their_adaptive_kl(*turned, threshold).mean() / theirs.mean() - 1) > 1e-7

    @functools.partial(jax.jit, compiler_options=QUICK)
    def ours(x, v):
        x, v = jax.nn.log_softmax(x), jax.nn.log_softmax(v)
        return losses.adaptive_kl_divergence(x, v, head_mass=1 - threshold)

    mine = ours(*pair)
    np.testing.assert_allclose(ours(*turned), mine, rtol=1e-12, atol=1e-13)
    logs = map(reference.log_softmax, pair)
    np.testing.assert_allclose(
        mine, reference.adaptive_kl_divergence(*logs, 1 - threshold), rtol=1e-9, atol=1e-13
    )


@pytest.mark.parametrize("entry", golden.cases("TAID/TAID_schedule"))
def test_taid_schedule(entry):
    arrays, hyper = golden.load(entry), entry["hyper"]
    progress = arrays["inputs/steps"] / hyper["total_steps"]
    # Without adaptation the peer follows the straight line.
    step_size = 0.0 if hyper["disable_adaptive"] else hyper["alpha"]

    def body(state, now):
        state = losses.taid_schedule_update(
            state,
            *now,
            start=hyper["t_start"],
            end=hyper["t_end"],
            step_size=step_size,
            decay=hyper["beta"],
        )
        return state, (state["interpolation"], state["momentum"])

    first = losses.taid_schedule_init(start=hyper["t_start"])
    _, (t, momentum) = jax.lax.scan(body, first, (arrays["inputs/losses"], progress))
    np.testing.assert_allclose(t, arrays["output/t"], rtol=entry["rtol"])
    golden.assert_close(momentum, arrays["output/momentum"], entry["rtol"])


def positions(labels, *, shift):
    """The answer's tokens, or with a shift of one the positions that predict them."""
    answer = labels != -100
    return np.pad(answer, [(0, 0), (0, shift)])[:, shift:]


# By loss: where the answer's logits are taken from, and whether the value is the sum over the
# answers' pairs of tokens, or the mean of every sequence's mean.
UNIVERSAL = {
    "llm-recipes/ULD": (lambda hyper: 1, "mean"),
    "trl/GOLD_ULD": (lambda hyper: int(hyper["merge"] == "bayesian"), "mean"),
    "DSKD/ULD": (lambda hyper: 0, "sum"),
}


@pytest.mark.parametrize("entry", golden.cases(*UNIVERSAL))
def test_universal_logits(entry):
    """`marked_first` lines the answers up; the smaller number of tokens counts.

    Of classes with one logit, which share a kink, TRL ranks the first first, the authors the last.
    """
    arrays, hyper = golden.load(entry), entry["hyper"]
    shift, reduction = UNIVERSAL[entry["loss_id"]]
    trl = entry["loss_id"].startswith("trl/")
    masks = [
        jnp.asarray(positions(arrays[f"inputs/{side}_labels"], shift=shift(hyper)))
        for side in ("student", "teacher")
    ]
    teacher, taught = losses.marked_first(arrays["inputs/teacher_logits"], masks[1])
    temperatures = {
        "temperature": hyper.get("student_temperature", hyper.get("Ts", 1.0)),
        "teacher_temperature": hyper.get("teacher_temperature", hyper.get("Tt", 1.0)),
    }

    def total(x):
        x, mask = losses.marked_first(x[..., ::-1] if trl else x, masks[0])
        size = min(x.shape[1], teacher.shape[1])
        values = losses.universal_logit_loss(x[:, :size], teacher[:, :size], **temperatures)
        both = mask[:, :size] & taught[:, :size]
        sums = jnp.sum(jnp.where(both, values, 0), axis=1)
        if reduction == "sum":
            return jnp.sum(sums)
        return hyper.get("distillation_weight", 1.0) * jnp.mean(sums / jnp.sum(both, axis=1))

    step = jax.jit(jax.value_and_grad(total), compiler_options=QUICK)
    value, grad = step(arrays["inputs/student_logits"])
    golden.assert_close(value, arrays["output/loss"], entry["rtol"])
    golden.assert_close(grad, arrays["grad/inputs/student_logits"], entry["rtol"])


HEAD = ("student_input", "student_weight", "student_bias")


def check_heads(entry, arrays, total):
    """Compare a function of the student's hidden states and head, Liger's inputs."""
    names = [name for name in HEAD if f"inputs/{name}" in arrays]
    step = jax.jit(jax.value_and_grad(total, range(len(names))), compiler_options=QUICK)
    value, grads = step(*(arrays[f"inputs/{name}"] for name in names))
    golden.assert_close(value, arrays["output/loss"], entry["rtol"])
    for name, grad in zip(names, grads, strict=True):
        golden.assert_close(grad, arrays[f"grad/inputs/{name}"], entry["rtol"])


@pytest.mark.parametrize("entry", golden.cases("Liger-Kernel/jsd"))
def test_generalized_js_of_fused_heads(entry):
    """Their hard part is in float32, hence its tolerance."""
    arrays, hyper = golden.load(entry), entry["hyper"]
    labels, t = arrays["inputs/labels"], hyper["temperature"]
    mask = labels != -100
    teacher = arrays["inputs/teacher_input"] @ arrays["inputs/teacher_weight"].T
    teacher = teacher + arrays.get("inputs/teacher_bias", 0.0)

    def total(x, weight, bias=None):
        logits = x @ weight.T
        if bias is not None:
            logits = logits + jnp.broadcast_to(bias, logits.shape)
        pair = (losses.tempered_log_softmax(z, t) for z in (logits, teacher))
        soft = losses.generalized_js_divergence(*pair, beta=hyper["beta"])
        hard = losses.cross_entropy(logits, np.where(mask, labels, 0))
        values = hyper["weight_soft_loss"] * soft + hyper["weight_hard_loss"] * hard
        return jnp.sum(jnp.where(mask, values, 0)) / mask.sum()

    check_heads(entry, arrays, total)


@pytest.mark.parametrize("entry", golden.cases("Liger-Kernel/jsd_vocab_pad"))
def test_classes_that_the_student_lacks_have_no_mass(entry):
    """The peer fills the student's logits up with 0, so that they cost where nothing differs."""
    arrays = golden.load(entry)
    teacher = arrays["inputs/teacher_input"] @ arrays["inputs/teacher_weight"].T
    mask = arrays["inputs/labels"] != -100

    def mean(logits, teacher, fill):
        missing = teacher.shape[1] - logits.shape[1]
        padded = jnp.pad(logits, [(0, 0), (0, missing)], constant_values=fill)
        pair = (losses.tempered_log_softmax(z, 1.0) for z in (padded, teacher))
        values = losses.generalized_js_divergence(*pair, beta=entry["hyper"]["beta"])
        return jnp.sum(jnp.where(mask, values, 0)) / mask.sum()

    check_heads(entry, arrays, lambda x, weight: mean(x @ weight.T, teacher, 0.0))
    student = arrays["inputs/student_input"] @ arrays["inputs/student_weight"].T
    same = np.pad(student, [(0, 0), (0, 4)], constant_values=-np.inf)
    step = jax.jit(jax.value_and_grad(mean), compiler_options=QUICK)
    value, grad = step(student, same, -np.inf)
    assert value == 0
    assert not np.any(grad)
    assert step(student, same, 0.0)[0] > 0.01


@pytest.mark.parametrize("entry", golden.cases("Liger-Kernel/cosine"))
def test_padded_rows_have_no_cosine(entry):
    """The peer sums over all rows and divides by those that count; `beta` is a weight."""
    arrays = golden.load(entry)
    teacher = arrays["inputs/teacher_input"] @ arrays["inputs/teacher_weight"].T
    mask = arrays["inputs/labels"] != -100

    def theirs(x, weight):
        return jnp.sum(losses.cosine_loss(x @ weight.T, teacher)) / mask.sum()

    check_heads(entry, arrays, theirs)
    student = arrays["inputs/student_input"] @ arrays["inputs/student_weight"].T
    ours = np.mean(jax.jit(losses.cosine_loss)(student, teacher)[mask])
    assert arrays["output/loss"] > ours + 0.1


def mean_cosine(x, v):
    return jnp.mean(losses.cosine_loss(x, v))


# By loss: ours; Keras' perfect match is -1.
FEATURES = {
    "keras/FeatureDistillation_cosine": lambda x, v: mean_cosine(x, v) - 1,
    "optax/cosine_distance": mean_cosine,
}


@pytest.mark.parametrize("entry", golden.cases(*FEATURES))
def test_features(entry):
    arrays = golden.load(entry)
    kind = "emb" if "inputs/student_emb" in arrays else "feat"
    student, teacher = (arrays[f"inputs/{side}_{kind}"] for side in ("student", "teacher"))
    step = jax.jit(jax.value_and_grad(FEATURES[entry["loss_id"]]), compiler_options=QUICK)
    value, grad = step(student, teacher)
    golden.assert_close(value, arrays["output/loss"], entry["rtol"])
    golden.assert_close(grad, arrays[f"grad/inputs/student_{kind}"], entry["rtol"])


def soft(x, v, t):
    return losses.soft_target_loss(x, v, temperature=t)


def clipped(x, v, t):
    """Keras clips both probabilities to [1e-7, 1]: where it does, nothing is learned."""
    pair = (jnp.log(jnp.clip(losses.tempered_softmax(z, t), 1e-7, 1)) for z in (x, v))
    return t**2 * losses.kl_divergence(*pair)


def clipped_logits(x, v, t):
    """Keras' default takes its logits for probabilities."""
    return losses.kl_divergence(*(jnp.log(jnp.clip(z / t, 1e-7, 1)) for z in (x, v)))


ROWS = {
    "big_vision/kl": soft,
    "keras/LogitsDistillation_KLD_instance": clipped,
    "keras/LogitsDistillation_default_string": clipped_logits,
}


@functools.cache
def compiled_rows(fn):
    step = jax.value_and_grad(lambda x, v, t: jnp.mean(fn(x, v, t)))
    return jax.jit(step, compiler_options=QUICK)


@pytest.mark.parametrize("entry", golden.cases(*ROWS))
def test_rows_of_logits(entry):
    arrays, hyper = golden.load(entry), entry["hyper"]
    pair = (arrays["inputs/student_logits"], arrays["inputs/teacher_logits"])
    t = float(hyper["T"] if "T" in hyper else hyper["t"])
    value, grad = compiled_rows(ROWS[entry["loss_id"]])(*pair, t)
    golden.assert_close(value, arrays["output/loss"], entry["rtol"])
    golden.assert_close(grad, arrays["grad/inputs/student_logits"], entry["rtol"])
    if entry["loss_id"] == "keras/LogitsDistillation_default_string":
        assert abs(compiled_rows(soft)(*pair, t)[0] / value - 1) > 0.1


COVERED = {
    **dict.fromkeys(TOKENS, "test_divergences_of_tokens"),
    **dict.fromkeys(UNIVERSAL, "test_universal_logits"),
    **dict.fromkeys(FEATURES, "test_features"),
    **dict.fromkeys(ROWS, "test_rows_of_logits"),
    "DSKD/js_divergence": "test_js_with_a_constant_in_its_logarithms",
    "Liger-Kernel/cosine": "test_padded_rows_have_no_cosine, a quirk",
    "Liger-Kernel/jsd": "test_generalized_js_of_fused_heads",
    "Liger-Kernel/jsd_vocab_pad": "test_classes_that_the_student_lacks_have_no_mass, a quirk",
    "TAID/AdaptiveKL": "test_adaptive_kl_does_not_depend_on_the_order_of_the_classes, a quirk",
    "TAID/TAID_schedule": "test_taid_schedule",
    "distillm/js_distance": "test_js_whose_weight_is_the_students",
    "trl/generalized_jsd_loss": "test_generalized_js",
    "trl/generalized_jsd_loss_red": "test_reductions_of_generalized_js",
    "trl/topk_divergence": "test_top_k",
}
LEFT_OUT: dict[str, str] = {}
