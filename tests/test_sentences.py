"""Sentences: the teacher's forward pass, what is read, and what is measured."""

import json
import math
import zipfile

import jax
import numpy as np
import pytest

from experiments import sentences

RNG = np.random.default_rng(0)
LAYERS, HEADS, WIDTH = 2, 2, 8
TOKENS = np.array([[1, 5, 7, 2, 0, 0], [1, 6, 3, 4, 9, 2]], np.int32)


def weights():
    def two(name, rows, columns, scale=0.5):
        return {f"{name}.weight": scale * RNG.normal(size=(rows, columns)),
                f"{name}.bias": RNG.normal(size=rows)}  # fmt: skip

    def one(name):
        return {f"{name}.weight": RNG.normal(size=WIDTH), f"{name}.bias": RNG.normal(size=WIDTH)}

    found = one("embeddings.LayerNorm")
    for name, rows in (("word", 10), ("position", 12), ("token_type", 2)):
        found[f"embeddings.{name}_embeddings.weight"] = RNG.normal(size=(rows, WIDTH))
    for i in range(LAYERS):
        at = f"encoder.layer.{i}"
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            found |= two(f"{at}.attention.{name}", WIDTH, WIDTH)
        found |= one(f"{at}.attention.output.LayerNorm") | one(f"{at}.output.LayerNorm")
        found |= two(f"{at}.intermediate.dense", 12, WIDTH) | two(f"{at}.output.dense", WIDTH, 12)
    return {name: np.float32(x) for name, x in found.items()}


ERF = np.vectorize(math.erf)


