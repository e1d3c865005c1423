"""Tiny models in place of large ones."""

import json

import jax
import numpy as np
import pytest

import jax_power_smc as psmc
from jax_power_smc.evaluation import job_config
from jax_power_smc.models.checkpoints import hub
from jax_power_smc.models.checkpoints.tiny_random import tiny_model
from jax_power_smc.models.transformer.families import FAMILIES
from jax_power_smc.tasks.load import load_task
from tests.paths import SHARED

QWEN = SHARED / "tokenizers/qwen2.5"
needs_qwen = pytest.mark.skipif(not QWEN.is_dir(), reason=f"{SHARED}/tokenizers/qwen2.5 is absent")
# The others take the time of their compilation.
QUICK = ("qwen2",)

pytestmark = pytest.mark.usefixtures("quick_compilation")


def dry(model="owner/name", architecture="qwen2", **changes):
    config = job_config.paper(model, architecture, "math500")
    config.dtype = None
    config.update(changes)
    job_config.shrink(config)
    return config


def sampled(config, lm, name):
    """What one sampler of the config gives for the config's problems."""
    task = load_task(config, chat=lm.is_chat)
    return psmc.sample(
        lm.model,
        lm.params,
        [lm.encode(problem.prompt, chat=config.chat) for problem in task.problems],
        key=jax.random.key(0),
        target=job_config.target(config, lm.eos_ids),
        sampler=job_config.samplers(config)[name],
        max_new_tokens=config.max_new_tokens,
    )


@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.pods]) for name in FAMILIES],
)
def test_every_family_runs_through(family):
    config = dry(architecture=family)
    lm = tiny_model(config)
    assert lm.config.family == family
    for name in ("smc", "swor"):
        result = sampled(config, lm, name)
        assert result.tokens.shape == (2, 4, 16) and result.failures() == [None, None]
        assert np.isfinite(np.asarray(result.log_evidence)).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_family_is_known_for_is_on(family):
    about, made = FAMILIES[family], tiny_model(dry(architecture=family)).config
    assert any(made.windows) == (about.windows != "none")
    # Where some layers may see everything, some do.
    assert (0 in made.windows) == (about.windows in ("some", "opt_in"))
    has_caps = made.attention_softcap is not None and made.final_softcap is not None
    assert has_caps == ("attention_softcap" in dict(about.scalars))
    assert (made.local_rope_theta is not None) == (about.local_theta is not None)
    assert (made.embedding_multiplier != 1) == (family == "granite")
    kinds = {"llama": "llama3", "phi3": "longrope", "gemma3_text": "linear"}
    assert (made.rope_scaling and made.rope_scaling.kind) == kinds.get(family)
    assert made.group_size > 1


def test_the_weights_are_random_and_the_same_every_time():
    first, again = (jax.tree.leaves(tiny_model(dry()).params) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert sum(bool(np.std(np.asarray(x)) > 0) for x in first) > len(first) / 2


def test_dtype_and_positions_are_those_of_the_config():
    lm = tiny_model(dry(dtype="bfloat16", max_positions=640))
    assert {str(x.dtype) for x in jax.tree.leaves(lm.params)} == {"bfloat16"}
    assert lm.model.max_positions == 640


@needs_qwen
def test_the_tokenizer_is_the_models_own():
    config = dry(str(QWEN))
    lm = tiny_model(config)
    assert lm.directory == QWEN and lm.is_chat
    assert lm.config.vocab_size == len(lm.tokenizer) > 150_000
    assert lm.eos_ids == (lm.tokenizer.convert_tokens_to_ids("<|im_end|>"),)
    assert lm.encode("Two words", chat=False) == lm.tokenizer.encode("Two words")


@needs_qwen
@pytest.mark.pods
def test_a_large_vocabulary_runs_through():
    config = dry(str(QWEN))
    lm = tiny_model(config)
    for name in ("smc", "swor"):
        result = sampled(config, lm, name)
        assert result.failures() == [None, None]
        assert int(np.max(result.tokens)) > 1000


def test_without_its_own_it_gets_that_of_the_embedded_model():
    lm, embedded = tiny_model(dry()), psmc.load("tiny-reasoner")
    assert lm.tokenizer.get_vocab() == embedded.tokenizer.get_vocab()
    assert lm.eos_ids == embedded.eos_ids
    assert lm.config != embedded.config


def test_family_and_end_tokens_are_those_of_the_directory(tmp_path):
    original = psmc.load("tiny-reasoner").directory
    (tmp_path / "tokenizer.json").write_bytes((original / "tokenizer.json").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma2", "eos_token_id": 700}))
    lm = tiny_model(dry(str(tmp_path), architecture=None))
    assert lm.config.family == "gemma2" and lm.eos_ids == (700,)
    # An end token that the tokenizer does not have still has a row.
    assert lm.config.vocab_size == 701 > len(lm.tokenizer)
    with pytest.raises(ValueError, match=r"config.architecture is 'qwen2'; .* says 'gemma2'"):
        tiny_model(dry(str(tmp_path)))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match=r"is of family 'bert'; allowed are llama, "):
        tiny_model(dry(str(tmp_path), architecture=None))
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"config.json is not a JSON object"):
        tiny_model(dry(str(tmp_path)))


def test_the_embedded_model_needs_no_family():
    config = job_config.default()
    job_config.paper_samplers(config)
    assert tiny_model(config).config.family == "llama"


def test_files_in_the_cache_of_the_hub_are_found(tmp_path, monkeypatch):
    original = psmc.load("tiny-reasoner").directory
    asked = []

    def cached(name, file, revision):
        asked.append((name, revision))
        return original / file

    monkeypatch.setattr(hub, "cached", cached)
    lm = tiny_model(dry(architecture=None, revision="v2"))
    assert lm.directory == original and set(asked) == {("owner/name", "v2")}


def test_a_model_of_which_nothing_is_known():
    with pytest.raises(
        ValueError, match=r"config.architecture is None; 'owner/name' is not on this"
    ):
        tiny_model(dry(architecture=None))
    with pytest.raises(ValueError, match="model 'no such' is neither a directory nor a possible"):
        tiny_model(dry("no such"))
