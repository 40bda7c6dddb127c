"""Text: rows, splits, tokenizers, and what cannot be read."""

import json

import numpy as np
import pytest
import sets

from kdjax import data
from kdjax.data import text as texts

POEM = "Tiger, tiger, burning bright\nIn the forests of the night,\n" * 20 + "what immortal hand?\n"


def written(folder, name="poem.txt", content=POEM):
    path = folder / name
    path.write_text(content, "utf-8")
    return path


@pytest.mark.parametrize("tokenizer", ["bytes", "characters", "words"])
def test_rows_are_the_text_and_labels_what_follows(tmp_path, tokenizer):
    content = POEM + "naïve 東京 end\n"
    found = data.text.load(written(tmp_path, content=content), tokenizer=tokenizer, length=7)
    whole = []
    for rows in (found.train, found.validation):
        tokens, label, mask = (rows.arrays[name] for name in ("tokens", "label", "mask"))
        assert tokens.shape == label.shape == mask.shape and tokens.shape[1] == 7
        stream = [tokens.ravel()[0], *label[mask]]
        np.testing.assert_array_equal(stream[:-1], tokens[mask])
        said = found.tokenizer.decode(stream)
        # Every byte but those of the first token is a label's.
        first = len(found.tokenizer.decode(stream[:1]).encode())
        assert rows.num_bytes == len(said.encode()) - first
        assert rows.num_tokens == len(stream) - 1 and max(stream) < found.tokenizer.vocab_size
        whole.append(said)
    assert "".join(whole) == content
    assert found.tokenizer.file
    (tmp_path / "t.json").write_text(found.tokenizer.file)
    again = texts.tokenizer_from(tmp_path / "t.json")
    assert again.name == found.tokenizer.name and again.encode(content) == [
        *found.tokenizer.encode(content)
    ]
    assert whole[1].startswith(("In", "Tiger", "what")) and whole[0].endswith("\n")
    assert len(whole[1]) == pytest.approx(len(content) / 10, abs=40)


def test_a_last_paragraph_is_cut_where_no_line_begins(tmp_path):
    path = written(tmp_path, content="x" * 1000 + "\n")
    found = data.text.load(path, tokenizer="bytes", length=10)
    assert found.validation.num_tokens == 99 and found.train.num_tokens == 900


def test_words_are_the_frequent_ones_of_the_training_text():
    found = texts.by_words("a cat, a cat, the dog", num_words=1)
    ids = found.encode(" cat the dog")
    assert found.vocab_size == 258 and found.decode(ids) == " cat the dog"
    assert ids == [257, *b" the dog"]


def test_documents_end_and_are_told_apart(tmp_path):
    lines = [json.dumps({"text": f"document {i} " * 4}) for i in range(10)]
    path = written(tmp_path, "some.jsonl", "\n".join(lines) + "\n\n")
    found = data.text.load(path, tokenizer="bytes", length=16)
    end = found.tokenizer.end
    tokens, label, owner, mask = (
        found.train.arrays[name] for name in ("tokens", "label", "document", "mask")
    )
    assert (tokens[mask] == end).sum() == 9 == (label[mask] == end).sum()
    # An end belongs to the document behind it, which it begins.
    np.testing.assert_array_equal(np.cumsum(tokens[mask] == end) - 1, owner[mask])
    assert found.tokenizer.decode(tokens[mask][owner[mask] == 3]) == "document 3 " * 4
    assert "document" in found.validation.arrays  # one alone is still one of several
    assert "document 9" in found.tokenizer.decode(found.validation.arrays["tokens"].ravel())


def test_a_document_that_is_most_of_the_text_is_cut(tmp_path):
    """Whole, one at the end would be all that is validated on, one before it all of the rest."""
    line, few = "so it goes\n", "few"
    for place, parts in {"last": (4, 1), "first": (1, 4)}.items():
        documents = [few] * 3 + [line * 100] if place == "last" else [line * 100] + [few] * 3
        rows = "\n".join(json.dumps({"text": text}) for text in documents)
        path = written(tmp_path, "some.jsonl", rows)
        found = data.text.load(path, tokenizer="bytes", length=16)
        assert found.validation.num_bytes == pytest.approx(1120 / 10, abs=15)
        for rows, count in zip((found.train, found.validation), parts, strict=True):
            assert len(np.unique(rows.arrays["document"][rows.arrays["mask"]])) == count
        start = found.validation.arrays["tokens"].ravel()[1:12]
        assert found.tokenizer.decode(start) == line


def test_batches_are_a_function_of_seed_and_step(tmp_path):
    rows = data.text.load(written(tmp_path), length=8).train.arrays
    taken = [
        next(data.train_batches(rows, seed=1, batch_size=4, start_step=step)) for step in (0, 3, 3)
    ]
    np.testing.assert_array_equal(taken[1]["tokens"], taken[2]["tokens"])
    assert (taken[0]["index"] != taken[1]["index"]).any()
    # Where a batch of an evaluation is filled up, and where the last row is.
    seen = [*data.eval_batches(rows, batch_size=len(rows["mask"]) - 1)]
    assert sum(batch["mask"].sum() for batch in seen) == rows["mask"].sum()
    assert seen[0]["mask"].shape == seen[0]["tokens"].shape


