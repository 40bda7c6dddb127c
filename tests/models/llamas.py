"""Small decoders of Llama's family: configs, weights, and the forward pass written by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import models

TOKENS = np.random.default_rng(0).integers(0, 40, (2, 9))
LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 40,
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 32, "rms_norm_eps": 1e-5,
    "rope_theta": 100.0, "tie_word_embeddings": True, "hidden_act": "silu",
    "rope_scaling": {
        "type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 24,
    },
}  # fmt: skip
QWEN2 = {**LLAMA, "model_type": "qwen2", "rope_scaling": None, "architectures": None}
QWEN2 |= {"tie_word_embeddings": False, "sliding_window": 8, "use_sliding_window": False}
QWEN3 = {**QWEN2, "model_type": "qwen3", "head_dim": 6, "rope_theta": None}
QWEN3 |= {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}
FAMILIES = {"llama": LLAMA, "qwen2": QWEN2, "qwen3": QWEN3}


def weights_of(config):
    """Return a state dict of random numbers, written down from the names and shapes alone."""
    rng = np.random.default_rng(1)
    width, inner, vocab = (config[f"{n}_size"] for n in ("hidden", "intermediate", "vocab"))
    heads, key_heads = config["num_attention_heads"], config["num_key_value_heads"]
    own = config.get("head_dim", width // heads)
    layer = {
        "input_layernorm.weight": (width,), "post_attention_layernorm.weight": (width,),
        "self_attn.q_proj.weight": (heads * own, width),
        "self_attn.k_proj.weight": (key_heads * own, width),
        "self_attn.v_proj.weight": (key_heads * own, width),
        "self_attn.o_proj.weight": (width, heads * own), "mlp.gate_proj.weight": (inner, width),
        "mlp.up_proj.weight": (inner, width), "mlp.down_proj.weight": (width, inner),
    }  # fmt: skip
    if config["model_type"] == "qwen2":
        rows = {"q": heads, "k": key_heads, "v": key_heads}
        layer |= {f"self_attn.{x}_proj.bias": (n * own,) for x, n in rows.items()}
    if config["model_type"] == "qwen3":
        layer |= {f"self_attn.{x}_norm.weight": (own,) for x in "qk"}
    shapes = {"model.embed_tokens.weight": (vocab, width), "model.norm.weight": (width,)}
    shapes |= {f"model.layers.{i}.{n}": shape for i in range(2) for n, shape in layer.items()}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, width)
    return {n: rng.normal(0, 0.4, shape).astype(np.float32) for n, shape in shapes.items()}


def by_hand(config, weights, tokens):
    """A forward pass in float64, one row, one head and one position at a time."""
    w = {name: np.float64(x) for name, x in weights.items()}
    own = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
    frequencies = [100.0 ** (-2 * i / own) for i in range(own // 2)]
    if config["rope_scaling"]:
        frequencies = [stretched(f, config["rope_scaling"]) for f in frequencies]

    def norm(x, name):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * w[name]

    def project(x, name):
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)

    def head(x, at, i, turns=True):
        """Return queries or keys of a head at all positions, each pair turned by its angle."""
        x = x[:, i * own : (i + 1) * own]
        if not turns:
            return x
        x = norm(x, f"{at}_norm.weight") if f"{at}_norm.weight" in w else x
        turned = np.zeros_like(x)
        for place in range(len(x)):
            for j, frequency in enumerate(frequencies):
                z = complex(x[place, j], x[place, j + own // 2]) * np.exp(1j * place * frequency)
                turned[place, j], turned[place, j + own // 2] = z.real, z.imag
        return turned

    def attention(x, at):
        q, k, v = (project(x, f"{at}.{n}_proj") for n in "qkv")
        group = config["num_attention_heads"] // config["num_key_value_heads"]
        found = []
        for i in range(config["num_attention_heads"]):
            scores = head(q, f"{at}.q", i) @ head(k, f"{at}.k", i // group).T / np.sqrt(own)
            scores = np.exp(np.where(np.tri(len(x)) > 0, scores, -np.inf))
            shares = scores / scores.sum(-1, keepdims=True)
            found.append(shares @ head(v, "", i // group, turns=False))
        return project(np.concatenate(found, -1), f"{at}.o_proj")

    rows = []
    for row in tokens:
        x = w["model.embed_tokens.weight"][row]
        for i in range(config["num_hidden_layers"]):
            at = f"model.layers.{i}"
            x = x + attention(norm(x, f"{at}.input_layernorm.weight"), f"{at}.self_attn")
            y = norm(x, f"{at}.post_attention_layernorm.weight")
            gate = project(y, f"{at}.mlp.gate_proj")
            y = gate / (1 + np.exp(-gate)) * project(y, f"{at}.mlp.up_proj")
            x = x + project(y, f"{at}.mlp.down_proj")
        last = w.get("lm_head.weight", w["model.embed_tokens.weight"])
        rows.append(norm(x, "model.norm.weight") @ last.T)
    return np.stack(rows)


def stretched(frequency, scaling):
    """Return a frequency as Llama 3.1 has it, case by case."""
    length, factor = scaling["original_max_position_embeddings"], scaling["factor"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    wavelength = 2 * np.pi / frequency
    if wavelength < length / high:
        return frequency
    if wavelength > length / low:
        return frequency / factor
    smooth = (length / wavelength - low) / (high - low)
    return (1 - smooth) * frequency / factor + smooth * frequency


@functools.cache
def loaded(family="llama"):
    return models.from_llama(FAMILIES[family], weights_of(FAMILIES[family]), features=("norm",))


@functools.cache
def running(family="llama"):
    return jax.jit(functools.partial(loaded(family)[0].apply, train=False))


def assert_near(got, expected, tolerance=1e-5):
    assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max()


def same(first, second):
    return jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), first, second))
