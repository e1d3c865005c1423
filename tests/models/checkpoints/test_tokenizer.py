"""BOS as the reference adds it, the eos set, and special tokens of every kind."""

import json
import shutil

import jax
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer

import jax_power_smc as psmc
from jax_power_smc.models.checkpoints.safetensors_io import save_pretrained
from jax_power_smc.models.checkpoints.tokenizer import load_tokenizer, read_eos_ids
from jax_power_smc.models.transformer.config import CheckpointError
from tests.models import small
from tests.paths import SHARED

QWEN = SHARED / "tokenizers/qwen2.5"
needs_qwen = pytest.mark.skipif(not QWEN.is_dir(), reason=f"{SHARED}/tokenizers/qwen2.5 is absent")

BOS, EOS = "<|begin|>", "<|end|>"
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
WITH_BOS = processors.TemplateProcessing(
    single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, len(BYTES))]
)
PROCESSORS = {
    "bytes": processors.ByteLevel(trim_offsets=False),
    "template": processors.TemplateProcessing(single="$A", pair="$A $B", special_tokens=[]),
    "bos": WITH_BOS,
}
# Obey add_bos_token by their documentation, which version 5 of the reference does not.
OBEDIENT = ("LlamaTokenizerFast", "LlamaTokenizer", "GemmaTokenizer", "GemmaTokenizerFast")
CLASSES = (*OBEDIENT, "Qwen2Tokenizer", "Qwen2TokenizerFast", "PreTrainedTokenizerFast")


