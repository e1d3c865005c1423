"""Llama and Qwen2 written again in numpy float64, token by token and head by head.

It reads the tensors of a checkpoint by their names and in the orientation of the file, and knows
nothing of the package but the numbers of a config.
"""

import numpy as np


def random_tensors(config, seed=0):
    """A checkpoint's tensors, float32; norms and biases away from the values they start at."""
    rng = np.random.default_rng(seed)
    d, f, v = config.hidden_size, config.mlp_size, config.vocab_size
    q, k = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim

    def linear(out, inputs):
        return (rng.normal(size=(out, inputs)) / np.sqrt(inputs)).astype(np.float32)

    def vector(size, center):
        return (center + 0.3 * rng.normal(size=size)).astype(np.float32)

    tensors = {"model.embed_tokens.weight": linear(v, d), "model.norm.weight": vector(d, 1.0)}
    if not config.tied_embeddings:
        tensors["lm_head.weight"] = linear(v, d)
    for i in range(config.num_layers):
        layer = f"model.layers.{i}"
        tensors |= {
            f"{layer}.input_layernorm.weight": vector(d, 1.0),
            f"{layer}.post_attention_layernorm.weight": vector(d, 1.0),
            f"{layer}.self_attn.q_proj.weight": linear(q, d),
            f"{layer}.self_attn.k_proj.weight": linear(k, d),
            f"{layer}.self_attn.v_proj.weight": linear(k, d),
            f"{layer}.self_attn.o_proj.weight": linear(d, q),
            f"{layer}.mlp.gate_proj.weight": linear(f, d),
            f"{layer}.mlp.up_proj.weight": linear(f, d),
            f"{layer}.mlp.down_proj.weight": linear(d, f),
        }
        if config.family == "qwen2":
            tensors |= {
                f"{layer}.self_attn.q_proj.bias": vector(q, 0.0),
                f"{layer}.self_attn.k_proj.bias": vector(k, 0.0),
                f"{layer}.self_attn.v_proj.bias": vector(k, 0.0),
            }
    return tensors


def logits(config, tensors, tokens):
    """Logits [S, V] of one sequence of token ids."""
    tensors = {name: array.astype(np.float64) for name, array in tensors.items()}
    embedding = tensors["model.embed_tokens.weight"]
    stream = embedding[np.asarray(tokens)]
    for i in range(config.num_layers):
        layer = f"model.layers.{i}"
        x = _norm(stream, tensors[f"{layer}.input_layernorm.weight"], config.norm_eps)
        q, k, v = (_linear(tensors, f"{layer}.self_attn.{name}_proj", x) for name in "qkv")
        attended = attention(
            rotate(_heads(q, config), config.rope_theta),
            rotate(_heads(k, config), config.rope_theta),
            _heads(v, config),
        )
        stream = stream + _linear(tensors, f"{layer}.self_attn.o_proj", attended)
        x = _norm(stream, tensors[f"{layer}.post_attention_layernorm.weight"], config.norm_eps)
        gate = _linear(tensors, f"{layer}.mlp.gate_proj", x)
        up = _linear(tensors, f"{layer}.mlp.up_proj", x)
        gated = gate / (1 + np.exp(-gate)) * up
        stream = stream + _linear(tensors, f"{layer}.mlp.down_proj", gated)
    head = tensors.get("lm_head.weight", embedding)
    return _norm(stream, tensors["model.norm.weight"], config.norm_eps) @ head.T


def rotate(heads, theta):
    """Rotary positions 0, 1, ... of [S, heads, H]: the pair (j, j + H/2) as a complex number."""
    half = heads.shape[-1] // 2
    out = np.empty(heads.shape)
    for position in range(len(heads)):
        for j in range(half):
            turned = heads[position, :, j] + 1j * heads[position, :, j + half]
            turned = turned * np.exp(1j * position * theta ** (-2 * j / heads.shape[-1]))
            out[position, :, j], out[position, :, j + half] = turned.real, turned.imag
    return out


def attention(q, k, v):
    """Causal attention: q [S, K*G, H], k and v [S, K, H] -> [S, K*G*H]; head h reads h // G."""
    length, num_heads, dim = q.shape
    group = num_heads // k.shape[1]
    out = np.empty((length, num_heads, dim))
    for position in range(length):
        for head in range(num_heads):
            keys, values = k[: position + 1, head // group], v[: position + 1, head // group]
            scores = keys @ q[position, head] / np.sqrt(dim)
            weights = np.exp(scores - scores.max())
            out[position, head] = weights @ values / weights.sum()
    return out.reshape(length, -1)


def _linear(tensors, name, x):
    return x @ tensors[f"{name}.weight"].T + tensors.get(f"{name}.bias", 0.0)


def _norm(x, scale, eps):
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * scale


def _heads(x, config):
    return x.reshape(len(x), -1, config.head_dim)
