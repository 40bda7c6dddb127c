"""The tokenizer of a GGUF file: ids of the tokenizer that it was made from, what it loses."""

import pytest

from kdjax import data
from kdjax.data._gguf import tokenizer_of_gguf

gguf = pytest.importorskip("gguf", reason="gguf is not installed: the extra `text`")
tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed: extra `text`")

TEXT = "The theatre there: 1234 other things, don't they? naïve — 東\n\n  then\tthe end"
ALPHABET = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())


def original(without=""):
    """Train byte pairs on a little text; `without` are symbols that get no token."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    pre = tokenizers.pre_tokenizers
    made.pre_tokenizer = pre.Sequence(
        [pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False)]
    )
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=[x for x in ALPHABET if x not in without],
        show_progress=False,
    )
    made.train_from_iterator([TEXT.replace("—", "")] * 4, trainer)
    return made


def write(path, made, pre="smollm", model="gpt2"):
    told = __import__("json").loads(made.to_str())["model"]
    tokens = sorted(told["vocab"], key=told["vocab"].get)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token.startswith("<|") else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in told["merges"]])
    for name, i in (("bos", 1), ("eos", 2), ("pad", 2), ("unk", 0)):
        getattr(writer, f"add_{name}_token_id")(i)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file):
        step()
    writer.close()
    return path


def test_ids_are_those_of_the_tokenizer_that_it_was_made_from(tmp_path):
    made = original()
    found, special, lost = tokenizer_of_gguf(write(tmp_path / "a.gguf", made))
    assert found.encode(TEXT).ids == made.encode(TEXT).ids
    assert found.decode(found.encode(TEXT).ids) == TEXT
    assert found.get_vocab() == made.get_vocab()
    marked = "<|im_start|>the<|im_end|>"
    assert found.encode(marked).ids == [1, *found.encode("the").ids, 2]
    assert special == {"bos": 1, "eos": 2, "pad": 2, "unk": 0} and not lost
    found.save(str(tmp_path / "tokenizer.json"))
    again = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert again.encode(TEXT).ids == found.encode(TEXT).ids


def test_a_text_is_cut_into_rows_by_the_tokenizer_of_a_model(tmp_path):
    path, made = write(tmp_path / "a.gguf", original()), original()
    text = tmp_path / "text.txt"
    text.write_text("the theatre there\n" * 20)
    found = data.text.load(text, tokenizer=path, length=8)
    assert found.tokenizer.end == 0 and found.tokenizer.vocab_size == made.get_vocab_size()
    ids = made.encode(text.read_text()).ids
    assert found.train.arrays["tokens"].ravel()[:40].tolist() == ids[:40]


def test_bytes_without_a_token_are_told(tmp_path):
    # What the bytes of an em dash are written as, and a control character.
    symbols = {0xE2: "â", 0x80: "Ģ", 0x07: "ć"}
    made = original("".join(symbols.values()))
    found, _, lost = tokenizer_of_gguf(write(tmp_path / "a.gguf", made))
    assert lost == set(symbols)
    assert "—" not in found.decode(found.encode(TEXT).ids)


@pytest.mark.parametrize(
    ("pre", "count"), [("smollm", 4), ("qwen2", 4), ("llama-bpe", 2), ("gpt-2", 1)]
)
def test_numbers_are_cut_as_each_family_does(tmp_path, pre, count):
    found, *_ = tokenizer_of_gguf(write(tmp_path / "a.gguf", original(), pre))
    pieces = [piece for piece, _ in found.pre_tokenizer.pre_tokenize_str("1234")]
    assert len(pieces) == count and "".join(pieces) == "1234"
    assert found.decode(found.encode(TEXT).ids) == TEXT


def test_other_tokenizers_are_refused(tmp_path):
    path = tmp_path / "a.gguf"
    for changes, words in (
        ({"model": "llama"}, "tokenizer.ggml.model is 'llama'"),
        ({"pre": "tekken"}, "tokenizer.ggml.pre 'tekken', expected 'gpt2' and 'gpt-2', 'smollm'"),
    ):
        with pytest.raises(ValueError, match=words):
            tokenizer_of_gguf(write(path, original(), **changes))
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        tokenizer_of_gguf(tmp_path / "b.gguf")
