"""Reading config.json: what is read, what is refused, and in which words."""

import dataclasses
import json
import time

import pytest

from jax_power_smc.models.checkpoints.hf_config import config_from_hf, config_to_hf, read_config
from jax_power_smc.models.transformer.config import (
    CheckpointError,
    TransformerConfig,
    UnsupportedModelError,
)
from jax_power_smc.models.transformer.rope import RopeScaling
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


LONGROPE = RopeScaling(
    "longrope",
    factor=8.0,
    original_positions=9,
    short_factors=(1.0, 1.5, 2.0),
    long_factors=(3.0, 4.0, 5.0),
    attention_factor=1.25,
)
LLAMA3 = RopeScaling("llama3", 8.0, original_positions=64, low_factor=1.5, high_factor=3.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"family": "qwen2", "windows": (0, 5, 5)},
        {"family": "qwen3"},
        {"family": "mistral", "windows": (7, 7, 7)},
        {"family": "mistral"},
        {"family": "llama", "rope_scaling": LLAMA3},
        {"family": "llama", "rope_scaling": RopeScaling("linear", 2.5)},
        {"family": "phi3", "windows": (5, 5, 5), "rope_scaling": LONGROPE},
        {
            "family": "gemma2",
            "windows": (5, 0, 5),
            "query_scalar": 9.0,
            "attention_softcap": 50.0,
            "final_softcap": 30.0,
        },
        {
            "family": "gemma3_text",
            "windows": (5, 5, 0),
            "query_scalar": 9.0,
            "rope_scaling": RopeScaling("linear", 8.0),
            "local_rope_theta": 6.0,
        },
        {"family": "olmo2"},
        {
            "family": "granite",
            "query_multiplier": 0.25,
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.5,
            "logits_divisor": 8.0,
        },
    ],
    ids=lambda changes: changes["family"],
)
def test_round_trip_keeps_every_field(changes):
    # Each field differs from its default, so that a field that is not written shows.
    config = TransformerConfig(11, 12, 3, 4, 2, 6, 7, 8.0, 0.5, False, 9, **changes)
    raw = json.loads(json.dumps(config_to_hf(config)))
    assert config_from_hf(raw) == config


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
        tied_embeddings=True,
        max_positions=32768,
        family="qwen2",
    )


