"""The training launcher: what it writes, what it refuses, and that it continues exactly."""

import json
import os
import runpy
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from ml_collections import ConfigDict

import jax_power_smc as psmc
from jax_power_smc.cli import train
from tests.paths import ROOT

CONFIG = "configs/train_tiny_reasoner.py"
TINY = {
    "model.hidden_size": 16,
    "model.num_layers": 1,
    "model.num_heads": 2,
    "model.num_kv_heads": 1,
    "model.head_dim": 8,
    "model.mlp_size": 16,
    "model.max_positions": 256,
    "vocab_size": 320,
    "tokenizer_problems": 60,
    "batch_size": 2,
    "max_tokens": 97,  # one padded length, so one compilation
    "pool_batches": 5,
    "valid_examples": 2,
    "steps": 14,
    "learning_rate": 0.002,
    "warmup_steps": 2,
    "log_every": 2,
    "valid_every": 6,
    "checkpoint_every": 5,
}


@pytest.fixture(autouse=True, scope="module")
def compile_once(tmp_path_factory):
    """Keeps what is compiled for the later runs of this module, also in other processes."""
    values = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.05,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in values}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            jax.config.update(name, value)
            patch.setenv(name.upper(), str(value))
        compilation_cache.reset_cache()
        yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(autouse=True, scope="module")
def optax_promotion():
    """Allows promotion: optax raises a float to its integer count of steps."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def tiny_config(**changes):
    config = runpy.run_path(str(ROOT / CONFIG))["get_config"]()
    config.update_from_flattened_dict(TINY | changes)
    return config


def command(workdir, **changes):
    return [
        *(sys.executable, "-m", "launch.train", f"--config={CONFIG}", f"--workdir={workdir}"),
        *(f"--config.{name}={value}" for name, value in (TINY | changes).items()),
    ]


def metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def weights(directory):
    return (directory / "model.safetensors").read_bytes()


def interrupt_at(step, monkeypatch):
    """Sends SIGTERM right after the line of metrics of this step was written."""
    log = train.Workspace.log

    def log_and_stop(self, totals):
        log(self, totals)
        if totals.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(train.Workspace, "log", log_and_stop)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A workdir with an undisturbed run, exported to published/ as well."""
    workdir = tmp_path_factory.mktemp("finished")
    totals = train.train(tiny_config(export_dir=str(workdir / "published")), workdir)
    assert totals.step == TINY["steps"]
    return workdir


# --- Small and diverging runs ----------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 100, 6000])
def test_the_warm_up_follows_the_steps(steps):
    # As the config's own example says: --config.steps=100.
    config = runpy.run_path(str(ROOT / CONFIG))["get_config"]()
    assert config.warmup_steps == 200
    config.steps = steps
    assert train._check(config)[1].warmup_steps == steps // 30 == config.to_dict()["warmup_steps"]
    config.warmup_steps = steps
    with pytest.raises(ValueError, match=f"warmup_steps is {steps}; .* less than steps"):
        train._check(config)


def test_a_run_of_one_step(tmp_path):
    config = runpy.run_path(str(ROOT / CONFIG))["get_config"]()
    small = {k: v for k, v in TINY.items() if k not in ("steps", "warmup_steps")}
    config.update_from_flattened_dict(small | {"steps": 1})
    assert train.train(config, tmp_path).step == 1


@pytest.mark.parametrize("log_every", [1, 1000])
def test_a_run_that_diverges_stops_at_that_step(log_every, tmp_path, capfd):
    changes = {"learning_rate": 1e38, "warmup_steps": 0, "log_every": log_every}
    config = tiny_config(**changes, valid_every=1000, checkpoint_every=1000)
    with pytest.raises(
        ValueError, match=r"is (nan|inf) at step [1-3]; lower config\.learning_rate"
    ):
        train.train(config, tmp_path)
    assert not list((tmp_path / "checkpoints").iterdir())
    assert not (tmp_path / "export").exists()
    lines = metrics(tmp_path) if log_every == 1 else []
    assert all(np.isfinite(line["loss"]) for line in lines)


def test_a_last_step_that_breaks_the_parameters_is_not_kept(tmp_path):
    config = tiny_config(steps=1, warmup_steps=0, learning_rate=3e38, weight_decay=3e38)
    with pytest.raises(ValueError, match=r"sum of the parameters is -?(nan|inf) at step 1"):
        train.train(config, tmp_path)
    assert not (tmp_path / "export").exists()


