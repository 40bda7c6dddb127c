"""A network in evaluation answers each example by itself, or says which switch it lacks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from kdjax import models, teachers
from kdjax.types import Model, Variables

X = jnp.asarray(np.random.default_rng(0).normal(size=(6, 5)) * 3 + 2, jnp.float32)


class Net(nn.Module):
    """BatchNorm and a classifier; `frozen` is whatever the subclass's switch says."""

    def answer(self, x, frozen, **options):
        return nn.Dense(4)(nn.BatchNorm(use_running_average=frozen, **options)(nn.Dense(8)(x)))


def with_argument(name, *, evaluates):
    """A module whose `__call__` takes a switch, which stands on training."""
    scope = {"Net": Net, "nn": nn}
    source = (
        "class Switched(Net):\n"
        "    @nn.compact\n"
        f"    def __call__(self, x, {name}={not evaluates}):\n"
        f"        return self.answer(x, {name if evaluates else f'not {name}'})\n"
    )
    exec(source, scope)
    return scope["Switched"]()


def with_attribute(name, *, evaluates):
    """A module that has such a switch as an attribute."""

    def call(self, x):
        return self.answer(x, getattr(self, name) == evaluates)

    members = {"__annotations__": {name: bool}, name: not evaluates, "__call__": nn.compact(call)}
    return type("Held", (Net,), members)()


class Wrapped(nn.Module):
    body: nn.Module

    def __call__(self, x):
        return self.body(x)


class Merged(Net):
    deterministic: bool | None = None

    @nn.compact
    def __call__(self, x, deterministic=None):
        return self.answer(x, nn.merge_param("d", self.deterministic, deterministic))


class Live(nnx.Module):
    def __init__(self, rngs, name, evaluates):
        self.hidden, self.head = (nnx.Linear(n, m, rngs=rngs) for n, m in ((5, 8), (8, 4)))
        self.norm, self.name, self.evaluates = nnx.BatchNorm(8, rngs=rngs), name, evaluates
        self.rngs = rngs
        setattr(self, name, not evaluates)

    def __call__(self, x):
        frozen = vars(self)[self.name] == self.evaluates
        return self.head(self.norm(self.hidden(x), use_running_average=frozen))


SWITCHES = {
    "train": False, "training": False, "is_training": False, "is_train": False,
    "deterministic": True, "use_running_average": True, "inference": True, "eval_mode": True,
}  # fmt: skip
NETWORKS = {
    **{f"{n}=": lambda n=n, e=e: models.from_linen(with_argument(n, evaluates=e))
       for n, e in SWITCHES.items()},
    **{f"self.{n}": lambda n=n, e=e: models.from_linen(with_attribute(n, evaluates=e))
       for n, e in SWITCHES.items()},
    **{f"nnx {n}": lambda n=n, e=e: models.from_nnx(lambda rngs: Live(rngs, n, e))
       for n, e in SWITCHES.items()},
    "inside": lambda: models.from_linen(Wrapped(with_attribute("train", evaluates=False))),
    "merged": lambda: models.from_linen(Merged()),
    "merged and set": lambda: models.from_linen(Merged(deterministic=False)),
}  # fmt: skip


def teacher_of(model):
    """Return a teacher whose statistics are not those of the batch."""
    drawn = model.init(jax.random.key(0), X)
    moved = jax.tree.map(lambda x: x + 1.5, drawn.state)
    return teachers.frozen(model, Variables(drawn.params, moved))


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_whatever_its_switch_a_teacher_evaluates_and_a_student_trains(make):
    model = make()
    teacher = teacher_of(model)
    whole = teacher.apply(teacher.variables, {"image": X}).logits
    alone = [
        teacher.apply(teacher.variables, {"image": X[i : i + 1]}).logits for i in range(len(X))
    ]
    np.testing.assert_allclose(whole, jnp.concatenate(alone), rtol=1e-5, atol=1e-5)
    _, state = model.apply(*teacher.variables, X, train=True, key=jax.random.key(1))
    assert not all(
        np.array_equal(a, b)
        for a, b in zip(
            jax.tree.leaves(state), jax.tree.leaves(teacher.variables.state), strict=True
        )
    )


class Hidden(nn.Module):
    @nn.compact
    def __call__(self, x):
        return with_attribute("train", evaluates=False)(x)


class Drawing(nnx.Module):
    def __init__(self, rngs):
        self.head, self.rngs = nnx.Linear(5, 4, rngs=rngs), rngs

    def __call__(self, x):
        return self.head(x * jax.random.bernoulli(self.rngs.dropout(), 0.5, x.shape))


UNKNOWN = {
    "argument": (
        lambda: models.from_linen(with_argument("learning", evaluates=False)),
        r"from_linen: evaluation of Switched changes its state batch_stats/BatchNorm_0/mean: .*"
        r"call_fn=lambda module, inputs, train: module\(inputs, learning=train\)",
    ),
    "attribute": (
        lambda: models.from_linen(with_attribute("learning", evaluates=False)),
        r"evaluation of Held changes .* \(it has learning\)",
    ),
    "inside": (lambda: models.from_linen(Hidden()), "evaluation of Hidden changes its state batch"),
    "nnx": (
        lambda: models.from_nnx(lambda rngs: Live(rngs, "learning", False)),
        r"from_nnx: evaluation of Live changes its state norm/mean: .* \(it has evaluates, learn",
    ),
    "drawing": (lambda: models.from_nnx(Drawing), "Drawing needs random numbers in evaluation"),
}


@pytest.mark.parametrize(("make", "words"), UNKNOWN.values(), ids=UNKNOWN)
@pytest.mark.parametrize("traced", [False, True])
def test_evaluation_that_is_training_is_refused(make, words, traced):
    with pytest.raises(ValueError, match=words) as raised:
        teacher = teacher_of(make())
        (jax.jit(teacher.apply) if traced else teacher.apply)(teacher.variables, {"image": X})
    assert "\n" not in str(raised.value)


def test_a_plain_function_that_trains_is_refused_where_its_state_is_known():
    module = with_argument("train", evaluates=False)
    model = models.from_linen(module)

    def apply(params, state, inputs, *, train, key=None):
        return model.apply(params, state, inputs, train=True)

    with pytest.raises(ValueError, match=r"frozen: evaluation .* changes the network's state"):
        teacher = teacher_of(Model(model.init, apply))
        teacher.apply(teacher.variables, {"image": X})


def test_an_axis_of_pmap_is_refused_in_one_line():
    class Synced(Net):
        @nn.compact
        def __call__(self, x, train):
            return self.answer(x, not train, axis_name="batch")

    class LiveSynced(nnx.Module):
        def __init__(self, rngs):
            self.norm = nnx.BatchNorm(5, axis_name="batch", rngs=rngs)

        def __call__(self, x):
            return self.norm(x)

    for model in (models.from_linen(Synced()), models.from_nnx(lambda rngs: LiveSynced(rngs))):
        with pytest.raises(
            ValueError, match=r"names an axis of jax.pmap .*batch.*; drop axis_name"
        ):
            model.apply(*model.init(jax.random.key(0), X), X, train=True)


def test_each_adapter_names_the_other():
    with pytest.raises(TypeError, match=r"module is a Drawing, .*; NNX modules go to from_nnx"):
        models.from_linen(Drawing(nnx.Rngs(0)))
