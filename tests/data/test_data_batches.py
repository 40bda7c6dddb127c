"""A batch is a function of (seed, step); evaluation sees every example once."""

from itertools import islice

import numpy as np
import pytest

from kdjax.data import batch_indices, eval_batches, example_order, train_batches

ARRAYS = {
    "image": np.arange(10 * 4, dtype=np.uint8).reshape(10, 2, 2, 1),
    "label": np.arange(10, dtype=np.int32) % 3,
}


def first(num_batches, **kwargs):
    return list(
        islice(train_batches(ARRAYS, **{"seed": 3, "batch_size": 4, **kwargs}), num_batches)
    )


def assert_equal_batches(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert one[name].dtype == other[name].dtype
            np.testing.assert_array_equal(one[name], other[name])


def test_rows_are_those_of_the_index():
    for batch in first(5):
        assert batch["index"].dtype == np.int32
        np.testing.assert_array_equal(batch["image"], ARRAYS["image"][batch["index"]])
        np.testing.assert_array_equal(batch["label"], ARRAYS["label"][batch["index"]])


@pytest.mark.parametrize("batch_size", [1, 3, 4, 10, 25])
def test_every_epoch_visits_every_example_once(batch_size):
    batches = first(10 * 6 // batch_size + 1, batch_size=batch_size)
    visited = np.concatenate([batch["index"] for batch in batches])
    epochs = visited[: len(visited) // 10 * 10].reshape(-1, 10)
    assert len(epochs) >= 5
    np.testing.assert_array_equal(np.sort(epochs, axis=1), [np.arange(10)] * len(epochs))
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


@pytest.mark.parametrize("start", [0, 1, 2, 7, 1000])
def test_starting_later_is_skipping(start):
    wanted = [
        batch_indices(3, step, batch_size=4, num_examples=10) for step in range(start, start + 3)
    ]
    found = [batch["index"] for batch in first(3, start_step=start)]
    np.testing.assert_array_equal(found, wanted)
    if start < 10:
        assert_equal_batches(first(3, start_step=start), first(start + 3)[start:])


def test_the_seed_names_the_sequence():
    assert_equal_batches(first(4), first(4))
    epochs = [np.concatenate([b["index"] for b in first(5, seed=seed)]) for seed in (3, 4)]
    assert not np.array_equal(*epochs)


def test_the_order_is_the_same_on_every_machine():
    assert example_order(0, 0, 8).tolist() == [3, 6, 4, 0, 7, 5, 2, 1]
    with pytest.raises(ValueError, match="read-only"):
        example_order(0, 0, 8)[0] = 1


def test_a_step_far_out_costs_no_more():
    index = batch_indices(0, 10**12, batch_size=7, num_examples=5)
    assert index.shape == (7,)
    assert set(index.tolist()) == set(range(5))


@pytest.mark.parametrize("process_count", [1, 2, 4])
def test_the_shares_make_up_the_batch(process_count):
    shares = [first(6, rows=rows) for rows in np.split(np.arange(4), process_count)]
    joined = [
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for parts in zip(*shares, strict=True)
    ]
    assert_equal_batches(joined, first(6))


@pytest.mark.parametrize("batch_size", [1, 3, 4, 10, 16])
@pytest.mark.parametrize("process_count", [1, 2])
def test_evaluation_covers_each_example_once(batch_size, process_count):
    mine = np.array_split(np.arange(batch_size), process_count)
    shares = [list(eval_batches(ARRAYS, batch_size=batch_size, rows=rows)) for rows in mine]
    assert {len(share) for share in shares} == {-(-10 // batch_size)}
    for share, rows in zip(shares, mine, strict=True):
        for batch in share:
            assert batch["mask"].dtype == bool
            assert {len(array) for array in batch.values()} == {len(rows)}
    batches = [batch for parts in zip(*shares, strict=True) for batch in parts]
    for name, array in ARRAYS.items():
        seen = np.concatenate([batch[name][batch["mask"]] for batch in batches])
        np.testing.assert_array_equal(seen, array)


def test_nothing_to_evaluate_is_no_batch():
    empty = {name: array[:0] for name, array in ARRAYS.items()}
    assert list(eval_batches(empty, batch_size=4)) == []


def test_any_array_goes_along():
    logits = np.arange(20.0, dtype=np.float32).reshape(10, 2)
    (batch,) = islice(train_batches({**ARRAYS, "teacher_logits": logits}, seed=0, batch_size=4), 1)
    np.testing.assert_array_equal(batch["teacher_logits"], logits[batch["index"]])


@pytest.mark.parametrize("function", [train_batches, eval_batches])
def test_arrays_need_no_label_but_the_same_examples(function):
    options = {"seed": 0} if function is train_batches else {}
    batch = next(function({"image": ARRAYS["image"]}, batch_size=4, **options))
    assert len(batch["image"]) == 4
    wrong = {
        "10 in image, 4 in label": {**ARRAYS, "label": ARRAYS["label"][:4]},
        "10 in image, no in lam": {"image": ARRAYS["image"], "lam": np.float32(1)},
    }
    for words, arrays in wrong.items():
        with pytest.raises(ValueError, match=f"{function.__name__}: the arrays hold {words} exam"):
            next(function(arrays, batch_size=4, **options))
