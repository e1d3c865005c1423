"""Texts on which a tokenizer hangs or panics end in one sentence."""

import json
import pickle
import subprocess
import sys
import time

import pytest

import jax_power_smc as psmc
from jax_power_smc.models.checkpoints.guarded_tokenizer import GuardedTokenizer
from jax_power_smc.models.checkpoints.tokenizer import load_tokenizer
from jax_power_smc.models.transformer.config import CheckpointError
from tests.models import small
from tests.models.checkpoints.test_loaded_model import model_directory
from tests.paths import ROOT

# Tries all ways to cut a row of letters into ones and twos.
SLOW = {"type": "Replace", "pattern": {"Regex": "(?:a|aa)+$"}, "content": "b"}
SLOW_TEXT = ("a" * 28 + "b") * 3000
PANICS = {"type": "Replace", "pattern": {"Regex": "(?:a|aa)+$"}, "content": "b"}
PANICS_TEXT = "a" * 60 + "b"


def rewrite(directory, **changes):
    path = directory / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_text_that_takes_too_long(tmp_path):
    small.save_tokenizer(tmp_path, 3)
    rewrite(tmp_path, normalizer=SLOW)
    tokenizer = load_tokenizer(tmp_path)
    tokenizer.seconds = 0.5
    assert tokenizer.encode("w1 w2") == [1, 2]
    start = time.monotonic()
    with pytest.raises(CheckpointError) as error:
        tokenizer.encode(SLOW_TEXT)
    assert time.monotonic() - start < 30  # on a busy machine
    small.assert_one_sentence(error, f"the tokenizer in {tmp_path} took longer than 0.5 s")


@pytest.mark.parametrize("side", ["normalizer", "pre_tokenizer", "decoder"])
def test_an_expression_that_panics(tmp_path, side, capfd):
    small.save_tokenizer(tmp_path, 3)
    step = PANICS
    if side == "pre_tokenizer":
        pattern = PANICS["pattern"]
        step = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    vocab = {"w0": 0, PANICS_TEXT: 1}
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": "w0"}
    rewrite(tmp_path, **{"model": model, side: step})
    tokenizer = load_tokenizer(tmp_path)
    with pytest.raises(CheckpointError) as error:
        tokenizer.decode([1]) if side == "decoder" else tokenizer.encode(PANICS_TEXT)
    small.assert_one_sentence(error, f"the tokenizer in {tmp_path} panicked (", "retry-limit")


def test_the_command_line_ends_in_a_sentence(tmp_path):
    model_directory(tmp_path, None, (3,))
    rewrite(tmp_path, normalizer=PANICS)
    done = subprocess.run(
        [sys.executable, "-m", "launch.generate", f"--model={tmp_path}", f"--prompt={PANICS_TEXT}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    # The library writes lines of its own before that.
    assert done.stderr.splitlines()[-1].startswith(f"error: the tokenizer in {tmp_path} panicked")


def test_reading_has_the_limit_too(tmp_path, monkeypatch):
    model_directory(tmp_path, None, (3,))
    with monkeypatch.context() as patch:
        patch.setattr(GuardedTokenizer, "from_pretrained", lambda *_, **__: time.sleep(2))
        with pytest.raises(CheckpointError) as error:
            psmc.load(tmp_path, tokenizer_seconds=0.1)
    small.assert_one_sentence(error, f"reading the tokenizer in {tmp_path} took longer than 0.1 s")
    with pytest.raises(ValueError, match="tokenizer_seconds is 0"):
        psmc.load(tmp_path, tokenizer_seconds=0)
    assert psmc.load(tmp_path, tokenizer_seconds=50).tokenizer.seconds == 50


def test_it_is_the_librarys_tokenizer_otherwise(tmp_path):
    small.save_tokenizer(tmp_path, 3)
    tokenizer = load_tokenizer(tmp_path)
    again = pickle.loads(pickle.dumps(tokenizer))
    for each in (tokenizer, again):
        assert each.encode("w2 w1") == [2, 1] and each.decode([2, 1]) == "w2 w1"
    with pytest.raises(Exception, match="must be"):
        tokenizer.encode(5)
