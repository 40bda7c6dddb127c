"""The vision transformer: sizes, arithmetic against one written by hand, precision, misuse."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf
from scipy.stats import norm

from kdjax import models
from kdjax.models._transformer import attend, gelu

KEY = jax.random.key(0)
IMAGES = jax.random.uniform(jax.random.key(1), (4, 8, 8, 3))
SIZES = {"patch_size": 4, "width": 8, "depth": 2, "num_heads": 2}
PATHS = ("patches", "tokens", "block_0", "block_0/attention", "block_1/mlp", "norm", "embedding")


@functools.cache
def small(**changed):
    return models.vit(5, **{**SIZES, "features": PATHS, **changed})


@functools.cache
def initial():
    return jax.jit(small().init)(KEY, IMAGES)


@functools.cache
def run(**changed):
    """Outputs and state in evaluation, as a function of parameters."""
    return jax.jit(lambda params: small(**changed).apply(params, {}, IMAGES, train=False))


@pytest.mark.parametrize(
    ("make", "count"),
    [(models.vit_ti, 5_717_416), (models.vit_s, 22_050_664), (models.vit_b, 86_567_656)],
)
def test_sizes_are_the_fields(make, count):
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    shapes = jax.eval_shape(make(1000, patch_size=16).init, KEY, images)
    assert models.num_params(shapes.params) == count
    assert shapes.state == {}


def test_features_of_every_block_by_path():
    outputs, state = run()(initial().params)
    chex.assert_shape(outputs.logits, (4, 5))
    shapes = {name: x.shape[1:] for name, x in outputs.features.items()}
    tokens = (5, 8)
    assert shapes == {
        "patches": (2, 2, 8),
        **dict.fromkeys(PATHS[1:-1], tokens),
        "embedding": (8,),
    }
    assert state == {}


def by_hand(params, images):
    """The network in float64, one head and one token at a time."""

    def norm(p, x):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]

    def attention(p, x):
        total = np.zeros_like(x)
        for head in range(SIZES["num_heads"]):
            q, k, v = (
                x @ p[n]["kernel"][:, head] + p[n]["bias"][head] for n in ("query", "key", "value")
            )
            scores = np.exp(q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1]))
            total += scores / scores.sum(-1, keepdims=True) @ v @ p["out"]["kernel"][head]
        return total + p["out"]["bias"]

    def feed_forward(p, x):
        y = x @ p["up"]["kernel"] + p["up"]["bias"]
        return y * (1 + erf(y / np.sqrt(2))) / 2 @ p["down"]["kernel"] + p["down"]["bias"]

    patches = images.reshape(4, 2, 4, 2, 4, 3).swapaxes(2, 3).reshape(4, 4, -1)
    x = patches @ params["patches"]["kernel"].reshape(48, 8) + params["patches"]["bias"]
    first = np.broadcast_to(params["tokens"]["class_token"], (4, 1, 8))
    x = np.concatenate([first, x], axis=1) + params["tokens"]["position"]
    for block in (params["block_0"], params["block_1"]):
        x = x + attention(block["attention"], norm(block["norm_1"], x))
        x = x + feed_forward(block["mlp"], norm(block["norm_2"], x))
    return norm(params["norm"], x)[:, 0] @ params["head"]["kernel"] + params["head"]["bias"]


def test_the_arithmetic_by_hand():
    # Larger than at first, so that attention is far from uniform and every bias counts.
    params = jax.tree.map(
        lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), initial().params
    )
    outputs, _ = run()(params)
    wide = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    expected = by_hand(wide, np.asarray(IMAGES, np.float64))
    np.testing.assert_allclose(outputs.logits, expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_attention_of_any_scores_is_that_of_a_softmax(dtype):
    draw = functools.partial(jax.random.normal, shape=(2, 5, 3, 4), dtype=dtype)
    q, k, v = (draw(jax.random.key(i)) for i in range(3))

    def by_softmax(q, k, v):
        scores = np.einsum("bqhd,bkhd->bhqk", q, k) / 2
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        return np.einsum("bhqk,bkhd->bqhd", scores / scores.sum(-1, keepdims=True), v)

    # Scores that half precision would round visibly, and some whose exponentials overflow.
    for scale in (1, 6, 60):
        found = jax.jit(attend)(scale * q, scale * k, v)
        wide = (np.asarray(x, np.float64) for x in (scale * q, scale * k, v))
        assert found.dtype == dtype
        rtol = float(jnp.finfo(dtype).eps) * (30 * scale if dtype == jnp.float32 else 2)
        np.testing.assert_allclose(found.astype(jnp.float32), by_softmax(*wide), rtol, rtol)


def test_attention_has_the_derivatives_of_a_softmax():
    q, k, v, *moves = (jax.random.normal(jax.random.key(i), (1, 5, 2, 4)) for i in range(6))

    def by_softmax(q, k, v):
        weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) / 2)
        return jnp.einsum("bhqk,bkhd->bqhd", weights, v)

    forward, expected = (jax.jvp(f, (q, k, v), tuple(moves)) for f in (attend, by_softmax))
    chex.assert_trees_all_close(forward, expected, rtol=1e-5, atol=1e-6)
    square = [
        jax.grad(lambda *x, f=f: jnp.sum(f(*x) ** 2), (0, 1, 2)) for f in (attend, by_softmax)
    ]
    chex.assert_trees_all_close(square[0](q, k, v), square[1](q, k, v), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "rtol", "atol"),
    [(jnp.float32, 1e-6, 1e-6), (jnp.bfloat16, 0.03, 1e-6), (jnp.float16, 0.01, 1e-6)],
)
def test_the_gelu_is_exact_and_keeps_small_shares_in_half_precision(dtype, rtol, atol):
    x = jnp.linspace(-4, 4, 801).astype(dtype)
    wide = np.asarray(x, np.float64)
    found = jax.jit(gelu)(x)
    assert found.dtype == dtype
    expected = wide * norm.cdf(wide)
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol, atol)
    slope = jax.vmap(jax.grad(gelu))(x)
    expected = norm.cdf(wide) + wide * norm.pdf(wide)
    np.testing.assert_allclose(
        np.asarray(slope, np.float64), expected, rtol, 3e-3 if rtol > 1e-5 else atol
    )


def test_dropout_is_drawn_in_training_alone():
    model = small(dropout=0.5)
    still, expected = (run(**changed)(initial().params)[0] for changed in ({"dropout": 0.5}, {}))
    chex.assert_trees_all_equal(still, expected)
    apply = jax.jit(lambda key: model.apply(*initial(), IMAGES, train=True, key=key)[0].logits)
    assert jnp.any(apply(KEY) != apply(jax.random.key(1)))
    np.testing.assert_array_equal(apply(KEY), apply(KEY))


def test_every_parameter_gets_a_gradient():
    def loss(params):
        return jnp.sum(small().apply(params, {}, IMAGES, train=True, key=KEY)[0].logits ** 2)

    grads = jax.jit(jax.grad(loss))(initial().params)
    # Softmax ignores what all keys have in common: the bias of the keys has none.
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        assert name.endswith("key/bias") or jnp.any(grad != 0), name


def test_bfloat16_keeps_parameters_and_logits_in_float32():
    model = small(dtype=jnp.bfloat16)
    chex.assert_trees_all_equal_shapes_and_dtypes(
        jax.eval_shape(model.init, KEY, IMAGES), initial()
    )
    outputs, _ = run(dtype=jnp.bfloat16)(initial().params)
    assert outputs.features["block_0"].dtype == jnp.bfloat16
    assert outputs.logits.dtype == jnp.float32
    expected, _ = run()(initial().params)
    np.testing.assert_allclose(outputs.logits, expected.logits, atol=0.02)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"depth": 0}, "depth is 0"),
        ({"patch_size": 0}, "patch_size is 0"),
        ({"mlp_width": 0}, "mlp_width is 0"),
        ({"num_heads": 3}, "width is 8, expected a multiple of num_heads, 3"),
        ({"dropout": 1.0}, r"dropout is 1.0, expected a rate in \[0, 1\)"),
    ],
)
def test_misuse_names_the_argument(changed, words):
    with pytest.raises(ValueError, match=f"vit: {words}"):
        models.vit(5, **{**SIZES, **changed})


@pytest.mark.parametrize("shape", [(1, 30, 32, 3), (1, 32, 30, 3), (1, 32, 32)])
def test_images_that_do_not_divide_into_patches_are_refused(shape):
    with pytest.raises(ValueError, match=r"divide into patches of 4 x 4"):
        jax.eval_shape(small().init, KEY, jnp.zeros(shape))


def test_a_distillation_token_has_a_head_of_its_own():
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    tiny = models.vit_ti(1000, patch_size=16, distillation_token=True)
    assert models.num_params(jax.eval_shape(tiny.init, KEY, images).params) == 5_910_800
    heads = ("head", "distillation_head")
    model = small(distillation_token=True, features=(*heads, "norm"))
    assert model.paths.heads == heads and small().paths.heads == ()
    params, state = jax.jit(model.init)(KEY, IMAGES)
    outputs, _ = jax.jit(lambda p: model.apply(p, state, IMAGES, train=False))(params)
    for i, name in enumerate(heads):
        token = outputs.features["norm"][:, i]
        by_hand = token @ params[name]["kernel"] + params[name]["bias"][None]
        np.testing.assert_allclose(outputs.features[name], by_hand, atol=1e-6)
    mean = sum(outputs.features[name] for name in heads) / 2
    np.testing.assert_allclose(outputs.logits, mean, rtol=1e-6)


def test_paths_are_dropped_by_the_image_and_more_often_the_deeper_they_are():
    model = models.vit(5, **SIZES, drop_path=0.5, features=("block_0", "block_1"))
    plain = small(features=("block_0", "block_1"))
    images = jnp.broadcast_to(IMAGES[:1], (400, *IMAGES.shape[1:]))
    variables = initial()
    seen = [
        jax.jit(lambda v, m=m: m.apply(*v, images, train=True, key=KEY)[0].features)(variables)
        for m in (model, plain)
    ]
    # Which is always there.
    np.testing.assert_allclose(seen[0]["block_0"], seen[1]["block_0"], atol=1e-6)
    added = [np.asarray(x["block_1"] - x["block_0"]) for x in seen]
    skipped = ~added[0].any((1, 2))
    assert skipped.mean() == pytest.approx(0.25, abs=0.07)  # both branches at once
    evaluate = jax.jit(lambda v: model.apply(*v, images[:1], train=False)[0].features["block_1"])
    evaluated = evaluate(variables)
    np.testing.assert_allclose(evaluated, seen[1]["block_1"][:1], atol=1e-6)
    with pytest.raises(ValueError, match="drop_path is 1"):
        models.vit(5, **SIZES, drop_path=1)
