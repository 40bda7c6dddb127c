"""Decoders of others: those of `transformers` in PyTorch, and files of llama.cpp."""

import functools
import json

import jax
import numpy as np
import pytest
from llamas import (
    LLAMA,
    QWEN2,
    QWEN3,
    TOKENS,
    assert_near,
    loaded,
    same,
    stretched,
    weights_of,
)

from kdjax import models

SIZES = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
LONG = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16, "rope_theta": 500.0,
}  # fmt: skip
NETWORKS = {
    "llama": ("LlamaConfig", {}),
    "llama, long context, tied": (
        "LlamaConfig", {"rope_parameters": LONG, "tie_word_embeddings": True},
    ),
    "qwen2": ("Qwen2Config", {"rms_norm_eps": 1e-4}),
    "qwen3, tied": ("Qwen3Config", {"head_dim": 6, "tie_word_embeddings": True}),
}  # fmt: skip


@functools.cache
def theirs(name):
    """Return a network of `transformers` with weights that all matter, and its logits."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: the extra `torch`")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    kind, changes = NETWORKS[name]
    config = getattr(transformers, kind)(**SIZES, **changes)
    network = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight.normal_(0, 0.3)
        network.tie_weights()
        return network, network(torch.tensor(TOKENS)).logits.numpy()


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_transformers_answer_alike_and_read_what_we_write(name, tmp_path):
    network, expected = theirs(name)
    model, variables = models.from_llama(network.config.to_dict(), network.state_dict())
    run = jax.jit(functools.partial(model.apply, train=False))
    assert_near(run(*variables, TOKENS)[0].logits, expected)
    network.save_pretrained(tmp_path / "theirs", max_shard_size="4KB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists()
    found = models.load_decoder(tmp_path / "theirs")
    assert found.model.decode.spec == model.decode.spec
    assert same(found.variables, variables)
    models.save_decoder(tmp_path / "ours", model, variables)
    torch = pytest.importorskip("torch")
    back = type(network).from_pretrained(tmp_path / "ours")
    with torch.no_grad():
        assert_near(back(torch.tensor(TOKENS)).logits.numpy(), expected, 1e-6)


def interleaved(x, head_width):
    """Order rows as llama.cpp has them: both numbers of a pair next to each other."""
    rows = []
    for head in range(len(x) // head_width):
        for i in range(head_width // 2):
            rows += [x[head * head_width + i], x[head * head_width + i + head_width // 2]]
    return np.stack(rows)


THEIR_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "model.layers.": "blk.", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.o_proj": "attn_output", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip


def write_gguf(path, config, weights, add=lambda writer: None):
    """Write a decoder as llama.cpp converts it."""
    gguf = pytest.importorskip("gguf", reason="gguf is not installed: the extra `text`")
    family, heads = config["model_type"], config["num_attention_heads"]
    head_width = config.get("head_dim", config["hidden_size"] // heads)
    writer = gguf.GGUFWriter(path, family)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(100.0)
    writer.add_rope_dimension_count(head_width)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    if "head_dim" in config:
        writer.add_key_length(head_width)
    for name, x in weights.items():
        for ours, theirs_ in THEIR_NAMES.items():
            name = name.replace(ours, theirs_)
        turns = family == "llama" and ("attn_q." in name or "attn_k." in name)
        writer.add_tensor(name, interleaved(x, head_width) if turns else x)
    add(writer)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file):
        step()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_file_is_the_decoder_that_it_was_made_from(tmp_path):
    scaling = {**LLAMA["rope_scaling"], "original_max_position_embeddings": 8192}
    frequencies = 100.0 ** (-np.arange(0, 4, 2) / 4)
    factors = [f / stretched(f, scaling) for f in frequencies]

    def stretch(writer):
        writer.add_tensor("rope_freqs.weight", np.float32(factors))

    path = write_gguf(tmp_path / "llama.gguf", LLAMA, weights_of(LLAMA), stretch)
    found = models.load_decoder(path)
    assert same(found.variables, loaded()[1])
    spec = loaded()[0].decode.spec
    assert found.model.decode.spec._replace(details=spec.details) == spec
    assert found.model.decode.spec.details.epsilon == 1e-5
    assert [found.config[f"{name}_token_id"] for name in ("bos", "eos", "pad")] == [1, 2, None]
    for family, config in (("qwen2", QWEN2), ("qwen3", QWEN3)):
        path = write_gguf(tmp_path / "qwen.gguf", config, weights_of(config))
        found, (model, variables) = models.load_decoder(path), loaded(family)
        assert found.model.decode.spec == model.decode.spec
        assert same(found.variables, variables)


def test_the_factors_of_a_gguf_file_are_those_of_llama_3(tmp_path):
    config = {**LLAMA, "num_attention_heads": 1, "num_key_value_heads": 1}
    long = {**LLAMA["rope_scaling"], "factor": 32.0, "original_max_position_embeddings": 8192}
    # Wavelengths from 6 to beyond 8192, so that all of the three cases are there.
    frequencies = 1e4 ** (-np.arange(0, 16, 2) / 16)
    factors = np.float32([f / stretched(f, long) for f in frequencies])
    assert len(set(factors.round(3))) > 2

    def write(name, numbers):
        def add(writer):
            writer.add_rope_freq_base(1e4)
            writer.add_tensor("rope_freqs.weight", numbers)

        return write_gguf(tmp_path / name, config, weights_of(config), add)

    found = models.load_decoder(write("a.gguf", factors))
    rotary = found.model.decode.spec.details.rotary
    assert_near(rotary.frequencies(16), frequencies / factors, 1e-6)
    assert rotary.stretched == models.LongContext(32.0, 1.0, 4.0, 8192)
    with pytest.raises(ValueError, match=r"rope_freqs\.weight holds other factors, up to 33"):
        models.load_decoder(write("b.gguf", factors + 1))


def test_quantized_weights_become_floating_ones(tmp_path):
    gguf = pytest.importorskip("gguf", reason="gguf is not installed: the extra `text`")
    config = {**LLAMA, "hidden_size": 32, "intermediate_size": 32}
    weights = weights_of(config)
    name = "model.layers.0.mlp.down_proj.weight"
    kept = {n: x for n, x in weights.items() if n != name}
    kind = gguf.GGMLQuantizationType.Q8_0

    def add(writer):
        packed = gguf.quantize(weights[name], kind)
        writer.add_tensor("blk.0.ffn_down.weight", packed, raw_dtype=kind)

    path = write_gguf(tmp_path / "a.gguf", config, kept, add)
    found = models.load_decoder(path).variables.params["block_0"]["mlp"]["down"]["kernel"]
    error = np.abs(found.T - weights[name]).max()
    assert 0 < error < np.abs(weights[name]).max() / 200


def test_gguf_files_that_cannot_be_right_are_refused(tmp_path):
    path, weights = tmp_path / "a.gguf", weights_of(LLAMA)
    whole = write_gguf(path, {**LLAMA, "model_type": "gemma3"}, weights)
    with pytest.raises(ValueError, match=r"a\.gguf: model_type is 'gemma3', expected llama, qwen2"):
        models.load_decoder(whole)

    def yarn(writer):
        writer.add_string("llama.rope.scaling.type", "yarn")

    with pytest.raises(ValueError, match="rope_type is 'yarn'"):
        models.load_decoder(write_gguf(path, LLAMA, weights, yarn))
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], content[:40], b"", b"GGUX" + content[4:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a\.gguf is no intact \.gguf file"):
            models.load_decoder(path)


def test_a_config_that_an_older_version_wrote_reads_as_the_newer_one_does():
    old = json.loads(json.dumps(LLAMA))
    scaling = old.pop("rope_scaling")
    kind, theta = scaling.pop("type"), old.pop("rope_theta")
    new = {**old, "rope_parameters": {**scaling, "rope_type": kind, "rope_theta": theta}}
    model, _ = models.from_llama(new, weights_of(LLAMA))
    assert model.decode.spec == loaded()[0].decode.spec
