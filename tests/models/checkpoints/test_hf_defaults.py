"""What a config.json leaves out means what it means to the reference, family by family."""

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from jax_power_smc.models.checkpoints.hf_config import config_from_hf
from jax_power_smc.models.transformer.config import CheckpointError, UnsupportedModelError
from jax_power_smc.models.transformer.families import FAMILIES
from tests.models import small

SIZES = {
    "vocab_size": 100,
    "hidden_size": 512,
    "intermediate_size": 40,
    "num_hidden_layers": 40,
    "num_attention_heads": 32,
}
# No default of any family, so that each shows when it is left out.
COMMON = {
    "num_key_value_heads": 16,
    "head_dim": 24,
    "max_position_embeddings": 5000,
    "rms_norm_eps": 1e-3,
    "rope_theta": 321.0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 2.0,
    "low_freq_factor": 1.5,
    "high_freq_factor": 3.0,
    "original_max_position_embeddings": 2500,
}
WINDOWS = {"use_sliding_window": True, "sliding_window": 77, "max_window_layers": 5}
GEMMA = {
    "tie_word_embeddings": False,
    "query_pre_attn_scalar": 9,
    "sliding_window": 77,
    "attn_logit_softcapping": 3.0,
    "final_logit_softcapping": 4.0,
}
OWN = {
    "llama": {"tie_word_embeddings": True, "rope_scaling": LLAMA3},
    "mistral": {"tie_word_embeddings": True, "sliding_window": 77},
    "qwen2": {"tie_word_embeddings": True, **WINDOWS},
    "qwen3": {"tie_word_embeddings": True, **WINDOWS},
    "phi3": {
        "tie_word_embeddings": True,
        "sliding_window": 77,
        "original_max_position_embeddings": 1000,
        # The reference counts the factors by the width in this family.
        "head_dim": 16,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": [1.0 + i for i in range(8)],
            "long_factor": [2.0 + i for i in range(8)],
        },
    },
    "gemma2": GEMMA,
    "gemma3_text": {
        **GEMMA,
        "sliding_window_pattern": 3,
        "rope_local_base_freq": 123.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
    "olmo2": {"tie_word_embeddings": True},
    "granite": {
        "tie_word_embeddings": True,
        "attention_multiplier": 0.2,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.4,
        "logits_scaling": 0.5,
    },
}


def full(family):
    """A config in which nothing is left to a default; in the schema of the hub's checkpoints."""
    return {"model_type": family, **SIZES, **COMMON, **OWN[family]}


def reference(raw):
    """The same config with everything said, as the reference's class says it."""
    theirs = CONFIG_MAPPING[raw["model_type"]].from_dict(dict(raw)).to_dict()
    return {**theirs, "architectures": None}


def variants(family):
    raw = full(family)
    optional = [key for key in raw if key not in SIZES and key != "model_type"]
    yield "nothing", raw
    for name in optional:
        yield name, {key: value for key, value in raw.items() if key != name}
    scaling = raw.get("rope_scaling", {})
    for name in scaling:
        inner = {key: value for key, value in scaling.items() if key != name}
        yield f"rope_scaling.{name}", {**raw, "rope_scaling": inner}
    yield "all", {key: value for key, value in raw.items() if key not in optional}


def named(cases):
    return [pytest.param(*case, id="-".join(case[:2])) for case in cases]


@pytest.mark.parametrize(
    ("family", "left_out", "raw"), named((f, n, raw) for f in FAMILIES for n, raw in variants(f))
)
def test_a_name_that_is_left_out(family, left_out, raw):
    try:
        theirs = reference(raw)
    except Exception:  # it refuses; then so do we
        with pytest.raises(ValueError, match=left_out.rpartition(".")[2]):
            config_from_hf(raw)
        return
    assert config_from_hf(raw) == config_from_hf(theirs)


@pytest.mark.parametrize(
    ("family", "name"), named((f, n) for f in FAMILIES for n in full(f) if n not in SIZES)
)
def test_a_name_that_is_null(family, name):
    raw = full(family) | {name: None}
    try:
        ours = config_from_hf(raw)
    except ValueError as error:
        assert name in str(error) or "gives no window" in str(error)
        return
    try:
        theirs = reference(raw)
    except Exception:  # it refuses sizes that follow from others; older versions did not
        assert {"num_key_value_heads": ours.num_kv_heads == 32, "head_dim": ours.head_dim == 16}[
            name
        ]
        return
    assert ours == config_from_hf(theirs)


def test_the_softcaps_of_gemma2():
    raw = full("gemma2")
    caps = ("attn_logit_softcapping", "final_logit_softcapping")
    absent = config_from_hf({key: value for key, value in raw.items() if key not in caps})
    null = config_from_hf(raw | dict.fromkeys(caps))
    assert (absent.attention_softcap, absent.final_softcap) == (50.0, 30.0)
    assert (null.attention_softcap, null.final_softcap) == (None, None)


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_windows_that_are_asked_for_have_a_width(family):
    raw = full(family) | {"max_window_layers": 38}
    del raw["sliding_window"]
    assert config_from_hf(raw).windows == (0,) * 38 + (4096,) * 2
    assert config_from_hf(raw | {"use_sliding_window": False}).windows == ()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["attention_bias", "mlp_bias"])
def test_biases_that_the_family_may_have_are_refused(family, name):
    # qwen2 always has those of q, k and v, and never others: the name is not read.
    raw = full(family) | {name: True}
    if hasattr(CONFIG_MAPPING[family](), name):
        with pytest.raises(UnsupportedModelError, match=f"{name} true"):
            config_from_hf(raw)
    else:
        assert config_from_hf(raw) == config_from_hf(full(family))


@pytest.mark.parametrize(
    ("family", "name", "value"),
    [("llama", "tie_word_embeddings", "false"), ("qwen2", "use_sliding_window", 1)],
)
def test_what_is_true_or_false_is_nothing_else(family, name, value):
    with pytest.raises(CheckpointError) as error:
        config_from_hf(full(family) | {name: value}, "there/config.json")
    small.assert_one_sentence(error, "there/config.json", f"{name} {value!r}", "true or false")