def test_defaults_are_those_of_the_format():
    config = config_from_hf(LLAMA)
    assert (config.num_kv_heads, config.head_dim, config.max_positions) == (3, 4, 2048)
    assert (config.rope_theta, config.norm_eps) == (10_000.0, 1e-6)
    assert (config.tied_embeddings, config.group_size, config.windows) == (False, 1, ())


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
        ({"use_sliding_window": True}, ["use_sliding_window true", "not in this family"]),
        ({"attn_logit_softcapping": 50.0}, ["attn_logit_softcapping", "not in this family"]),
        ({"use_bidirectional_attention": True}, ["use_bidirectional_attention true"]),
        ({"clip_qkv": 8.0}, ["clip_qkv"]),
        ({"num_local_experts": 8}, ["experts", "dense"]),
        ({"attention_bias": True}, ["attention_bias true", "false"]),
        ({"mlp_bias": True}, ["mlp_bias true", "false"]),
        ({"hidden_act": "gelu"}, ["hidden_act 'gelu'", "'silu'"]),
        ({"quantization_config": {"quant_method": "gptq"}}, ["quantization_config", "plain"]),
        ({"mlp_bias": True, "hidden_act": "gelu"}, ["mlp_bias", "hidden_act"]),
        ({"model_type": "gpt2"}, ["'gpt2'", "LlamaForCausalLM, MistralForCausalLM"]),
        (
            {"model_type": "own", "auto_map": {"AutoModel": "code.Model"}},
            ["'own'", "code of its own, which is never run", "LlamaForCausalLM"],
        ),
        ({"model_type": None}, ["model_type None", "LlamaForCausalLM, MistralForCausalLM"]),
        ({"model_type": ["llama"]}, ["model_type ['llama']"]),
        (
            {"architectures": ["LlamaForSequenceClassification"]},
            ["LlamaForSequenceClassification", "LlamaForCausalLM, MistralForCausalLM"],
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


ABSURD = {
    "vocab_size": 2 * 10**9,
    "hidden_size": 10**9,
    "intermediate_size": 10**9,
    "num_hidden_layers": 10**6,
    "num_attention_heads": 10**6,
    "num_key_value_heads": 10**6,
    "head_dim": 10**6,
    "max_position_embeddings": 10**18,
    "rms_norm_eps": 1e300,
    "rope_theta": 1e-300,
}
ABSURD_OF_GEMMA = {
    "query_pre_attn_scalar": 1e-300,
    "attn_logit_softcapping": 1e300,
    "final_logit_softcapping": 1e-300,
    "sliding_window": 10**18,
    "sliding_window_pattern": 10**18,
}
ABSURD_OF_GRANITE = {
    "attention_multiplier": 1e300,
    "embedding_multiplier": 1e-300,
    "residual_multiplier": 1e300,
    "logits_scaling": 1e-300,
}


@pytest.mark.parametrize(
    ("raw", "name", "value"),
    [
        *((LLAMA, *pair) for pair in ABSURD.items()),
        (LLAMA, "rms_norm_eps", 1e-300),
        (LLAMA, "rope_theta", 1e300),
        (LLAMA, "num_hidden_layers", 10**15),
        *((LLAMA | {"model_type": "gemma3_text"}, *pair) for pair in ABSURD_OF_GEMMA.items()),
        *((LLAMA | {"model_type": "granite"}, *pair) for pair in ABSURD_OF_GRANITE.items()),
        (LLAMA | {"model_type": "mistral"}, "sliding_window", 10**18),
        (
            LLAMA | {"model_type": "qwen2", "use_sliding_window": True},
            "max_window_layers",
            10**18,
        ),
    ],
)
def test_absurd_numbers_are_refused_at_once(raw, name, value):
    start = time.process_time()
    with pytest.raises(CheckpointError) as error:
        config_from_hf(raw | {name: value}, "there/config.json")
    assert time.process_time() - start < 1
    small.assert_one_sentence(error, f"there/config.json has {name} {value!r}", "must be")


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("linear", "factor", 1e300),
        ("llama3", "factor", 1e-300),
        ("llama3", "low_freq_factor", 1e-300),
        ("llama3", "high_freq_factor", 1e300),
        ("llama3", "original_max_position_embeddings", 10**18),
        ("longrope", "factor", 1e300),
        ("longrope", "attention_factor", 1e300),
        ("longrope", "original_max_position_embeddings", 1),
        ("longrope", "short_factor", [1.0, 1e-300]),
        ("longrope", "long_factor", [1e300, 1.0]),
    ],
)
def test_absurd_rotary_scalings_are_refused(kind, name, value):
    settings = {
        "rope_type": kind,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
        "short_factor": [1.0, 1.0],
        "long_factor": [1.0, 1.0],
    }
    config_from_hf(LLAMA | {"rope_scaling": settings})
    with pytest.raises(CheckpointError) as error:
        config_from_hf(LLAMA | {"rope_scaling": settings | {name: value}}, "there/config.json")
    small.assert_one_sentence(error, f"there/config.json has a rotary {name} {value!r}", "must be")


@pytest.mark.parametrize("value", [1e-300, "x", 10**400, [1]])
def test_the_second_rotary_base_is_checked_too(value):
    with pytest.raises(CheckpointError) as error:
        config_from_hf(GEMMA3 | {"rope_local_base_freq": value}, "there/config.json")
    small.assert_one_sentence(error, "there/config.json has rope_theta", "layers with a window")


def test_long_values_are_cut():
    for extra in ({"layer_types": ["x" * 10**6] * 2}, {"architectures": ["y"] * 10**6}):
        with pytest.raises(UnsupportedModelError) as error:
            config_from_hf(LLAMA | extra, "there/config.json")
        assert len(str(error.value)) < 500


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
        (b"{not json", "is not a JSON object"),
        (b"", "is not a JSON object"),
        (b"\xff\xfe\x00", "is not a JSON object"),
        (b"[1, 2]", "is not a JSON object (it is a JSON list)"),
        (b"null", "is not a JSON object (it is a JSON NoneType)"),
    ],
)
def test_config_that_is_not_a_json_object(tmp_path, content, part):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        read_config(tmp_path)
    small.assert_one_sentence(error, tmp_path / "config.json", part)


# --- Families: the published settings that matter, and what is said of them wrongly -------------

SIZES = without(LLAMA, "model_type") | {"num_key_value_heads": 3, "head_dim": 4}
PHI3 = SIZES | {
    "model_type": "phi3",
    "max_position_embeddings": 131072,
    "original_max_position_embeddings": 4096,
    "rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.1], "long_factor": [1, 60.5]},
    "sliding_window": 262144,
    "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"},
}
GEMMA3 = SIZES | {
    "model_type": "gemma3_text",
    "num_hidden_layers": 7,
    "query_pre_attn_scalar": 256,
    "sliding_window": 512,
}


