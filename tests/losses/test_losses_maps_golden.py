"""The losses of feature maps against values and gradients that the peers' own code computed.

Ours takes [batch, height, width, channels], theirs [batch, channels, height, width]. Ours is one
value per example, theirs the mean over them; several stages add up. What else a peer scales or
weighs is stated where it is called.
"""

import functools
import itertools
import json

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses, terms
from kdjax.types import Outputs, TermInputs

COVERED = {
    "AB_distillation/criterion": "test_stages",
    "RepDistiller/AB": "test_stages",
    "RepDistiller/AT": "test_stages",
    "RepDistiller/FSP": "test_stages",
    "RepDistiller/FT": "test_stages",
    "RepDistiller/FT_modules": "test_factor_transfer_with_its_networks",
    "RepDistiller/Hint": "test_hint_between_sizes",
    "RepDistiller/NST": "test_stages",
    "RepDistiller/VID": "test_variational_information",
    "ReviewKD/hcl": "test_stages",
    "attention-transfer/at_loss": "test_stages",
    "keras/FeatureDistillation_mse": "test_hint_of_other_peers",
    "mdistiller/FitNet": "test_hint_between_sizes",
    "mdistiller/OFD": "test_overhaul",
    "mdistiller/ReviewKD": "test_review",
    "mdistiller/at_loss": "test_stages",
    "mdistiller/hcl_loss": "test_stages",
    "mdistiller/nst_loss": "test_stages",
    "mdistiller/vid_loss": "test_variational_information",
    "torchdistill/ATLoss_code": "test_stages",
    "torchdistill/ATLoss_paper": "test_stages",
    "torchdistill/AltActTransferLoss": "test_stages",
    "torchdistill/FSPLoss": "test_stages",
    "torchdistill/FTLoss": "test_stages",
    "torchdistill/HierarchicalContextLoss": "test_stages",
    "tunix/FeaturePooling": "test_hint_of_other_peers",
    "tunix/FeatureProjection": "test_hint_of_other_peers",
}
LEFT_OUT: dict[str, str] = {}


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def channels_last(x):
    return np.moveaxis(x, 1, -1) if x.ndim == 4 else x


def by_stage(arrays, name):
    """Arrays of a name in the order of the stages, their channels last."""
    if name in arrays:
        return [channels_last(arrays[name])]
    keys = (f"{name}_{i}" for i in range(len(arrays)))
    return [channels_last(arrays[key]) for key in keys if key in arrays]


def mean_over_stages(loss, weights=None, **keywords):
    """Sum over the stages of the weighed mean over the batch."""

    def total(students, teachers):
        pairs = zip(weights or [1.0] * len(students), students, teachers, strict=False)
        return sum(w * jnp.mean(loss(s, t, **keywords)) for w, s, t in pairs)

    return total


TORCHDISTILL_WEIGHTS = (1.0, 0.5, 2.0)


def attention_norm(student, teacher):
    """The distance of the attention maps, as the paper's equation has it: not squared."""
    gap = losses.attention_map(student) - losses.attention_map(teacher)
    return jnp.sqrt(jnp.sum(gap**2, axis=(1, 2)))


def attention_factors(student, teacher, *, p1, p2):
    """RepDistiller's factors are attention maps, compared with another power."""
    pair = losses.match_sizes(student, teacher)
    factors = (losses.attention_map(x, power=p1) for x in pair)
    return losses.factor_transfer_loss(*factors, power=p2)


def factor_norm(student, teacher):
    """For p = 2 torchdistill takes the norm, where ours is the mean of the squares."""
    squares = losses.factor_transfer_loss(student, teacher, power=2)
    return jnp.sqrt(squares * np.prod(student.shape[1:]))


def flow_norms(students, teachers):
    """torchdistill pools by the maximum, and adds norms over the first channels."""

    def flows(features):
        pairs = itertools.pairwise(features)
        return [losses.flow_matrix(max_pool(one, two), two) for one, two in pairs]

    gaps = [s - t for s, t in zip(flows(students), flows(teachers), strict=True)]
    return sum(jnp.mean(jnp.sum(jnp.linalg.norm(gap, axis=1), axis=1)) for gap in gaps)