def test_a_smaller_vocabulary_says_the_same():
    text = data.text.load(length=64, tokenizer="words")
    small, kept = data.text.compact(text)
    assert len(kept) == small.tokenizer.vocab_size < text.tokenizer.vocab_size
    for split in ("train", "validation"):
        new, old = (getattr(x, split).arrays["tokens"] for x in (small, text))
        mask = getattr(text, split).arrays["mask"]
        np.testing.assert_array_equal(kept[new][mask], old[mask])
    ids = small.tokenizer.encode("the language")
    assert small.tokenizer.decode(ids) == "the language"


def test_the_first_rows_are_kept():
    rows = data.text.load(length=64).train
    few = data.text.first(rows, 0.1)
    assert len(few.arrays["tokens"]) == round(0.1 * len(rows.arrays["tokens"]))
    assert few.num_bytes == pytest.approx(rows.num_bytes / 10, rel=0.01)
    assert len(data.text.first(rows, 1e-9).arrays["tokens"]) == 1


def test_bytes_of_the_first_rows_are_those_of_their_labels():
    rows = texts.rows_of(["to be or no"], texts.by_bytes(), length=8)
    assert texts.first(rows, 0.5).num_bytes == 8


def test_a_tokenizer_of_the_tokenizers_package(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    own = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=False))
    own.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    own.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"]
    )
    own.train_from_iterator([POEM], trainer)
    own.save(str(tmp_path / "tokenizer.json"))
    found = data.text.load(written(tmp_path), tokenizer=tmp_path / "tokenizer.json")
    assert found.tokenizer.end == 0 and found.tokenizer.vocab_size == own.get_vocab_size()
    start = found.tokenizer.decode(found.train.arrays["tokens"][0][:9])
    assert len(start) > 9 and POEM.startswith(start)


def test_a_set_of_tfds_is_read(tmp_path):
    features = pytest.importorskip("tensorflow_datasets").features
    rows = [{"body": f"document {i}"} for i in range(5)]
    columns = {"body": features.Text()}
    sets.prepare(tmp_path, {"train": rows}, name="Lines", columns=columns, supervised=None)
    name, documents = texts.read_documents("lines", field="body", data_dir=tmp_path)
    assert name == "lines" and documents == [row["body"] for row in rows]
    with pytest.raises(ValueError, match="lines has body, no text 'text'"):
        texts.read_documents("lines", data_dir=tmp_path)


def lossy(text):
    return [ord(c) for c in text if c != "T"]


@pytest.mark.parametrize(
    ("content", "options", "line"),
    [
        ("", {}, "holds no text"),
        ("a", {"tokenizer": "bytes"}, "is too short"),
        (POEM, {"length": 0}, "length is 0, expected 1 or more"),
        (POEM, {"validation_fraction": 1.0}, r"validation_fraction is 1.0, expected in \[0, 1\)"),
        (POEM, {"tokenizer": "missing.json"}, "there is no tokenizer missing.json"),
        (
            POEM,
            {"tokenizer": texts.Tokenizer("lossy", lossy, lambda x: "".join(map(chr, x)), 200, 0)},
            "the tokenizer lossy does not give the text back: from character 0 on, 'Tiger, tiger'",
        ),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, content, options, line):
    with pytest.raises((ValueError, FileNotFoundError), match=line) as caught:
        data.text.load(written(tmp_path, content=content), **options)
    assert "\n" not in str(caught.value)


def test_a_mark_of_the_order_of_bytes_is_no_text(tmp_path):
    (tmp_path / "x.txt").write_bytes(b"\xef\xbb\xbfHear me")
    assert texts.read_documents(tmp_path / "x.txt")[1] == ["Hear me"]


def test_files_that_are_no_text_are_one_line(tmp_path):
    (tmp_path / "x.txt").write_bytes(b"\xff\xfe\x00")
    written(tmp_path, "bad.jsonl", '{"text": "one"}\n{"body": 1}\n')
    written(tmp_path, "worse.jsonl", '{"text": \n')
    for name, line in {
        "x.txt": "no UTF-8 text .* at byte 0.; where its encoding is another: iconv -f latin1",
        "bad.jsonl": "line 2 of .* has no text in 'text' .body.",
        "worse.jsonl": "line 1 of .* is no JSON",
        "missing.txt": "there is no file",
        ".": "is a folder",
    }.items():
        with pytest.raises((ValueError, FileNotFoundError), match=line):
            data.text.load(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="neither a file nor a prepared set"):
        data.text.load("no_such_set", data_dir=tmp_path)
