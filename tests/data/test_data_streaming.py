"""Sets that are read while they are used: the same batches, however they are read."""

import multiprocessing
import subprocess
import sys
import threading
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_data_sources import assert_same_batches, encoded, features, prepare, rows

from kdjax.data import (
    LazyImages,
    LazyLabels,
    center_crop,
    eval_batches,
    is_lazy,
    load,
    prefetch,
    random_crop,
    sets,
    sources,
    stretch,
    take,
    train_batch,
    train_batches,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    prepare(root, {"train": rows(20), "test": rows(7, seed=1)})
    return root


@pytest.fixture(scope="module")
def both(root):
    streamed, memory = (load("toy", data_dir=root, streaming=on) for on in (True, False))
    assert is_lazy(streamed.train._asdict()) and not is_lazy(memory.train._asdict())
    return streamed, memory


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Return JPEG files of different sizes, smooth so that compression changes little."""
    root = tmp_path_factory.mktemp("photos")
    rng, images = np.random.default_rng(5), []
    for height, width in [(48, 64), (64, 48), (40, 90), (56, 56)] * 3:
        small = rng.integers(0, 256, (3, 4, 3), np.uint8)
        images.append(np.asarray(Image.fromarray(small).resize((width, height))))
    examples = [{"image": encoded(x, "JPEG"), "label": i % 3} for i, x in enumerate(images)]
    prepare(
        root,
        {"train": examples, "test": rows(4, shape=(40, 50, 3), kind="JPEG")},
        columns=features(shape=(None, None, 3), kind="jpeg"),
    )
    return root, images


def arrays_of(dataset):
    return dataset.train._asdict()


def cropped(dataset):
    return dataset.train._replace(image=dataset.train.image.cropped(random_crop))._asdict()


def first(arrays, num_batches=4, **settings):
    settings = {"seed": 1, "batch_size": 8, **settings}
    return list(islice(train_batches(arrays, **settings), num_batches))


def test_a_streamed_set_is_the_set(both):
    streamed, memory = both
    for part in ("train", "validation", "test"):
        lazy, held = getattr(streamed, part), getattr(memory, part)
        assert len(lazy.label) == len(held.label)
        assert lazy.image.shape == held.image.shape
        np.testing.assert_array_equal(np.asarray(lazy.label), held.label)
        everything = np.arange(len(held.label))
        np.testing.assert_array_equal(lazy.image[everything], held.image)
    assert streamed._replace(train=0, validation=0, test=0, mean=0, std=0) == memory._replace(
        train=0, validation=0, test=0, mean=0, std=0
    )
    np.testing.assert_array_equal(streamed.mean, memory.mean)


def test_opening_a_streamed_set_reads_a_few_records(root, monkeypatch):
    monkeypatch.setattr(sets, "_NUM_STREAMED", 2)
    monkeypatch.setattr(sources, "_NUM_PROBED", 2)
    read, original = [], sources.Reader.source

    def counting(self, split):
        source = original(self, split)
        getitems = source.__getitems__

        class Counted:
            def __len__(self):
                return len(source)

            def __getitem__(self, i):
                return self.__getitems__([i])[0]

            def __getitems__(self, indices):
                read.extend(indices)
                return getitems(indices)

        return Counted()

    monkeypatch.setattr(sources.Reader, "source", counting)
    load("toy", data_dir=root, streaming=True)
    assert len(read) <= 2 + 2 + 4


@pytest.mark.parametrize("start", [0, 5])
def test_streamed_batches_are_those_of_memory(both, start):
    assert_same_batches(*(first(arrays_of(x), start_step=start) for x in both))


def test_each_process_gets_its_rows(both):
    rows = np.array([1, 2, 6])
    shares = [first(arrays_of(x), rows=rows) for x in both]
    assert_same_batches(*shares)
    whole = first(arrays_of(both[1]))
    np.testing.assert_array_equal(shares[0][2]["image"], whole[2]["image"][rows])


def test_evaluation_sees_every_example_once(both):
    logits = np.arange(14.0).reshape(7, 2)
    arrays = [{**x.test._asdict(), "teacher_logits": logits} for x in both]
    batches = [list(eval_batches(x, batch_size=3)) for x in arrays]
    assert_same_batches(*batches)
    assert sum(batch["mask"].sum() for batch in batches[0]) == 7
    np.testing.assert_array_equal(batches[0][1]["teacher_logits"], logits[3:6])


def test_workers_make_the_same_batches(both):
    streamed = both[0]
    with_workers, alone = (first(cropped(streamed), workers=n) for n in (2, 0))
    assert_same_batches(with_workers, alone)


def test_a_worker_that_is_killed_is_an_error_in_words(both):
    batches = train_batches(arrays_of(both[0]), seed=0, batch_size=8, workers=1)
    next(batches)
    (worker,) = (p for p in multiprocessing.active_children() if "grain" in p.name)
    worker.kill()
    with pytest.raises(ChildProcessError, match=r"\(status -9; -9 is a kill.*--data.workers"):
        list(islice(batches, 20))


def test_workers_end_when_the_training_is_killed(root):
    code = (
        "import multiprocessing, sys, time\n"
        "from kdjax.data import load, train_batches\n"
        "if __name__ == '__main__':\n"
        "    arrays = load('toy', data_dir=sys.argv[1], streaming=True).train._asdict()\n"
        "    batches = train_batches(arrays, seed=0, batch_size=8, workers=2)\n"
        "    next(batches), next(batches)\n"
        "    found = [p.pid for p in multiprocessing.active_children()]\n"
        "    print(*found, flush=True)\n"
        "    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, str(root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as training:
        workers = [Path(f"/proc/{pid}") for pid in training.stdout.readline().split()]
        assert len(workers) == 2 and all(map(Path.exists, workers))
        training.kill()
    end = time.monotonic() + 15
    while any(map(_runs, workers)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(map(_runs, workers))


def _runs(process):
    """Whether a process is there and more than what nobody has asked for its status."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("start", [1, 3])
def test_crops_are_a_function_of_seed_and_step(photos, start):
    dataset = load("toy", data_dir=photos[0], image_size=16, streaming=True)
    arrays = cropped(dataset)
    whole = first(arrays)
    assert_same_batches(first(arrays, start_step=start)[: 4 - start], whole[start:])
    mine = np.array([5, 2])
    shares = [train_batch(arrays, 2, seed=1, batch_size=8, rows=mine)]
    np.testing.assert_array_equal(shares[0]["image"], whole[2]["image"][mine])
    assert not np.array_equal(first(arrays, seed=2)[0]["image"], whole[0]["image"])
    # The same example is seen otherwise in another epoch.
    seen = {}
    for batch in whole:
        for index, image in zip(batch["index"], batch["image"], strict=True):
            seen.setdefault(int(index), set()).add(image.tobytes())
    assert len(seen) < sum(map(len, seen.values()))


@pytest.mark.parametrize("crop_fn", [stretch, center_crop])
@pytest.mark.parametrize("streaming", [False, True])
def test_images_become_of_one_size(photos, crop_fn, streaming):
    root, images = photos
    toy = load(
        "toy",
        data_dir=root,
        image_size=16,
        crop_fn=crop_fn,
        streaming=streaming,
        validation_fraction=0,
    )
    found = toy.train.image[np.arange(len(images))].astype(float)
    assert found.shape == (12, 16, 16, 3)
    for image, one in zip(images, found, strict=True):
        height, width = image.shape[:2]
        left, top, right, bottom = crop_fn((height, width), (16, 16), ())
        box = (left * width, top * height, right * width, bottom * height)
        wanted = Image.fromarray(image).resize((16, 16), Image.Resampling.BILINEAR, box=box)
        assert np.abs(one - np.asarray(wanted)).mean() < 6


def test_the_middle_keeps_proportions():
    left, top, right, bottom = center_crop((300, 400), (224, 224), ())
    np.testing.assert_allclose([(right - left) * 400, (bottom - top) * 300], 300 * 7 / 8)
    np.testing.assert_allclose([left + right, top + bottom], 1)


def test_random_windows_have_the_areas_and_proportions_of_the_paper():
    boxes = np.array([random_crop((300, 500), (224, 224), (0, i)) for i in range(2000)])
    left, top, right, bottom = boxes.T
    assert boxes.min() >= 0 and boxes.max() <= 1
    areas, ratios = (right - left) * (bottom - top), (right - left) * 5 / (bottom - top) / 3
    assert 0.0799 < areas.min() < 0.1 and areas.max() <= 1
    assert 3 / 4 - 1e-9 < ratios.min() < 0.76 and 1.32 < ratios.max() < 4 / 3 + 1e-9
    np.testing.assert_allclose([np.mean(left + right), np.mean(top + bottom)], 1, atol=0.03)
    assert random_crop((300, 500), (224, 224), (0, 3)) == tuple(boxes[3])
    # No window fits into a strip: the middle of it.
    np.testing.assert_allclose(random_crop((10, 4000), (8, 8), (0,))[0], 0.5 - 10 / 8000)


def test_taking_and_cropping_reads_nothing(both):
    some = take(both[0].train, np.array([3, 1]))
    assert isinstance(some.image, LazyImages) and isinstance(some.label, LazyLabels)
    assert some.image.records is some.label.records
    np.testing.assert_array_equal(some.image[np.arange(2)], both[1].train.image[[3, 1]])
    np.testing.assert_array_equal(some.label[np.arange(2)], both[1].train.label[[3, 1]])
    again = take(some._replace(image=some.image.cropped(random_crop)), np.array([0]))
    assert again.image.crop_fn is random_crop


@pytest.mark.parametrize("workers", [0, 1])
def test_a_wrong_label_is_named_when_it_is_read(tmp_path, workers):
    examples = rows(9)
    examples[4]["label"] = -1
    prepare(tmp_path, {"train": examples, "test": rows(3)})
    toy = load("toy", data_dir=tmp_path, streaming=True, validation_fraction=0)
    with pytest.raises(ValueError, match="example 4 of split train has label -1") as raised:
        first(arrays_of(toy), workers=workers)
    assert "\n" not in str(raised.value)


def test_large_files_stream_unasked(root, monkeypatch):
    monkeypatch.setattr(sources, "FILE_LIMIT", 100)
    assert isinstance(load("toy", data_dir=root).train.label, LazyLabels)


def test_a_split_without_labels_is_passed_over(tmp_path):
    unlabelled = [{**row, "label": -1} for row in rows(5)]
    splits = {"train": rows(9), "test": unlabelled, "validation": rows(6)}
    prepare(tmp_path, splits)
    assert len(load("toy", data_dir=tmp_path, streaming=True).test.label) == 6


def test_prefetched_batches_come_in_order_and_placed():
    assert list(prefetch(range(50), lambda i: 2 * i)) == list(range(0, 100, 2))


def test_prefetching_stays_a_few_batches_ahead():
    asked, waiting = [], threading.Event()

    def batches():
        for i in range(100):
            asked.append(i)
            if i == 3:
                waiting.set()
            yield i

    ahead = prefetch(batches(), lambda i: i, depth=2)
    assert next(ahead) == 0
    assert waiting.wait(5)
    ahead.close()
    assert len(asked) <= 5
    assert not [t for t in threading.enumerate() if t.name.startswith("prefetch")]


def test_an_error_while_reading_or_placing_is_raised_where_batches_are_used():
    def torn():
        yield 1
        raise OSError("gone")

    ahead = prefetch(torn(), lambda i: i)
    assert next(ahead) == 1
    with pytest.raises(OSError, match="gone"):
        next(ahead)
    with pytest.raises(ZeroDivisionError):
        next(prefetch([0], lambda i: 1 / i))
    with pytest.raises(ValueError, match="prefetch: depth is 0"):
        next(prefetch([0], lambda i: i, depth=0))
