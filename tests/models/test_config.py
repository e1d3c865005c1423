"""Reading config.json: what is read, what is refused, and in which words."""

import dataclasses
import json

import pytest

from jax_power_smc.models.config import (
    CheckpointError,
    TransformerConfig,
    UnsupportedModelError,
    config_from_hf,
    config_to_hf,
    read_config,
)
from tests.models import small

QWEN2 = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_act": "silu",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 21,
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 151936,
}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "vocab_size": 30,
}


def without(raw, name):
    return {key: value for key, value in raw.items() if key != name}


@pytest.mark.parametrize("name", small.CONFIGS)
def test_round_trip(name):
    config = dataclasses.replace(small.CONFIGS[name], max_positions=77)
    raw = json.loads(json.dumps(config_to_hf(config)))
    assert config_from_hf(raw) == config


def test_round_trip_keeps_every_field():
    # Each field differs from its default, so that a field that is not written shows.
    config = TransformerConfig(11, 12, 3, 4, 2, 6, 7, 8.0, 0.5, True, False, 9, "qwen2")
    defaults = {f.name: f.default for f in dataclasses.fields(config)}
    assert all(getattr(config, name) != value for name, value in defaults.items())
    assert config_from_hf(config_to_hf(config)) == config


def test_extra_entries_are_written():
    assert config_to_hf(small.CONFIGS["llama-grouped-tied"], eos_token_id=5)["eos_token_id"] == 5


def test_published_qwen2_config():
    assert config_from_hf(QWEN2) == TransformerConfig(
        vocab_size=151936,
        hidden_size=896,
        num_layers=24,
        num_heads=14,
        num_kv_heads=2,
        head_dim=64,
        mlp_size=4864,
        rope_theta=1e6,
        norm_eps=1e-6,
        qkv_bias=True,
        tied_embeddings=True,
        max_positions=32768,
        family="qwen2",
    )


def test_defaults_are_those_of_the_format():
    config = config_from_hf(LLAMA)
    assert (config.num_kv_heads, config.head_dim, config.max_positions) == (3, 4, 2048)
    assert (config.rope_theta, config.norm_eps) == (10_000.0, 1e-6)
    assert (config.tied_embeddings, config.qkv_bias, config.group_size) == (False, False, 1)


@pytest.mark.parametrize(
    ("extra", "theta"),
    [
        ({"rope_theta": 5e5}, 5e5),
        ({"rope_theta": 500}, 500.0),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 3e4}}, 3e4),
        ({"rope_parameters": {"rope_theta": 3e4}, "rope_theta": 5e5}, 3e4),
        ({"rope_parameters": {"rope_type": "default"}, "rope_theta": 5e5}, 5e5),
        ({"rope_scaling": None, "rope_theta": 5e5}, 5e5),
        ({"rope_scaling": {"type": "default"}, "rope_theta": 5e5}, 5e5),
    ],
)
def test_rope_theta_is_read_from_the_old_and_the_new_schema(extra, theta):
    config = config_from_hf(LLAMA | extra)
    assert config.rope_theta == theta
    assert isinstance(config.rope_theta, float)


@pytest.mark.parametrize(
    ("extra", "parts"),
    [
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8}}, ["rope_type 'llama3'", "default"]),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, ["rope_type 'linear'", "default"]),
        ({"rope_parameters": {"rope_type": "yarn"}}, ["rope_type 'yarn'", "default"]),
        # The two contradict each other: the scaling is not dropped in silence.
        (
            {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "dynamic"}},
            ["rope_type 'dynamic'"],
        ),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": 1e6}}},
            ["by layer type", "one set"],
        ),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor"]),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, ["partial_rotary_factor"]),
        (
            {"layer_types": ["full_attention", "sliding_attention"]},
            ["sliding_attention", "full_attention"],
        ),
        ({"use_sliding_window": True}, ["use_sliding_window true", "false"]),
        ({"attention_bias": True}, ["attention_bias true", "false"]),
        ({"mlp_bias": True}, ["mlp_bias true", "false"]),
        ({"hidden_act": "gelu"}, ["hidden_act 'gelu'", "'silu'"]),
        ({"quantization_config": {"quant_method": "gptq"}}, ["quantization_config", "plain"]),
        ({"auto_map": {"AutoModel": "code.Model"}}, ["auto_map", "never run"]),
        ({"mlp_bias": True, "hidden_act": "gelu"}, ["mlp_bias", "hidden_act"]),
        ({"model_type": "mistral"}, ["'mistral'", "LlamaForCausalLM, Qwen2ForCausalLM"]),
        ({"model_type": None}, ["model_type None", "LlamaForCausalLM, Qwen2ForCausalLM"]),
        ({"model_type": ["llama"]}, ["model_type ['llama']"]),
        (
            {"architectures": ["LlamaForSequenceClassification"]},
            ["LlamaForSequenceClassification", "LlamaForCausalLM, Qwen2ForCausalLM"],
        ),
        ({"architectures": ["Qwen2ForCausalLM"]}, ["['Qwen2ForCausalLM']"]),
        ({"architectures": "NotLlamaForCausalLM"}, ["NotLlamaForCausalLM"]),
    ],
)
def test_what_would_change_the_result_is_refused_by_name(extra, parts):
    with pytest.raises(UnsupportedModelError) as error:
        config_from_hf(LLAMA | extra, "there/config.json")
    small.assert_one_sentence(error, "there/config.json", *parts)


