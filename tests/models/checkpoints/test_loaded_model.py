"""Prompts: plain for base models, through the template for chat models; a real tokenizer."""

import json
import shutil

import jax
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import jax_power_smc as psmc
from jax_power_smc.cli.generate import Options, generate
from jax_power_smc.models.checkpoints.safetensors_io import save_pretrained
from tests.paths import SHARED

QWEN = SHARED / "tokenizers" / "qwen2.5"
needs_qwen = pytest.mark.skipif(not QWEN.is_dir(), reason=f"{SHARED}/tokenizers/qwen2.5 is absent")

SIZES = {
    "hidden_size": 8,
    "num_layers": 1,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 4,
    "mlp_size": 8,
}
# Ends a turn with "stop", begins the model's with "go".
TURNS = (
    "{% for m in messages %}{{ m['content'] }} stop {% endfor %}"
    "{% if add_generation_prompt %}go{% endif %}"
)
QUESTION_ONLY = "ask {{ messages[0]['content'] }}"


def model_directory(directory, template, eos_ids):
    """Words "ask", "stop", "go", ... are ids 0, 1, 2, ...; "stop" and "end" are special."""
    words = ("ask", "stop", "go", "end", "what")
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="what"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="what",
        eos_token="end",
        additional_special_tokens=["stop"],
        chat_template=template,
    )
    tokenizer.save_pretrained(directory)
    config = psmc.TransformerConfig(vocab_size=5, **SIZES)
    params = psmc.TransformerLM(config).init(jax.random.key(0))
    save_pretrained(directory, config, params, eos_ids=eos_ids)
    return directory


@pytest.mark.parametrize(
    ("template", "eos_ids", "expected"),
    [
        (None, (3,), [4]),
        # Answers end with "stop": a chat model's eos set has it, a base model's has not.
        (TURNS, (3, 1), [4, 1, 2]),
        (TURNS, (3,), [4]),
        # A template that does not say how answers end is meant to be used.
        (QUESTION_ONLY, (3,), [0, 4]),
    ],
    ids=["none", "chat", "base", "question only"],
)
def test_prompts_follow_the_model(template, eos_ids, expected, tmp_path):
    lm = psmc.load(model_directory(tmp_path, template, eos_ids))
    assert lm.encode("what") == expected
    assert lm.is_chat == (expected != [4])
    if template is not None:
        assert lm.encode("what", chat=False) == [4]
        assert lm.encode("what", chat=True) != [4]


def test_a_template_that_is_not_there_cannot_be_asked_for(tmp_path):
    lm = psmc.load(model_directory(tmp_path, None, ()))
    with pytest.raises(ValueError, match=r"chat is True; the tokenizer has no chat template\."):
        lm.encode("what", chat=True)
    with pytest.raises(ValueError, match="must hold some text"):
        lm.encode("  ")


@pytest.fixture(scope="module")
def scaled_down(tmp_path_factory):
    """Qwen2.5-7B with everything but the vocabulary made small, and random weights."""
    directory = tmp_path_factory.mktemp("qwen")
    config = psmc.TransformerConfig(
        vocab_size=152_064,
        hidden_size=56,
        num_layers=2,
        num_heads=14,
        num_kv_heads=2,
        head_dim=4,
        mlp_size=96,
        rope_theta=1e6,
        norm_eps=1e-6,
        tied_embeddings=False,
        max_positions=32_768,
        family="qwen2",
    )
    params = psmc.TransformerLM(config).init(jax.random.key(0))
    save_pretrained(directory, config, params, eos_ids=(151_645, 151_643))
    for file in QWEN.iterdir():
        shutil.copy(file, directory)
    return directory


@pytest.mark.slow
@needs_qwen
@pytest.mark.parametrize("sampler", ["smc", "swor"])
def test_real_tokenizer_and_real_prompts(scaled_down, sampler):
    problem = json.loads((SHARED / "data" / "MATH500.json").read_text("utf-8"))[0]["prompt"]
    options = Options(
        model=str(scaled_down),
        prompt=problem,
        sampler=sampler,
        num_particles=4,
        alpha=4.0,
        temperature=1.0,
        ramp_tokens=0,
        max_new_tokens=12,
        seed=0,
    )
    answer = generate(options)
    assert answer["tokens"] > 0 and answer["log_prob"] < 0
    assert answer["log_evidence"] is not None and answer["failure"] is None
    lm = psmc.load(scaled_down)
    ids = lm.encode(problem)
    text = lm.tokenizer.decode(ids)
    assert lm.is_chat and text.startswith("<|im_start|>") and problem in text
    assert text.endswith("<|im_start|>assistant\n")


@pytest.mark.slow
@needs_qwen
def test_a_base_models_prompt_is_plain(scaled_down, tmp_path):
    base = shutil.copytree(scaled_down, tmp_path / "base")
    (base / "generation_config.json").write_text('{"eos_token_id": 151643}')
    lm = psmc.load(base)
    assert not lm.is_chat and lm.tokenizer.decode(lm.encode("2 + 2 =")) == "2 + 2 ="