def test_longrope_is_read_for_the_length_that_the_model_is_used_for():
    config = config_from_hf(PHI3)
    assert config.rope_scaling == RopeScaling(
        "longrope",
        factor=32.0,
        original_positions=4096,
        short_factors=(1.0, 1.1),
        long_factors=(1.0, 60.5),
    )
    assert (config.max_positions, config.windows) == (4096, (262144, 262144))
    assert config_from_hf(PHI3, max_positions=131072).max_positions == 131072
    assert config_from_hf(PHI3, max_positions=100).max_positions == 100
    old = PHI3 | {"rope_scaling": PHI3["rope_scaling"] | {"type": "su"}}
    assert config_from_hf(old) == config


def test_llama3_is_read():
    scaling = {
        "rope_type": "llama3",
        "factor": 32,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    expected = RopeScaling("llama3", 32.0, 8192, 1.0, 4.0)
    assert config_from_hf(LLAMA | {"rope_scaling": scaling}).rope_scaling == expected
    new = LLAMA | {"rope_parameters": scaling | {"rope_theta": 5e5}}
    assert config_from_hf(new).rope_scaling == expected
    assert config_from_hf(new).rope_theta == 5e5


def test_gemma3_has_two_sets_of_frequencies_in_both_schemas():
    old = GEMMA3 | {
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    }
    new = GEMMA3 | {
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        }
    }
    config = config_from_hf(old)
    assert config == config_from_hf(new)
    assert (config.rope_theta, config.local_rope_theta) == (1e6, 1e4)
    assert config.rope_scaling == RopeScaling("linear", 8.0)
    assert config.windows == (512, 512, 512, 512, 512, 0, 512)
    assert config_from_hf(GEMMA3).rope_theta == 1e6
    assert config_from_hf(GEMMA3 | {"sliding_window_pattern": 2}).windows[:4] == (512, 0, 512, 0)


def test_qwen_has_windows_only_if_asked():
    raw = QWEN2 | {"num_hidden_layers": 3, "max_window_layers": 1}
    assert config_from_hf(raw).windows == ()
    asked = raw | {"use_sliding_window": True}
    assert config_from_hf(asked).windows == (0, 32768, 32768)
    kinds = ["sliding_attention", "full_attention", "full_attention"]
    assert config_from_hf(asked | {"layer_types": kinds}).windows == (32768, 0, 0)


@pytest.mark.parametrize(
    ("extra", "error_type", "parts"),
    [
        ({"max_positions": 200000}, CheckpointError, ["max_positions is 200000", "131072"]),
        ({"max_positions": 0}, CheckpointError, ["max_positions is 0", "positive"]),
        ({"rope_scaling": {"type": "longrope"}}, CheckpointError, ["rotary short_factor None"]),
        (
            {"rope_scaling": PHI3["rope_scaling"] | {"long_factor": [1.0]}},
            CheckpointError,
            ["2 short and 1 long", "2 of each"],
        ),
        ({"sliding_window": -4}, CheckpointError, ["sliding_window -4"]),
        ({"rope_scaling": {"type": "llama3"}}, CheckpointError, ["rotary low_freq_factor None"]),
        (
            {"rope_scaling": {"type": "llama3", "low_freq_factor": 4, "high_freq_factor": 4}},
            CheckpointError,
            ["low_freq_factor 4.0", "less than high_freq_factor"],
        ),
        ({"layer_types": ["full_attention"] * 2}, UnsupportedModelError, ["layer_types"]),
        ({"layer_types": ["chunked"] * 2}, UnsupportedModelError, ["chunked"]),
        ({"layer_types": ["full_attention"]}, CheckpointError, ["each of the 2 layers"]),
        ({"partial_rotary_factor": 0.75}, UnsupportedModelError, ["partial_rotary_factor"]),
    ],
)
def test_bad_settings_of_a_family_are_refused(extra, error_type, parts):
    longest = extra.pop("max_positions", None)
    with pytest.raises(error_type) as error:
        config_from_hf(PHI3 | extra, "there/config.json", longest)
    small.assert_one_sentence(error, "there/config.json", *parts)


@pytest.mark.parametrize(
    ("raw", "key", "value"),
    [
        (QWEN2 | {"use_sliding_window": True}, "max_window_layers", "x"),
        (QWEN2 | {"use_sliding_window": True}, "max_window_layers", -1),
        (GEMMA3, "sliding_window_pattern", "6"),
    ],
)
def test_which_layers_have_windows_is_a_number(raw, key, value):
    with pytest.raises(CheckpointError) as error:
        config_from_hf(raw | {key: value}, "there/config.json")
    small.assert_one_sentence(error, "there/config.json", f"{key} {value!r}", "integer")


def test_a_window_of_null_is_none():
    raw = SIZES | {"model_type": "mistral", "sliding_window": None}
    assert config_from_hf(raw).windows == ()