@pytest.mark.parametrize(
    ("extra", "part"),
    [({"layer_types": 5}, "layer_types 5"), ({"rope_theta": 10**400}, "rope_theta")],
)
def test_values_of_a_wrong_kind_are_refused(extra, part):
    with pytest.raises(CheckpointError) as error:
        config_from_hf(LLAMA | extra, "there/config.json")
    small.assert_one_sentence(error, "there/config.json", part)


def test_swish_is_silu_and_full_attention_is_plain():
    extra = {"hidden_act": "swish", "layer_types": ["full_attention"] * 2}
    assert config_from_hf(LLAMA | extra) == config_from_hf(LLAMA)


@pytest.mark.parametrize(
    "name",
    ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"],
)
def test_missing_sizes_are_named(name):
    for raw in (without(LLAMA, name), LLAMA | {name: None}):
        with pytest.raises(CheckpointError) as error:
            config_from_hf(raw, "there/config.json")
        small.assert_one_sentence(error, "there/config.json", f"lacks {name}")


def test_all_missing_sizes_are_named_at_once():
    with pytest.raises(CheckpointError) as error:
        config_from_hf({"model_type": "llama", "vocab_size": 3, "hidden_size": 4})
    small.assert_one_sentence(error, "num_hidden_layers, num_attention_heads, intermediate_size")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("vocab_size", 0),
        ("vocab_size", True),
        ("hidden_size", "12"),
        ("hidden_size", 12.0),
        ("num_attention_heads", 0),
        ("num_attention_heads", -3),
        ("num_hidden_layers", [2]),
        ("num_key_value_heads", 0),
        ("head_dim", 0),
        ("intermediate_size", -1),
        ("max_position_embeddings", "many"),
        ("rope_theta", 0),
        ("rope_theta", "big"),
        ("rope_theta", float("inf")),
        ("rms_norm_eps", -1e-6),
        ("rms_norm_eps", True),
    ],
)
def test_bad_numbers_are_named_as_in_the_file(name, value):
    with pytest.raises(CheckpointError) as error:
        config_from_hf(LLAMA | {name: value}, "there/config.json")
    small.assert_one_sentence(error, f"there/config.json has {name} {value!r}", "positive")


@pytest.mark.parametrize(
    ("extra", "parts"),
    [
        ({"num_key_value_heads": 2}, ["num_heads is 3", "multiple of num_kv_heads, which is 2"]),
        ({"head_dim": 5}, ["head_dim is 5", "even"]),
        (
            {"hidden_size": 16},
            ["hidden_size 16", "num_attention_heads 3", "no head_dim", "a multiple"],
        ),
        ({"rope_scaling": "linear"}, ["rope_scaling 'linear'", "object or null"]),
        ({"rope_parameters": [1]}, ["rope_parameters [1]", "object or null"]),
    ],
)
def test_sizes_that_do_not_fit_each_other(extra, parts):
    with pytest.raises(CheckpointError) as error:
        config_from_hf(LLAMA | extra, "there/config.json")
    small.assert_one_sentence(error, "there/config.json", *parts)


@pytest.mark.parametrize(
    ("extra", "parts"),
    [
        ({"num_layers": 0}, ["num_layers is 0", "positive integer"]),
        ({"vocab_size": True}, ["vocab_size is True", "positive integer"]),
        ({"norm_eps": 0.0}, ["norm_eps is 0.0", "positive number"]),
        ({"rope_theta": float("nan")}, ["rope_theta is nan", "positive number"]),
        ({"family": "gpt2"}, ["family is 'gpt2'", "llama, qwen2"]),
        # config.json could not say it: such a checkpoint could be written and not read.
        ({"qkv_bias": True}, ["qkv_bias is True", "'llama'", "False"]),
        ({"family": "qwen2"}, ["qkv_bias is False", "'qwen2'", "True"]),
    ],
)
def test_config_refuses_what_no_checkpoint_can_be(extra, parts):
    with pytest.raises(ValueError) as error:
        dataclasses.replace(small.CONFIGS["llama-grouped-tied"], **extra)
    small.assert_one_sentence(error, *parts)


def test_config_is_read_from_a_directory(tmp_path):
    config = small.CONFIGS["qwen2-grouped-untied"]
    (tmp_path / "config.json").write_text(json.dumps(config_to_hf(config)))
    assert read_config(tmp_path) == read_config(str(tmp_path)) == config


def test_directory_without_a_config(tmp_path):
    with pytest.raises(CheckpointError) as error:
        read_config(tmp_path)
    small.assert_one_sentence(error, tmp_path, "has no config.json", "model.safetensors")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"{not json", "not valid JSON"),
        (b"", "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b"[1, 2]", "holds a JSON list"),
        (b"null", "holds a JSON NoneType"),
    ],
)
def test_config_that_is_not_a_json_object(tmp_path, content, part):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        read_config(tmp_path)
    small.assert_one_sentence(error, tmp_path / "config.json", part)
