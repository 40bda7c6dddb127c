"""Sampling: the cached answer is the uncached one, draws follow the probabilities."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import generation, models

VOCAB = 97
MODEL = models.transformer(VOCAB, width=32, depth=2, num_heads=4, num_key_heads=2, context=24)
PROMPTS = np.random.default_rng(0).integers(0, VOCAB, (200, 6)).astype(np.int32)
VARIABLES = jax.jit(MODEL.init)(jax.random.key(0), PROMPTS)
KEY = jax.random.key(1)
sample = functools.partial(generation.sample, MODEL, VARIABLES, KEY)


@jax.jit
def answered(tokens):
    return MODEL.apply(*VARIABLES, tokens, train=False)[0].logits


def test_the_greedy_answer_is_that_of_reading_everything_again():
    tokens, mask = sample(PROMPTS, length=8, temperature=0)
    chex.assert_shape((tokens, mask), (200, 14))
    np.testing.assert_array_equal(tokens[:, :6], PROMPTS)
    np.testing.assert_array_equal(mask, np.arange(14)[None] >= np.full((200, 1), 6))
    np.testing.assert_array_equal(tokens[:, 6:], answered(tokens).argmax(-1)[:, 5:-1])
    # A model that cannot decode reads everything again, to the same end.
    plain = MODEL._replace(decode=None)
    again = generation.sample(plain, VARIABLES, KEY, PROMPTS, length=8, temperature=0)
    np.testing.assert_array_equal(again.tokens, tokens)


def test_prompts_of_several_lengths_are_each_continued_where_they_end():
    lengths = np.array([6, 1, 3])
    filled = np.where(np.arange(6)[None] < lengths[:, None], PROMPTS[:3], 50)
    tokens, mask = sample(filled, length=5, temperature=0, prompt_lengths=lengths)
    likeliest = answered(tokens).argmax(-1)
    for row, count in enumerate(lengths):
        np.testing.assert_array_equal(tokens[row, :count], PROMPTS[row, :count])
        added = slice(count, count + 5)
        np.testing.assert_array_equal(tokens[row, added], likeliest[row, count - 1 : count + 4])
        assert mask[row].nonzero()[0].tolist() == [*range(count, count + 5)]


def test_a_text_ends_with_its_stop():
    greedy = np.asarray(sample(PROMPTS, length=8, temperature=0).tokens)
    stop = int(greedy[0, 9])
    tokens, mask = map(np.asarray, sample(PROMPTS, length=8, temperature=0, stop=stop))
    for row, whole, there in zip(tokens, greedy, mask, strict=True):
        ends = [*np.flatnonzero(whole[6:] == stop), 8]
        end = 6 + min(int(ends[0]) + 1, 8)
        np.testing.assert_array_equal(row[:end], whole[:end])
        assert (row[end:] == stop).all() and there.nonzero()[0].tolist() == [*range(6, end)]
    assert not mask[0].all() and tokens[0, 9] == stop


def test_what_is_drawn_is_the_keys_and_follows_the_temperature():
    first, same = (sample(PROMPTS, length=8, temperature=1.5).tokens for _ in range(2))
    np.testing.assert_array_equal(first, same)
    key = jax.random.key(2)
    other = generation.sample(MODEL, VARIABLES, key, PROMPTS, length=8, temperature=1.5)
    assert (first != other.tokens).any()
    cold = sample(PROMPTS, length=8, temperature=1e-4).tokens
    np.testing.assert_array_equal(cold, sample(PROMPTS, length=8, temperature=0).tokens)


@pytest.mark.parametrize("num_classes", [5, 256, 700])
def test_draws_are_as_frequent_as_they_are_probable(num_classes):
    rng = np.random.default_rng(num_classes)
    logits = rng.normal(size=num_classes).astype(np.float32) * 2
    logits[rng.permutation(num_classes)[: num_classes // 3]] = -np.inf
    count = 40_000
    drawn = jax.jit(generation.draw)(KEY, jnp.broadcast_to(logits, (count, num_classes)), 2.0)
    found = np.bincount(drawn, minlength=num_classes)
    p = np.exp(logits / 2.0 - logits.max())
    expected = count * p / p.sum()
    assert found[expected == 0].sum() == 0
    often = expected > 0
    chi2 = ((found - expected)[often] ** 2 / expected[often]).sum()
    # The mean and deviation of chi-square: what is right stays within four deviations.
    freedom = often.sum() - 1
    assert abs(chi2 - freedom) < 4 * np.sqrt(2 * freedom)


def test_the_last_class_that_can_be_drawn_is_the_last():
    mass = jnp.zeros((3, 300)).at[:, 40].set(1.0)
    place, _ = generation._passed(mass, jnp.array([0.0, 0.5, 1.0]))
    np.testing.assert_array_equal(place, 40)


def test_a_class_without_mass_is_not_drawn_however_sums_are_rounded(monkeypatch):
    """What is before the block is, summed in another order, more than the point."""
    logits = jnp.full((1, 512), -jnp.inf).at[0, 0].set(np.log(1e-3)).at[0, 257:].set(0.0)
    point = np.float32(33 * 2**-23)
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape, dtype: jnp.full(shape, point))
    assert generation.draw(KEY, logits)[0] in (0, *range(257, 512))


def test_a_temperature_of_zero_may_be_traced_and_what_is_nan_is_no_class():
    rows = jnp.array([[0.0, 9.0, 1.0], [2.0, -jnp.inf, 1.0]])
    found = jax.jit(generation.draw)(KEY, rows, jnp.array([0.0, 0.0]))
    np.testing.assert_array_equal(found, [1, 0])
    np.testing.assert_array_equal(generation.draw(KEY, rows, jnp.array([1.0, -1.0]))[1], -1)
    assert generation.draw(KEY, jnp.array([jnp.nan, 0.0])) == -1
    broken = jax.tree.map(lambda x: x * np.nan, VARIABLES)
    for temperature in (0, 1.0):
        lost = generation.sample(
            MODEL, broken, KEY, PROMPTS[:1], length=2, temperature=temperature
        ).tokens
        np.testing.assert_array_equal(lost[0, 6:], -1)
    greedy = sample(PROMPTS[:4], length=5, temperature=0).tokens
    traced = jax.jit(lambda t: sample(PROMPTS[:4], length=5, temperature=t).tokens)(0.0)
    np.testing.assert_array_equal(traced, greedy)


def test_a_model_in_another_unit_says_what_it_answers():
    shifted = models.scaled(MODEL, 1e3 * (np.arange(VOCAB) == 5), 1.0)
    tokens = generation.sample(shifted, VARIABLES, KEY, PROMPTS[:2], length=2, temperature=0).tokens
    np.testing.assert_array_equal(tokens[:, 6:], 5)
    with pytest.raises(ValueError, match=r"scaled: mean has shape \(3,\), and the model answers"):
        models.scaled(MODEL, np.zeros(3), 1.0).apply(*VARIABLES, PROMPTS[:2], train=False)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_tokens_are_not_cut_to_the_type_of_the_prompts(dtype):
    """A vocabulary of 300 behind a prompt of bytes."""
    model = models.transformer(300, width=16, depth=1, num_heads=2)
    prompts = np.array([[1, 50]], dtype)
    variables = model.init(jax.random.key(0), prompts.astype(np.int32))
    drawn = functools.partial(generation.sample, model, variables, KEY, length=20, temperature=9.0)
    found, expected = drawn(prompts).tokens, drawn(prompts.astype(np.int32)).tokens
    np.testing.assert_array_equal(found, expected)
    first = int(np.argmax(expected[0] > 255))
    stopped = drawn(prompts, stop=int(expected[0, first])).mask
    assert first > 1 and stopped[0, first] and not stopped[0, first + 1 :].any()


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"prompts": PROMPTS[:, :0]}, r"prompts has shape \(200, 0\), expected \[batch, prompt\]"),
        ({"prompts": PROMPTS * 1.0}, "prompts"),
        ({"length": 0}, "length is 0, expected 1 or more"),
        ({"length": 20}, "prompts of 6 tokens and 20 more are 26, and the model's context is 24"),
        ({"prompts": PROMPTS + VOCAB}, "prompts has 193, expected 0 to 96"),
        ({"prompt_lengths": np.zeros(200, int)}, "prompt_lengths has 0, expected 1 to 6"),
        ({"stop": VOCAB}, "stop has 97, expected 0 to 96"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"prompt_lengths": np.array([1, 2])}, r"prompt_lengths has shape \(2,\)"),
    ],
)
def test_misuse_is_one_line(changed, line):
    asked = {"prompts": PROMPTS, "length": 4, **changed}
    with pytest.raises((TypeError, ValueError), match=line) as caught:
        sample(asked.pop("prompts"), **asked)
    assert "\n" not in str(caught.value)