# --- Continuing -------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_terminated_process_continues_to_the_same_parameters(tmp_path):
    changes = {"steps": 60, "log_every": 1, "valid_every": 1000, "checkpoint_every": 1000}
    workdir = tmp_path / "stopped"
    with subprocess.Popen(
        command(workdir, **changes), cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout:
            if line.startswith("step 5/60 "):
                process.send_signal(signal.SIGTERM)
                break
        rest = process.stdout.read()
    assert process.returncode == 0
    stopped_at = metrics(workdir)[-1]["step"]
    assert 5 <= stopped_at < 60
    assert f"Stopped after step {stopped_at} of 60; run the same command to resume." in rest
    assert json.loads((workdir / "export" / "training.json").read_text())["step"] == stopped_at
    halfway = weights(workdir / "export")

    # In another process, as it would be; and quiet, although the libraries log a lot.
    again = subprocess.run(
        command(workdir, **changes), cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert again.stdout.startswith(f"step {stopped_at + 1}/60 ")
    assert "Trained 60 steps" in again.stdout
    assert again.stderr == ""

    train.train(tiny_config(**changes), tmp_path / "undisturbed")
    assert weights(workdir / "export") == weights(tmp_path / "undisturbed" / "export")
    assert weights(workdir / "export") != halfway
    seen = [[line["step"] for line in metrics(d)] for d in (workdir, tmp_path / "undisturbed")]
    assert seen[0] == seen[1] == list(range(1, 61))


@pytest.mark.parametrize("step", [6, 8])
def test_a_request_at_any_moment_ends_in_a_checkpoint(step, finished, tmp_path, monkeypatch):
    # Neither has a checkpoint of its own; 6 validates, 8 only logs.
    with monkeypatch.context() as patch:
        interrupt_at(step, patch)
        totals = train.train(tiny_config(), tmp_path)
    assert step <= totals.step <= step + 1
    checkpoints = [int(path.name) for path in (tmp_path / "checkpoints").iterdir()]
    assert max(checkpoints) == totals.step
    assert json.loads((tmp_path / "export" / "training.json").read_text())["step"] == totals.step
    assert train.train(tiny_config(), tmp_path).step == TINY["steps"]
    assert weights(tmp_path / "export") == weights(finished / "export")
    last, undisturbed = metrics(tmp_path)[-1], metrics(finished)[-1]
    for name in ("step", "tokens", "valid_loss"):
        assert last[name] == undisturbed[name]


def test_metrics_after_the_checkpoint_are_removed(finished, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_at(5, patch)
        stopped = train.train(tiny_config(), tmp_path).step
    before = (tmp_path / "metrics.jsonl").read_text()
    # What a run that is killed a little later leaves behind.
    ahead = json.dumps(metrics(tmp_path)[-1] | {"step": stopped + 2})
    (tmp_path / "metrics.jsonl").write_text(f'{before}{ahead}\n{{"step": 1')
    train.train(tiny_config(), tmp_path)
    assert weights(tmp_path / "export") == weights(finished / "export")
    steps = [line["step"] for line in metrics(tmp_path)]
    assert steps == sorted(set(steps)) and steps[-1] == TINY["steps"]
    assert (tmp_path / "metrics.jsonl").read_text().startswith(before)


@pytest.mark.parametrize("line", ["[" * 10**5, '{"loss": 1}', "[1]", "7"])
def test_metrics_that_others_wrote_are_refused_by_their_line(tmp_path, line):
    space = train.Workspace(tmp_path)
    space.metrics.write_text(f'{{"step": 1}}\n{line}\n')
    with pytest.raises(ValueError, match=r"line 2 of \S+metrics.jsonl is not as this program"):
        space._cut_metrics(1)
    (tmp_path / "config.json").write_text(line)
    with pytest.raises(ValueError, match=r"config.json is not a config in JSON|another config"):
        space.claim({"steps": 1})


def test_a_finished_run_started_again_only_exports(finished):
    before, log = weights(finished / "export"), (finished / "metrics.jsonl").read_text()
    (finished / "export" / "model.safetensors").unlink()
    config = tiny_config(export_dir=str(finished / "published"), log_every=7)
    assert train.train(config, finished).step == TINY["steps"]
    assert weights(finished / "export") == before
    assert (finished / "metrics.jsonl").read_text() == log


# --- What is written --------------------------------------------------------------------------


def test_metrics_add_up(finished):
    lines = metrics(finished)
    # log_every 2, valid_every 6, checkpoint_every 5, and the end
    assert [line["step"] for line in lines] == [2, 4, 5, 6, 8, 10, 12, 14]
    for name in ("tokens", "seconds"):
        values = [line[name] for line in lines]
        assert values[0] > 0 and values == sorted(set(values))
    assert [line["valid_loss"] is None for line in lines] == [True] * 3 + [False] * 5
    assert lines[3]["valid_loss"] == lines[4]["valid_loss"] != lines[6]["valid_loss"]
    assert all(0 < line["loss"] < 10 for line in lines)
    assert {path.name for path in (finished / "checkpoints").iterdir()} == {"10", "14"}


@pytest.mark.parametrize("place", ["export", "published"])
def test_the_export_loads_and_generates(place, finished):
    lm = psmc.load(finished / place)
    assert lm.eos_ids == (0,)
    assert lm.config.num_layers == 1 and lm.config.vocab_size == len(lm.tokenizer) <= 320
    prompt = lm.tokenizer.encode("Mia has 5 red pens and 7 blue pens. How many pens is that?\n")
    result = psmc.sample(
        lm.model,
        lm.params,
        [prompt],
        key=jax.random.key(0),
        target=psmc.PowerTarget(alpha=2.0, eos_ids=lm.eos_ids),
        sampler=psmc.PowerSMC(num_particles=4),
        max_new_tokens=6,
    )
    tokens = np.asarray(result.tokens)
    assert tokens.shape == (1, 4, 6)
    assert ((tokens >= 0) & (tokens < lm.config.vocab_size)).all()
    assert np.isfinite(np.asarray(result.log_probs)).all()


def test_the_export_is_the_trained_model(finished):
    lm = psmc.load(finished / "export")
    evaluate = train.training.make_evaluate(lm.config, "float32")
    config = tiny_config()
    data = train.batches.DataConfig(config.seed, config.batch_size, config.max_tokens, 1)
    tokenizer = train.Tokenizer.from_file(str(finished / "export" / "tokenizer.json"))
    valid = train.batches.make_pool(tokenizer, data, pool=0, split="valid")
    assert evaluate(lm.params, valid) == pytest.approx(metrics(finished)[-1]["valid_loss"], 1e-5)


def test_the_record_beside_the_export_says_how_it_was_made(finished):
    record = json.loads((finished / "export" / "training.json").read_text())
    config = json.loads((finished / "config.json").read_text())
    config.pop("export_dir")
    assert record["config"] == config
    assert record["step"] == TINY["steps"]
    params = psmc.load(finished / "export").params
    assert record["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert record["versions"]["jax"] == jax.__version__
    assert str(finished) not in json.dumps(record)


# --- What is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "was"),
    [("learning_rate", 0.1, 0.002), ("model.mlp_size", 32, 16), ("steps", 20, 14)],
)
def test_a_changed_config_is_refused_by_name(name, value, was, finished):
    before = weights(finished / "export")
    with pytest.raises(ValueError, match=f"another config: {name} was {was} and is now {value}"):
        train.train(tiny_config(**{name: value}), finished)
    assert weights(finished / "export") == before
    assert json.loads((finished / "config.json").read_text())["learning_rate"] == 0.002


def test_every_changed_field_is_named_but_the_free_ones(tmp_path):
    work = train.Workspace(tmp_path)
    before = {"seed": 0, "model": {"layers": 1}, "sizes": (1, 2), "log_every": 5}
    work.claim(before)
    work.claim(before | {"log_every": 6})
    with pytest.raises(ValueError) as refusal:
        work.claim(before | {"seed": 1, "model": {"layers": 2}, "new": 3})
    for text in ("seed was 0 and", "model.layers was 1 and", "new was absent and is now 3"):
        assert text in str(refusal.value)
    assert "log_every" not in str(refusal.value) and "sizes" not in str(refusal.value)
    work.close()


def test_a_broken_config_of_the_run_is_named(tmp_path):
    work = train.Workspace(tmp_path)
    (tmp_path / "config.json").write_text('{"seed": ')
    with pytest.raises(ValueError, match=r"config\.json is not a config in JSON"):
        work.claim({"seed": 0})
    work.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, r"config\.steps is 0; it must be an integer of at least 1"),
        ({"log_every": -1}, r"config\.log_every is -1"),
        ({"valid_examples": 0}, r"config\.valid_examples is 0"),
        ({"vocab_size": 100}, r"config\.vocab_size is 100; it must be an integer of at least 257"),
        ({"max_tokens": 300}, r"max_tokens is 300, more than config\.model\.max_positions"),
        ({"compute_dtype": "int8"}, r"compute_dtype is 'int8'; allowed are float32, bfloat16"),
        ({"warmup_steps": 14}, r"warmup_steps is 14"),
        ({"learning_rate": float("inf")}, r"learning_rate is inf; it must be a finite number"),
        ({"batch_size": 0}, r"batch_size is 0"),
        ({"model.num_kv_heads": 3}, r"num_heads is 2; it must be a multiple"),
        ({"model.head_dim": 7}, r"head_dim is 7"),
    ],
)
def test_invalid_configs_are_refused_before_anything_is_written(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train.train(tiny_config(**changes), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_incomplete_configs_are_refused(tmp_path):
    with pytest.raises(ValueError, match="the config lacks b2, batch_size, checkpoint_every"):
        train.train(ConfigDict({"steps": 3}), tmp_path / "new")
    for change in ("less", "more"):
        config = tiny_config()
        with config.unlocked(), config.model.unlocked():
            if change == "less":
                del config.model.mlp_size
            else:
                config.model.mlp_sise = 16
        with pytest.raises(ValueError, match=r"config\.model does not describe a model .*mlp_si"):
            train.train(config, tmp_path / "new")
    assert not (tmp_path / "new").exists()


# Imports once and runs every case in a process of its own.
PROGRAM = """
import json, os, sys
from jax_power_smc.cli import train

for number, arguments in enumerate(json.loads(sys.argv[1])):
    child = os.fork()
    if not child:
        for fd, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{number}.{name}", os.O_WRONLY | os.O_CREAT), fd)
        sys.argv = ["train", *arguments]
        train.run()
    with open(f"{number}.code", "w") as file:
        file.write(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
"""
GOOD = [f"--config={ROOT / CONFIG}", "--workdir=new"]
BAD = {
    "no workdir": (GOOD[:1], "--workdir must have a value"),
    "no config": (GOOD[1:], "--config must have a value"),
    "unknown flag": ([*GOOD, "--wordkir=x"], "Unknown command line flag 'wordkir'"),
    "extra argument": ([*GOOD, "more"], "unexpected arguments: more"),
    "bad number": ([*GOOD, "--config.steps=many"], "--config.steps=many: invalid literal"),
    "bad value": (
        [*GOOD, "--config.steps=0"],
        "config.steps is 0; it must be an integer of at least 1.",
    ),
    "unknown field": ([*GOOD, "--config.stepps=9"], "stepps"),
    "absent file": (["--config=absent.py", GOOD[1]], "absent.py"),
    "broken file": (["--config=broken.py", GOOD[1]], "SyntaxError"),
    "empty file": (["--config=empty.py", GOOD[1]], "get_config"),
    "workdir is a file": ([GOOD[0], "--workdir=empty.py"], "empty.py: File exists."),
}


@pytest.fixture(scope="module")
def refusals(tmp_path_factory):
    """name -> (exit code, stdout, stderr), and the directory of the runs."""
    root = tmp_path_factory.mktemp("refusals")
    (root / "broken.py").write_text("def get_config(:\n")
    (root / "empty.py").write_text("")
    cases = [arguments for arguments, _ in BAD.values()]
    subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(cases)], cwd=root, check=True, timeout=120
    )
    return root, {
        name: tuple((root / f"{i}.{kind}").read_text() for kind in ("code", "out", "err"))
        for i, name in enumerate(BAD)
    }


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence_and_exit_code_2(name, refusals):
    root, outcomes = refusals
    code, out, err = outcomes[name]
    assert (code, out) == ("2", "")
    assert err.startswith("error: ") and err.count("\n") == 1
    assert BAD[name][1] in err
    assert not (root / "new").exists()