def byte_tokenizer(directory, processor, model_type="llama", **settings):
    """A tokenizer of single bytes with two special tokens, as a checkpoint would have it."""
    inner = Tokenizer(models.BPE({token: i for i, token in enumerate(BYTES)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_tokens([AddedToken(x, special=True, normalized=False) for x in (BOS, EOS)])
    inner.post_processor = PROCESSORS[processor]
    inner.save(str(directory / "tokenizer.json"))
    settings = {"bos_token": BOS, "eos_token": EOS} | settings
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    (directory / "config.json").write_text(json.dumps({"model_type": model_type}))
    return directory


@pytest.mark.parametrize("named", CLASSES)
@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize("add", [None, True, False])
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gemma2"])
def test_bos_as_the_reference_adds_it(tmp_path, named, processor, add, model_type):
    settings = {"tokenizer_class": named} | ({} if add is None else {"add_bos_token": add})
    byte_tokenizer(tmp_path, processor, model_type, **settings)
    text = "ab"  # of which all these classes make the same, whatever they do about spaces
    expected = AutoTokenizer.from_pretrained(tmp_path).encode(text)
    in_file = processor == "bos"
    assert expected[-2:] == [BYTES.index("a"), BYTES.index("b")]
    assert (BOS_ID in expected) == in_file  # today's reference goes by tokenizer.json alone
    if add is not None and named in OBEDIENT and add != in_file:
        # What it did when such checkpoints were made, and what the class says of the name.
        expected = [BOS_ID, *expected] if add else expected[-2:]
    assert load_tokenizer(tmp_path).encode(text) == expected


BOS_ID = len(BYTES)


def test_no_bos_without_a_token(tmp_path):
    settings = {"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": True, "bos_token": None}
    tokenizer = load_tokenizer(byte_tokenizer(tmp_path, "bytes", **settings))
    assert BOS_ID not in tokenizer.encode("ab")


@needs_qwen
@pytest.mark.parametrize("add", [True, False])
def test_deepseek_r1_distill_qwen(tmp_path, add):
    """A Qwen tokenizer with a BOS of its own, under the name of Llama's class."""
    shutil.copy(QWEN / "tokenizer.json", tmp_path)
    bos = "<|fim_prefix|>"
    settings = {"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": add, "bos_token": bos}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    text = "Who are you?\n1 + 1 = <|im_end|>"
    plain = AutoTokenizer.from_pretrained(QWEN).encode(text)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode(text) == [tokenizer.convert_tokens_to_ids(bos)] * add + plain


@pytest.mark.parametrize(
    ("generation", "config", "tokenizer", "expected"),
    [
        ({"eos_token_id": 7}, {"eos_token_id": 3}, EOS, (7,)),
        ({"eos_token_id": [7, 2]}, {"eos_token_id": 3}, EOS, (7, 2)),
        ({"eos_token_id": []}, {"eos_token_id": 3}, EOS, ()),
        ({"eos_token_id": 0}, {"eos_token_id": 3}, EOS, (0,)),
        ({"eos_token_id": None}, {"eos_token_id": 3}, EOS, (3,)),
        ({}, {"eos_token_id": [3]}, EOS, (3,)),
        (None, {"eos_token_id": 3}, EOS, (3,)),
        (None, {}, EOS, (BOS_ID + 1,)),
        ({"eos_token_id": None}, None, EOS, (BOS_ID + 1,)),
        (None, {}, None, ()),
    ],
)
def test_who_says_what_ends_an_answer(tmp_path, generation, config, tokenizer, expected):
    byte_tokenizer(tmp_path, "bytes", eos_token=tokenizer)
    for name, content in (("generation_config.json", generation), ("config.json", config)):
        (tmp_path / name).unlink(missing_ok=True)
        if content is not None:
            (tmp_path / name).write_text(json.dumps(content))
    assert read_eos_ids(tmp_path, load_tokenizer(tmp_path)) == expected


def test_a_tokenizer_config_that_is_not_an_object(tmp_path):
    byte_tokenizer(tmp_path, "bytes")
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(CheckpointError) as error:
        load_tokenizer(tmp_path)
    small.assert_one_sentence(error, "tokenizer_config.json", "not a JSON object")


def model_directory(directory, *, vocab_size=BOS_ID + 2, eos_ids=(BOS_ID + 1,), **settings):
    config = psmc.TransformerConfig(
        vocab_size=vocab_size,
        hidden_size=8,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=4,
        mlp_size=8,
    )
    params = psmc.TransformerLM(config).init(jax.random.key(0))
    byte_tokenizer(directory, settings.pop("processor", "bytes"), **settings)
    save_pretrained(directory, config, params, eos_ids=eos_ids)
    return directory


def test_special_tokens_beyond_the_embedding(tmp_path):
    lm = psmc.load(model_directory(tmp_path, vocab_size=BOS_ID, eos_ids=(5,)))
    assert len(lm.encode("ab")) == 2
    with pytest.raises(ValueError) as error:
        lm.encode(f"ab{EOS}")
    small.assert_one_sentence(error, repr(EOS), f"token {BOS_ID + 1}", f"ids below {BOS_ID}")
    with pytest.raises(ValueError, match=str(BOS_ID)):
        psmc.sample(
            lm.model,
            lm.params,
            [lm.tokenizer.encode(f"ab{EOS}")],
            key=jax.random.key(0),
            target=psmc.PowerTarget(alpha=2.0, eos_ids=lm.eos_ids),
            sampler=psmc.PowerSMC(num_particles=2),
            max_new_tokens=3,
        )


LLAMA3 = "{% for m in messages %}{{ m['content'] }}<|eot_id|>{% endfor %}"


@pytest.mark.parametrize(("ends_at_eot", "is_chat"), [(True, True), (False, False)])
def test_special_tokens_without_a_role(tmp_path, ends_at_eot, is_chat):
    """As in Llama 3, whose <|eot_id|> is no token that tokenizer_config gives a role."""
    directory = model_directory(tmp_path, vocab_size=BOS_ID + 3, chat_template=LLAMA3)
    inner = Tokenizer.from_file(str(directory / "tokenizer.json"))
    inner.add_tokens([AddedToken("<|eot_id|>", special=True, normalized=False)])
    inner.save(str(directory / "tokenizer.json"))
    eos_ids = [BOS_ID + 1, BOS_ID + 2] if ends_at_eot else BOS_ID + 1
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": eos_ids}))
    lm = psmc.load(directory)
    assert "<|eot_id|>" not in lm.tokenizer.all_special_tokens
    assert lm.is_chat == is_chat


RAISES = "{% if messages[-1]['role'] != 'user' %}{{ raise_exception('No.') }}{% endif %}ask "
ASKS = RAISES + "{{ messages[0]['content'] }}"


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        (ASKS, "ask ab"),  # raises on answers alone
        ("{{ tools.first.name }}ask", None),
        ("{{ strange('x') }}", None),
        ("{{ raise_exception('Only for tools!\n') }}", None),
        ("{% if %}", None),
    ],
    ids=["answers", "variable", "function", "raises", "syntax"],
)
def test_templates_that_raise(tmp_path, template, prompt):
    lm = psmc.load(model_directory(tmp_path, chat_template=template))
    assert lm.is_chat
    assert lm.tokenizer.decode(lm.encode("ab", chat=False)) == "ab"
    if prompt is not None:
        assert lm.tokenizer.decode(lm.encode("ab")) == prompt
        return
    with pytest.raises(ValueError) as error:
        lm.encode("ab")
    message = str(error.value)
    assert "\n" not in message and message.endswith("chat=False bypasses it.")
    assert f"the chat template in {tmp_path} cannot render a prompt" in message


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, f"base model, no BOS, answers end at {EOS} ({BOS_ID + 1})"),
        ({"processor": "bos"}, f"base model, prompts begin with {BOS}, answers end at {EOS}"),
        ({"eos_ids": ()}, "base model, no BOS, no token ends answers"),
        ({"chat_template": BOS + ASKS}, f"chat model, prompts begin with {BOS}, answers end at"),
    ],
)
def test_what_was_decided_is_said(tmp_path, settings, expected):
    assert psmc.load(model_directory(tmp_path, **settings)).describe().startswith(expected)