def max_pool(x, like):
    window = (1, x.shape[1] // like.shape[1], x.shape[2] // like.shape[2], 1)
    return jax.lax.reduce_window(x, -np.inf, jax.lax.max, window, window, "VALID")


def peer(loss_id, hyper):
    """Ours in the scale of a peer: a function of the stages of student and teacher."""
    boundary = functools.partial(losses.activation_boundary_loss, margin=hyper.get("margin", 1.0))
    power = 1 if hyper.get("p") == 1 else 2
    match loss_id:
        case "attention-transfer/at_loss" | "mdistiller/at_loss" | "RepDistiller/AT":
            loss = losses.attention_transfer_loss
            return mean_over_stages(loss, power=hyper.get("p", 2))
        case "torchdistill/ATLoss_code":
            return mean_over_stages(losses.attention_transfer_loss, TORCHDISTILL_WEIGHTS)
        case "torchdistill/ATLoss_paper":
            return mean_over_stages(attention_norm, TORCHDISTILL_WEIGHTS)
        case "RepDistiller/NST" | "mdistiller/nst_loss":
            return mean_over_stages(losses.neuron_selectivity_loss)
        case "RepDistiller/FT":
            return mean_over_stages(attention_factors, p1=hyper["p1"], p2=hyper["p2"])
        case "torchdistill/FTLoss":
            loss = losses.factor_transfer_loss if power == 1 else factor_norm
            return mean_over_stages(loss, [1.0, 0.0])  # of the first stage alone
        case "RepDistiller/FSP":
            return lambda students, teachers: jnp.mean(losses.flow_loss(students, teachers))
        case "torchdistill/FSPLoss":
            return flow_norms
        case "RepDistiller/AB":
            n = hyper["feat_num"]
            return mean_over_stages(boundary, [3e-3 * 2.0 ** (i - n + 1) for i in range(n)])
        case "torchdistill/AltActTransferLoss":
            return mean_over_stages(boundary)
        case "AB_distillation/criterion":  # its loop divides by the batch
            return lambda students, teachers: jnp.sum(boundary(students[0], teachers[0]))
        case "ReviewKD/hcl" | "mdistiller/hcl_loss" | "torchdistill/HierarchicalContextLoss":
            levels = tuple(hyper.get("output_sizes", (4, 2, 1)))
            return mean_over_stages(losses.hierarchical_context_loss, levels=levels)
    raise AssertionError(loss_id)


@functools.cache
def compiled_peer(loss_id, hyper):
    return jax.jit(jax.value_and_grad(peer(loss_id, json.loads(hyper))))


STAGES = [loss_id for loss_id, test in COVERED.items() if test == "test_stages"]


@pytest.mark.parametrize("entry", golden.cases(*STAGES))
def test_stages(entry):
    arrays = golden.load(entry)
    students, teachers = (by_stage(arrays, f"inputs/{who}_feat") for who in ("student", "teacher"))
    assert len(students) == len(teachers) >= 1
    fn = compiled_peer(entry["loss_id"], json.dumps(entry["hyper"]))
    assert_agrees(entry, arrays, fn(students, teachers))


def assert_agrees(entry, arrays, result):
    value, grads = result
    assert value.dtype == jnp.float64
    golden.assert_close(value, arrays["output/loss"], entry["rtol"])
    expected = by_stage(arrays, "grad/inputs/student_feat")
    for got, want in zip(grads, expected, strict=True):
        golden.assert_close(got, want, entry["rtol"])


def term_inputs(students, teachers):
    """Features of stages under the paths "0", "1", ..."""

    def outputs(features):
        named = {str(i): x for i, x in enumerate(features)}
        return Outputs(jnp.zeros((len(features[0]), 2)), named)

    mask = np.ones(len(students[0]), bool)
    return TermInputs({}, outputs(students), outputs(teachers), mask)


def run_term(term, arrays, params, state=None):
    """The mean of a term, with its gradients with respect to the student's stages and params."""
    teachers = by_stage(arrays, "inputs/teacher_feat")

    def loss(students, params):
        values, _ = term.apply(params, state or {}, term_inputs(students, teachers))
        return jnp.mean(values)

    fresh = term.init(
        jax.random.key(0), term_inputs(by_stage(arrays, "inputs/student_feat"), teachers)
    )
    assert jax.tree.map(jnp.shape, fresh.params) == jax.tree.map(jnp.shape, params)
    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    value, (by_students, by_params) = step(by_stage(arrays, "inputs/student_feat"), params)
    return (value, by_students), by_params


def kernel(x):
    """From [outputs, inputs, height, width] to ours, [inputs, outputs] where that is 1 x 1."""
    x = np.transpose(x, (2, 3, 1, 0))
    return x[0, 0] if x.shape[:2] == (1, 1) else x


def from_peer(arrays, names, prefix="params/"):
    """Arrays of a peer as a tree like `names`, whose leaves are their names."""

    def read(name):
        array = arrays[f"{prefix}{name}"]
        return kernel(array) if array.ndim == 4 else array

    return jax.tree.map(read, names)


def assert_params_agree(entry, arrays, by_params, names, prefix="grad/params/"):
    expected = from_peer(arrays, names, prefix)
    for got, want in zip(jax.tree.leaves(by_params), jax.tree.leaves(expected), strict=True):
        golden.assert_close(got, want, entry["rtol"])


@pytest.mark.parametrize("entry", golden.cases("RepDistiller/VID", "mdistiller/vid_loss"))
def test_variational_information(entry):
    """mdistiller has the gradient of its log_scale and never uses it; ours is learned."""
    arrays, hyper = golden.load(entry), entry["hyper"]
    prefix = "regressor." if "params/regressor.0.weight" in arrays else ""
    layers = {"first": 0, "second": 2, "third": 4}
    names = {"stage_0": {k: {"kernel": f"{prefix}{i}.weight"} for k, i in layers.items()}}
    arrays.setdefault("params/log_scale", arrays.get("inputs/log_scale"))
    arrays.setdefault("grad/params/log_scale", arrays.get("grad/inputs/log_scale"))
    names["stage_0"]["log_scale"] = "log_scale"
    term = terms.vid("0", "0", min_variance=hyper["eps"])
    result, by_params = run_term(term, arrays, from_peer(arrays, names))
    assert_agrees(entry, arrays, result)
    assert_params_agree(entry, arrays, by_params, names)


def norm_names(name):
    return {"scale": f"{name}.weight", "bias": f"{name}.bias"}


@pytest.mark.parametrize("entry", golden.cases("mdistiller/ReviewKD"))
def test_review(entry):
    """mdistiller counts stages from the deepest, and warms its weight up by epochs."""
    arrays, hyper = golden.load(entry), entry["hyper"]
    count = len(hyper["out_sizes"])
    names = {}
    for i in range(count):
        own = str(count - 1 - i)
        names[f"stage_{i}"] = {
            "reduce": {"kernel": f"{own}.conv1.0.weight", **norm_names(f"{own}.conv1.1")},
            "expand": {"kernel": f"{own}.conv2.0.weight", **norm_names(f"{own}.conv2.1")},
        }
        if i < count - 1:
            fuse = {"kernel": f"{own}.att_conv.0.weight", "bias": f"{own}.att_conv.0.bias"}
            names[f"stage_{i}"]["fuse"] = fuse
    paths = [str(i) for i in range(count)]
    (value, grads), by_params = run_term(
        terms.review(paths, paths), arrays, from_peer(arrays, names)
    )
    weight = hyper["weight"] * min(hyper["epoch"] / hyper["warmup"], 1.0)
    scaled = jax.tree.map(lambda x: weight * x, (value, grads, by_params))
    assert_agrees(entry, arrays, scaled[:2])
    assert_params_agree(entry, arrays, scaled[2], names)


@pytest.mark.parametrize("entry", golden.cases("mdistiller/OFD"))
def test_overhaul(entry):
    arrays = golden.load(entry)
    scales, biases = (by_stage(arrays, f"inputs/teacher_bn_{n}") for n in ("weight", "bias"))
    margins = [losses.batch_norm_margin(*pair) for pair in zip(scales, biases, strict=True)]
    for got, want in zip(margins, by_stage(arrays, "output/margin"), strict=True):
        golden.assert_close(got, want, 1e-6)
    names = {
        f"stage_{i}": {"kernel": f"connectors.{i}.0.weight", **norm_names(f"connectors.{i}.1")}
        for i in range(len(margins))
    }
    paths = [str(i) for i in range(len(margins))]
    term = terms.overhaul(paths, paths, margins=margins)
    state = {f"stage_{i}": margin for i, margin in enumerate(margins)}
    result, by_params = run_term(term, arrays, from_peer(arrays, names), state)
    assert_agrees(entry, arrays, result)
    assert_params_agree(entry, arrays, by_params, names)


@pytest.mark.parametrize("entry", golden.cases("RepDistiller/FT_modules"))
def test_factor_transfer_with_its_networks(entry):
    """RepDistiller compares attention maps of the factors; ours does the factors themselves.

    So its loss is put together of ours here, around the term's own networks. Its translator's
    convolutions have biases before a BatchNorm, which have no gradient; ours have none.
    """
    from kdjax.terms import _factor

    arrays, hyper = golden.load(entry), entry["hyper"]
    translator = {
        f"layer_{i}": {
            "kernel": f"translator.encoder.{3 * i}.weight",
            **norm_names(f"translator.encoder.{3 * i + 1}"),
        }
        for i in range(3)
    }
    encoder = {
        f"layer_{i}": {
            "kernel": f"paraphraser.encoder.{3 * i}.weight",
            "bias": f"paraphraser.encoder.{3 * i}.bias",
        }
        for i in range(3)
    }
    names = {"translator": translator, "paraphraser": {"encoder": encoder}}
    teacher = by_stage(arrays, "inputs/teacher_feat")[0]

    def loss(student, params):
        mask = np.ones(len(student), bool)
        factor = _factor._translate(params["translator"], student, mask)
        wanted = _factor._encode(params["paraphraser"], teacher)
        value = jnp.mean(attention_factors(factor, wanted, p1=hyper["p1"], p2=hyper["p2"]))
        return value, (factor, wanted)

    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    student = by_stage(arrays, "inputs/student_feat")[0]
    (value, factors), (by_student, by_params) = step(student, from_peer(arrays, names))
    for got, name in zip(factors, ("output/factor_s", "output/factor_t"), strict=True):
        golden.assert_close(got, channels_last(arrays[name]), entry["rtol"])
    assert_agrees(entry, arrays, (value, [by_student]))
    assert_params_agree(entry, arrays, by_params, names)
    unused = [f"grad/params/translator.encoder.{i}.bias" for i in (0, 3, 6)]
    assert all(np.max(np.abs(arrays[name])) < 1e-15 for name in unused)


def regressor(x, weight, kind):
    """RepDistiller's convolutions to half and to twice the size, with torch's padding."""
    if kind == "down2":
        return jax.lax.conv_general_dilated(
            x, weight, (2, 2), [(1, 1)] * 2, dimension_numbers=("NHWC", "OIHW", "NHWC")
        )
    flipped = weight[:, :, ::-1, ::-1]  # a transposed convolution, inputs before outputs
    return jax.lax.conv_general_dilated(
        x,
        flipped,
        (1, 1),
        [(2, 2)] * 2,
        lhs_dilation=(2, 2),
        dimension_numbers=("NHWC", "IOHW", "NHWC"),
    )


@pytest.mark.parametrize(
    "entry",
    golden.cases("RepDistiller/Hint", "mdistiller/FitNet", choose=lambda e: e["case"] != "same"),
)
def test_hint_between_sizes(entry):
    """The hint is ours, its regressor the peer's; maps of one size are in test_losses_golden."""
    arrays = golden.load(entry)
    weight = entry["hyper"].get("FEAT_WEIGHT", 1.0)
    teacher = by_stage(arrays, "inputs/teacher_feat")[0]
    names = ("conv.weight", "bn.weight", "bn.bias")

    def loss(student, params):
        from kdjax.terms import _layers

        x = regressor(student, params["conv.weight"], entry["case"])
        norm = {"scale": params["bn.weight"], "bias": params["bn.bias"]}
        x = jax.nn.relu(_layers.batch_norm(norm, x, np.ones(len(x), bool)))
        return weight * jnp.mean(losses.hint_loss(x, teacher))

    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    student = by_stage(arrays, "inputs/student_feat")[0]
    params = {name: arrays[f"params/{name}"] for name in names}
    value, (by_student, by_params) = step(student, params)
    assert_agrees(entry, arrays, (value, [by_student]))
    for name in names:
        golden.assert_close(by_params[name], arrays[f"grad/params/{name}"], entry["rtol"])


def cosine_distance(student, teacher):
    """Tunix pools all of the teacher's axes to the student's shape, layers and channels too."""
    bins = [
        n
        for pair in zip(student.shape, teacher.shape, strict=True)
        for n in (pair[0], pair[1] // pair[0])
    ]
    teacher = teacher.reshape(bins).mean(axis=tuple(range(1, 2 * student.ndim, 2)))
    unit = [x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (student, teacher)]
    return losses.hint_loss(*(x.reshape(-1, x.shape[-1]) for x in unit)) * student.shape[-1] / 2


OTHERS = ("keras/FeatureDistillation_mse", "tunix/FeatureProjection", "tunix/FeaturePooling")


@pytest.mark.parametrize("entry", golden.cases(*OTHERS))
def test_hint_of_other_peers(entry):
    """Tunix adds the labels' part; its cosine distance is half the squared one of unit vectors."""
    arrays, alpha = golden.load(entry), entry["hyper"].get("alpha", 1.0)
    loss_fn = cosine_distance if entry["loss_id"] == "tunix/FeaturePooling" else losses.hint_loss

    def loss(features, logits):
        value = alpha * jnp.mean(loss_fn(features, arrays["inputs/teacher_feat"]))
        if logits is None:
            return value
        hard = losses.cross_entropy(logits, arrays["inputs/labels_onehot"])
        return value + (1 - alpha) * jnp.mean(hard)

    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    logits = arrays.get("inputs/student_logits")
    value, (by_features, by_logits) = step(arrays["inputs/student_feat"], logits)
    golden.assert_close(value, arrays["output/loss"], entry["rtol"])
    golden.assert_close(by_features, arrays["grad/inputs/student_feat"], entry["rtol"])
    if logits is not None:
        golden.assert_close(by_logits, arrays["grad/inputs/student_logits"], entry["rtol"])