def reference(own, tokens):
    """Embed one sentence without padding, head by head, in float64."""
    own = {name: np.float64(x) for name, x in own.items()}

    def normed(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        return x * own[f"{name}.weight"] + own[f"{name}.bias"]

    def dense(x, name):
        return x @ own[f"{name}.weight"].T + own[f"{name}.bias"]

    x = own["embeddings.word_embeddings.weight"][tokens]
    x = x + own["embeddings.position_embeddings.weight"][: len(tokens)]
    x = normed(x + own["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    size = WIDTH // HEADS
    for i in range(LAYERS):
        at = f"encoder.layer.{i}"
        q, k, v = (dense(x, f"{at}.attention.self.{n}") for n in ("query", "key", "value"))
        heads = []
        for h in range(HEADS):
            part = slice(h * size, (h + 1) * size)
            scores = np.exp(q[:, part] @ k[:, part].T / np.sqrt(size))
            heads.append(scores / scores.sum(1, keepdims=True) @ v[:, part])
        x = x + dense(np.concatenate(heads, 1), f"{at}.attention.output.dense")
        x = normed(x, f"{at}.attention.output.LayerNorm")
        y = dense(x, f"{at}.intermediate.dense")
        y = dense(y * (1 + ERF(y / np.sqrt(2))) / 2, f"{at}.output.dense")
        x = normed(x + y, f"{at}.output.LayerNorm")
    mean = x.mean(0)
    return mean / np.linalg.norm(mean)


def test_the_teacher_is_a_bert_whose_vectors_are_averaged():
    own = weights()
    found = sentences.encoded(own, TOKENS, width_of_head=WIDTH // HEADS)
    for row, tokens in zip(found, TOKENS, strict=True):
        np.testing.assert_allclose(row, reference(own, tokens[tokens != 0]), atol=1e-5)


@pytest.mark.slow
def test_the_teacher_is_that_of_transformers():
    transformers, torch = (pytest.importorskip(name) for name in ("transformers", "torch"))
    config = transformers.BertConfig(
        vocab_size=10,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=12,
        max_position_embeddings=12,
        layer_norm_eps=1e-12,
    )
    model = transformers.BertModel(config).eval()
    own = {name: x.numpy() for name, x in model.state_dict().items()}
    found = sentences.encoded(own, TOKENS, width_of_head=WIDTH // HEADS)
    counts = torch.tensor(TOKENS != 0)
    with torch.no_grad():
        inputs = {"input_ids": torch.tensor(TOKENS).long(), "attention_mask": counts.long()}
        mean = (model(**inputs).last_hidden_state * counts[..., None]).sum(1)
    expected = mean / mean.norm(dim=-1, keepdim=True)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_sentences_are_those_of_docstrings(tmp_path):
    text = '"""One sentence of a few words. no capital, so it is left out. Short."""\n'
    (tmp_path / "a.py").write_text(
        text + "def f():\n    '''Another one that is\n    broken twice.'''"
    )
    (tmp_path / "b.py").write_text("def :")
    expected = ["Another one that is broken twice.", "One sentence of a few words."]
    assert sentences.sentences(tmp_path) == expected


def test_tokens_of_no_training_sentence_say_nothing():
    found, count = sentences.renumbered(np.array([[7, 3, 0], [9, 7, 0]]), 1)
    assert (found.tolist(), count) == ([[2, 1, 0], [0, 2, 0]], 3)
    vectors = np.eye(10)
    means = sentences.token_means(vectors, np.array([[1, 5, 7, 2, 0], [1, 6, 2, 0, 0]]))
    np.testing.assert_array_equal(means, [(vectors[5] + vectors[7]) / 2, vectors[6]])


def test_what_is_measured_is_one_for_the_teacher_itself():
    x = RNG.normal(size=(40, 5))
    assert sentences.measured(3 * x, x) == {"Spearman": pytest.approx(1), "recall at 1": 1.0,
                                            "recall at 10": 1.0}  # fmt: skip
    far = sentences.measured(RNG.normal(size=(40, 5)), x)
    assert abs(far["Spearman"]) < 0.2 and far["recall at 10"] < 0.6


def test_what_has_an_interval_is_the_recall_of_the_table():
    own, x = RNG.normal(size=(2, 40, 5))
    hits = sentences.neighbors(own, x)
    assert set(hits) == {0, 100} and hits.shape == (40,)
    assert hits.mean() == pytest.approx(100 * sentences.measured(own, x)["recall at 10"])


class Tokens:
    """A tokenizer of letters."""

    def enable_truncation(self, length):
        self.length = length

    def enable_padding(self, length):
        assert length == self.length

    def encode_batch(self, texts):
        class Found:
            def __init__(self, text):
                own = [1 + ord(letter) % 9 for letter in text][: sentences.LENGTH]
                self.ids = own + [0] * (sentences.LENGTH - len(own))

        return map(Found, texts)


@pytest.mark.slow
def test_a_small_teacher_is_distilled(tmp_path, monkeypatch, capsys):
    own = {**weights(), "embeddings.position_embeddings.weight": RNG.normal(size=(40, WIDTH))}
    monkeypatch.setattr(sentences, "read_model", lambda path: (own, Tokens()))
    monkeypatch.setattr(sentences, "encoded", lambda w, t: 3 * jax.nn.one_hot(t[:, 0] % 8, 8))
    monkeypatch.setattr(sentences, "sentences", lambda folder: [f"{i} words" for i in range(300)])
    flags = ["--num-sentences", "200", "--num-test", "50", "--num-steps", "3", "--num-seeds", "1"]
    sentences.main([*flags, "--workdir", str(tmp_path / "w")])
    found = json.loads((tmp_path / "w" / "summary.json").read_text())
    assert len(found) == 3 and "Spearman" in capsys.readouterr().out
    page = (tmp_path / "w" / "report.html").read_text()
    assert page.count("by paired bootstrap over the 50 sentences alone") == 2
    assert all(f"<dt>{name}</dt>" in page for name in ("Command", "Commit", "Device", "Versions"))
    assert "Against token vectors, averaged: " in page and "points of recall at 10" in page


def test_a_teacher_that_is_not_there_is_one_line(tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
        archive.writestr("nothing", "")
    for path in (tmp_path / "model.zip", tmp_path / "none"):
        with pytest.raises(SystemExit, match="2"):
            sentences.main(["--model", str(path), "--workdir", str(tmp_path / "w")])
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and str(path) in line
