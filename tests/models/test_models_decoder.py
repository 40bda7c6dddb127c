"""Decoders: arithmetic against one by hand, caches, packed documents, files, what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from llamas import (
    FAMILIES,
    LLAMA,
    QWEN2,
    TOKENS,
    assert_near,
    by_hand,
    loaded,
    running,
    same,
    weights_of,
)

from kdjax import models
from kdjax.models import DecoderSpec, Details, LongContext, Rotary


def logits_of(tokens, family="llama"):
    return np.asarray(running(family)(*loaded(family)[1], tokens)[0].logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_state_dict_gives_the_logits_that_are_worked_out_by_hand(family):
    config = FAMILIES[family]
    assert_near(logits_of(TOKENS, family), by_hand(config, weights_of(config), TOKENS))
    _, variables = loaded(family)
    outputs, _ = running(family)(*variables, TOKENS)
    kernel = models.head_of(variables).kernel
    assert_near(outputs.features["norm"] @ kernel.T, outputs.logits)


def test_a_few_tokens_at_a_time_give_what_all_at_once_do():
    model, variables = loaded()
    decode, expected = model.decode, logits_of(TOKENS)
    read = jax.jit(decode.apply)
    first, cache = read(*variables, TOKENS[:, :7], decode.start(2, 12))
    found = [first]
    for i in (7, 8):
        logits, cache = read(*variables, TOKENS[:, i : i + 1], cache)
        found.append(logits)
    assert_near(np.concatenate(found, 1), expected)
    assert cache.read.tolist() == [9, 9] and cache.length == 12
    # Rows that have read different numbers of tokens: what is beyond is written over.
    cache = cache._replace(read=jnp.array([8, 3]))
    logits, _ = read(*variables, np.stack([TOKENS[0, 8:9], TOKENS[1, 3:4]]), cache)
    assert_near(logits[:, 0], expected[[0, 1], [8, 3]])
    with pytest.raises(ValueError, match="9 tokens in a row, more than its cache of 4"):
        decode.apply(*variables, TOKENS, decode.start(2, 4))


def test_packed_documents_do_not_see_each_other():
    document = np.array([[0] * 4 + [1] * 5, [3] * 9])
    packed = logits_of({"tokens": TOKENS, "document": document})
    whole = logits_of(TOKENS)
    assert_near(packed[0, :4], whole[0, :4])
    assert_near(packed[1], whole[1])
    # Positions only count as differences.
    alone = logits_of(np.pad(TOKENS[:1, 4:], ((0, 1), (0, 4))))
    assert_near(packed[0, 4:], alone[0, :5], 1e-4)
    assert np.abs(packed[0, 4:] - whole[0, 4:]).max() > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_saved_is_read_back_under_hugging_faces_names(family, tmp_path):
    model, variables = loaded(family)
    models.save_decoder(tmp_path, model, variables, config={"eos_token_id": 7})
    arrays = models.read_state_dict(tmp_path / "model.safetensors")
    wanted = weights_of(FAMILIES[family])
    assert arrays.keys() == wanted.keys()
    assert same({n: arrays[n] for n in wanted}, wanted)
    found = models.load_decoder(tmp_path)
    assert found.model.decode.spec == model.decode.spec
    assert found.config["eos_token_id"] == 7 and found.config["torch_dtype"] == "float32"
    assert same(found.variables, variables)
    half = models.load_decoder(tmp_path, param_dtype=jnp.bfloat16)
    models.save_decoder(tmp_path / "half", half.model, half.variables)
    assert models.load_decoder(tmp_path / "half").config["torch_dtype"] == "bfloat16"


OWN = {
    "a shared table": Details(embedding_width=12, frozen_embedding=True),
    "both norms and biases": Details(bias=True, query_key_norm=True, head_width=6),
}


@pytest.mark.parametrize("name", OWN)
def test_what_hugging_face_has_no_form_for_is_kept_under_our_names(name, tmp_path):
    stretched = LongContext(8.0, 1.0, 4.0, 16)
    details = OWN[name]._replace(rotary=Rotary(50.0, stretched), epsilon=1e-3)
    model = models.transformer(40, width=16, depth=1, num_heads=2, context=20, details=details)
    variables = jax.jit(model.init)(jax.random.key(0), TOKENS)
    models.save_decoder(tmp_path, model, variables)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "kdjax"
    found = models.load_decoder(tmp_path)
    assert found.model.decode.spec == model.decode.spec
    assert found.model.decode.spec == DecoderSpec(40, 16, 1, 2, 2, 64, 20, True, details)
    assert same(found.variables, variables)
    frozen = details.frozen_embedding
    assert set(found.variables.state) == ({"frozen"} if frozen else set())
    assert models.head_of(found.variables).kernel.shape == (40, 12 if frozen else 16)


def shards(folder):
    """Write a decoder as Hugging Face writes large ones."""
    from safetensors.numpy import save_file

    weights, index = weights_of(QWEN2), {}
    for i, names in enumerate((sorted(weights)[::2], sorted(weights)[1::2])):
        index |= dict.fromkeys(names, f"model-{i}.safetensors")
        save_file({name: weights[name] for name in names}, folder / f"model-{i}.safetensors")
    told = {"metadata": {}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(told))
    (folder / "config.json").write_text(json.dumps(QWEN2))


def test_shards_are_one_decoder(tmp_path):
    shards(tmp_path)
    assert same(models.load_decoder(tmp_path).variables, loaded("qwen2")[1])
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no file .*model-1\.safetensors"):
        models.load_decoder(tmp_path)


REFUSED = [
    ({"model_type": "mixtral"}, "model_type is 'mixtral', expected llama, qwen2, qwen3"),
    ({"hidden_act": "gelu"}, "hidden_act is 'gelu', which the decoder does not have, only 'silu'"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type is 'yarn'"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type is 'linear'"),
    ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
    ({"rope_parameters": {"full_attention": {"rope_type": "dynamic"}}}, "rope_type is 'dynamic'"),
    ({"attention_bias": True}, "attention_bias is True"),
    ({"mlp_bias": True}, "mlp_bias is True"),
    ({"num_local_experts": 8}, "num_local_experts is 8"),
    ({"quantization_config": {"bits": 4}}, "quantization_config is {'bits': 4}"),
    ({"architectures": ["LlamaModel"]}, r"architectures is \['LlamaModel'\]"),
    ({"use_sliding_window": True, "sliding_window": 8}, "sliding_window is 8 .* context of 32"),
    ({"layer_types": ["full_attention", "linear_attention"]}, "linear_attention"),
    ({"hidden_size": None}, "hidden_size is None, expected a number"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "low_freq_factor is None"),
    ({"num_key_value_heads": 3}, "num_key_heads is 3, expected a divisor"),
]


@pytest.mark.parametrize(("changes", "words"), REFUSED)
def test_a_config_of_another_network_is_refused_by_name(changes, words):
    with pytest.raises(ValueError, match=words) as error:
        models.from_llama({**LLAMA, **changes}, weights_of(LLAMA))
    assert "\n" not in str(error.value)


def test_what_would_not_matter_is_accepted():
    harmless = {
        "sliding_window": 32, "use_sliding_window": True, "attention_bias": True,
        "layer_types": ["full_attention"] * 2, "head_dim": None, "auto_map": {"x": "y"},
    }  # fmt: skip
    old = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2)}
    _, variables = models.from_llama({**QWEN2, **harmless}, {**weights_of(QWEN2), **old})
    assert same(variables, loaded("qwen2")[1])
    embedding = weights_of(LLAMA)["model.embed_tokens.weight"]
    _, variables = models.from_llama(LLAMA, {**weights_of(LLAMA), "lm_head.weight": embedding})
    assert same(variables, loaded()[1])


def test_arrays_that_do_not_fit_are_named():
    weights, name = weights_of(LLAMA), "model.layers.1.self_attn.k_proj.weight"
    renamed = {n.replace("k_proj", "k_project"): x for n, x in weights.items()}
    with pytest.raises(ValueError, match=rf"{name} \(8, 16\) is missing \(nearest: .*1.*k_project"):
        models.from_llama(LLAMA, {**renamed, name.replace("1", "0"): weights[name]})
    with pytest.raises(ValueError, match=r"from_llama: model.layers.1.*bias \(8,\) is unexpected"):
        models.from_llama(LLAMA, {**weights, name.replace("weight", "bias"): np.zeros(8)})
    with pytest.raises(ValueError, match=rf"{name} has shape \(4, 16\), expected \(8, 16\)"):
        models.from_llama(LLAMA, {**weights, name: np.zeros((4, 16))})
    with pytest.raises(ValueError, match=r"lm_head.weight \(40, 16\) is not model.embed_tokens"):
        models.from_llama(LLAMA, {**weights, "lm_head.weight": np.zeros((40, 16))})
    with pytest.raises(TypeError, match=r"config is a Spec, expected a dictionary: config\.to_d"):
        models.from_llama(type("Spec", (), {})(), weights)


def test_files_that_are_no_decoder_are_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        models.load_decoder(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"there is no config\.json"):
        models.load_decoder(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is no intact JSON"):
        models.load_decoder(tmp_path)
    with pytest.raises(ValueError, match=r"config\.json is no folder and no \.gguf file"):
        models.load_decoder(tmp_path / "config.json")
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors; .*pytorch_model\.bin"):
        models.load_decoder(tmp_path)
    model, variables = loaded()
    with pytest.raises(ValueError, match="model was not made by transformer"):
        models.save_decoder(tmp_path, models.mlp(3, widths=(4,)), variables)
    with pytest.raises(ValueError, match=r"save_decoder: .*q_proj\.bias \(16,\) is unex"):
        models.save_decoder(tmp_path, model, loaded("qwen2")[1])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"depth": 0}, "depth is 0, expected at least 1"),
        ({"num_key_heads": 3}, "num_key_heads is 3, expected a divisor of num_heads, 4"),
        ({"width": 18}, r"heads are 4 wide \(width 18, num_heads 4\)"),
        ({"width": 12}, "heads are 3 wide"),
        ({"details": Details(embedding_width=0)}, "details.embedding_width is 0"),
        ({"details": Details(rotary=Rotary(0.0))}, "details.rotary.theta is 0.0"),
        ({"details": Details(rotary=Rotary(9.0, LongContext(2.0, 4.0, 1.0, 8)))}, "low 4.0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        models.transformer(40, **{"width": 16, "depth": 1, "num_heads": 4, **changes})


def test_inputs_that_are_no_tokens_are_refused():
    model, variables = loaded()
    for inputs, words in (
        (TOKENS * 1.0, r"inputs are float64\[2, 9\], expected tokens"),
        (TOKENS[0], r"inputs are int64\[9\]"),
        (np.zeros((1, 33), int), "33 tokens in a row, more than its context of 32"),
        (np.full((1, 2), 40), "tokens are 40 to 40, expected ids of its vocabulary, 0 to 39"),
    ):
        with pytest.raises(ValueError, match=words):
            model.apply(*variables, inputs, train=False)
    with pytest.raises(ValueError, match="head_of: params have x, expected those of a transformer"):
        models.head_of(({"x": 1}, {}))
