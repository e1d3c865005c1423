"""The evaluation launcher, on a model whose every answer is known."""

import contextlib
import dataclasses
import datetime
import errno
import fcntl
import io
import json
import pathlib
import re
import runpy
import shutil

import jax
import pytest
from etils import epath
from ml_collections import ConfigDict
from safetensors.numpy import load_file, save_file

import jax_power_smc as psmc
from jax_power_smc.cli import evaluate, evaluate_start
from jax_power_smc.core.process_group import ProcessGroup
from jax_power_smc.evaluation import appender, claim, conditions, records, store
from jax_power_smc.evaluation.scores import read
from jax_power_smc.evaluation.summary import Run, summarize
from jax_power_smc.report.job_status import status_of
from jax_power_smc.report.load import read_report
from jax_power_smc.tasks.load import load_task
from jax_power_smc.tiny_reasoner import problems
from tests.cli.command import ROOT, assert_refused, call, outcomes
from tests.evaluation import tiny

CONFIG = "configs/tiny_reasoner.py"
N, LIMIT = 4, 4
SMALL = {
    "limit": LIMIT,
    "split": "valid",
    "problem_seed": 3,
    "seeds": (0, 1),
    "num_particles": N,
    "ramp_tokens": 2,
    "max_new_tokens": 16,
    "slots": 4,
}
# The generator itself, which the fixture `easy` replaces.
MADE = problems.problems
# The known model never says 7.
GOLD = (3, 4, 5, 7)
RUNS = ["temperature_1", "low_temperature", "greedy", "samples", "mh", "smc", "smc_ramp", "swor"]


@pytest.fixture(autouse=True, scope="module")
def compiled_once(tmp_path_factory):
    with tiny.compiled_once(tmp_path_factory):
        yield


@pytest.fixture(autouse=True, scope="module")
def one_device():
    """Of the devices of the tests the launcher sees the first, or it would make a mesh of all."""
    with pytest.MonkeyPatch.context() as patch:
        first = jax.local_devices()[:1]
        patch.setattr(evaluate.jax, "local_devices", lambda: first)
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.write_known(tmp_path_factory.mktemp("model"))


def make_config(model, /, **changes):
    """The published config made small; values of any type, as a config file may hold them."""
    config = runpy.run_path(str(ROOT / CONFIG))["get_config"]()
    with config.unlocked():
        for name, value in (SMALL | {"model": str(model)} | changes).items():
            if name in config:
                del config[name]
            config[name] = value
    return config


def small_config(model, /, **changes):
    """The same through its fields, so that what refers to them follows."""
    config = runpy.run_path(str(ROOT / CONFIG))["get_config"]()
    config.update(SMALL | {"model": str(model)} | changes)
    return config


def strictly(text):
    """Parses JSON that holds no not-a-number and no infinity."""

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


@dataclasses.dataclass
class Finished:
    """An evaluation in which the problems have answers that the known model may give.

    Attributes:
      returned: the summary that was returned.
      out: what was printed.
      workdir: where the files are.
      listed: the problems.
    """

    returned: dict
    out: str
    workdir: pathlib.Path
    listed: list

    def summary(self):
        return strictly((self.workdir / "summary.json").read_text())

    def records(self):
        lines = (self.workdir / "records.jsonl").read_text().splitlines()
        return [strictly(line) for line in lines]


@pytest.fixture(scope="module")
def easy():
    """Answers of the problems that the known model may give; the list of problems asked for."""
    listed = []

    def changed(split, limit, seed):
        for problem, answer in zip(MADE(split, limit, seed), GOLD, strict=False):
            listed.append(dataclasses.replace(problem, answer=answer))
            yield listed[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(problems, "problems", changed)
        yield listed


@pytest.fixture(scope="module")
def finished(model, easy, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("evaluate") / "new"
    with contextlib.redirect_stdout(io.StringIO()) as out:
        returned = evaluate.evaluate(small_config(model), str(workdir))
    return Finished(returned, out.getvalue(), workdir, list(easy[:LIMIT]))


# --- What is written --------------------------------------------------------------------------


def test_every_item_is_recorded_once(finished):
    items = [records.item_of(record) for record in finished.records()]
    assert sorted(items) == sorted(
        (run, seed, problem.key) for run in RUNS for seed in (0, 1) for problem in finished.listed
    )
    assert list(dict.fromkeys(run for run, _, _ in items)) == RUNS


def test_records_hold_the_problems_that_the_config_names(finished):
    by_id = {problem.key: problem for problem in finished.listed}
    assert len(by_id) == LIMIT
    assert all(problems.split_of(problem.key) == "valid" for problem in finished.listed)
    for record in finished.records():
        problem = by_id[record["id"]]
        assert (record["prompt"], record["gold"]) == (problem.question, problem.answer)
        for particle in record["particles"]:
            answer = problems.parse_answer(particle["text"])
            assert particle["parsed"] == (None if answer is None else str(answer))
            assert particle["correct"] is (answer == problem.answer)


def test_the_summary_is_that_of_the_records(finished):
    summary = finished.summary()
    assert summary == strictly(json.dumps(finished.returned))
    samplers = evaluate.job_config.samplers(small_config("m"))
    runs = [
        Run(name, evaluate.job_config.labels(small_config("m"))[name], sampler)
        for name, sampler in samplers.items()
    ]
    ids = [problem.key for problem in finished.listed]
    readings = [read(record) for record in finished.records()]
    expected = summarize(readings, runs, ids, [0, 1], 4.0, summary["device"])
    assert summary == strictly(json.dumps(expected))
    assert summary["complete"] and summary["problems"] == LIMIT
    assert len({row["accuracy"] for row in summary["rows"]}) > 1, "all alike would show no mix-up"


def test_every_row_of_the_summary_has_what_readers_rely_on(finished):
    for row in finished.summary()["rows"]:
        assert row.keys() >= {
            *("sampler", "num_particles", "alpha", "temperature", "accuracy", "ci95"),
            *("mean_log_prob", "log_evidence", "tokens_per_problem", "seconds_per_problem"),
            "multiple",
        }
        assert row["alpha"] == 4.0


def test_the_workdir_says_what_was_asked_for(finished):
    about = strictly((finished.workdir / "config.json").read_text())
    assert about["config"]["seeds"] == [0, 1] and about["config"]["num_particles"] == N
    assert about["config"]["samplers"]["swor"]["num_particles"] == N
    assert list(about["labels"]) == RUNS and about["chat"] is True
    assert about["versions"].keys() >= {"jax_power_smc", "jax", "flax", "transformers"}
    assert about["hash"] == claim.hash_of(about)
    assert [each["versions"] for each in about["starts"]] == [about["versions"]]
    assert about["date"] == str(datetime.date.today()) and about["commit"] is None


def test_every_record_says_what_it_was_made_with(finished, model):
    about = strictly((finished.workdir / "config.json").read_text())
    made = conditions.conditions_of(about)
    assert about["fingerprint"] == psmc.load(model).fingerprint
    for record in finished.records():
        assert record["digest"] == made.digests(records.item_of(record))
        assert record["rendered"] == record["prompt"]
        assert len(record["digest"]) == 9


# --- What is printed --------------------------------------------------------------------------


def test_keys_do_not_depend_on_the_environment():
    expected = evaluate_start._keys()
    with jax.default_prng_impl("unsafe_rbg"):
        assert evaluate_start._keys() == expected
    assert expected["implementation"] == "threefry2x32"


def test_the_table_and_where_the_files_are(finished):
    first = finished.out.splitlines()[0]
    assert "8 samplers, alpha 4, at most 16 tokens, seeds 0, 1" in first
    assert "; chat model, no BOS, answers end at <|end|> (0), date " in first
    assert first.endswith(str(datetime.date.today()))
    for label in ("temperature 1/4", "Power-SMC, ramp 2", "without replacement"):
        assert label in finished.out
    assert f"{finished.workdir}/records*.jsonl" in finished.out
    assert f"launch.report --workdir={finished.workdir}" in finished.out


# --- Restarts ---------------------------------------------------------------------------------


def test_a_finished_job_says_so_and_reads_no_model(model, easy, finished, monkeypatch, capsys):
    monkeypatch.delattr(evaluate, "load")
    again = evaluate.evaluate(small_config(model), str(finished.workdir))
    out = capsys.readouterr().out
    assert again == finished.returned and "64 of 64 items were finished" in out


def test_a_job_that_was_asked_to_stop_goes_on(model, easy, finished, tmp_path, capsys):
    config, before = small_config(model), (finished.workdir / "records.jsonl").read_text()
    stopped = evaluate.evaluate(config, str(tmp_path), until=lambda: True)
    assert not stopped["complete"] and stopped["rows"] == []
    assert "0 of 64 items finished; the same command resumes it" in capsys.readouterr().out
    kept = before.splitlines(keepends=True)[:61]
    (tmp_path / "records.jsonl").write_text("".join(kept) + '{"torn')
    rest = evaluate.evaluate(config, str(tmp_path))
    out = capsys.readouterr().out
    assert "61 of 64 items were finished" in out and "torn last line of 6 bytes" in out
    assert rest["complete"]
    assert [r["accuracy"] for r in rest["rows"]] == [
        r["accuracy"] for r in finished.returned["rows"]
    ]
    assert (tmp_path / "records.jsonl").read_text().startswith("".join(kept))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": 2.0}, "alpha is 2.0, there it is 4.0; samplers.low_temperature.temperature is"),
        ({"num_particles": 3}, "samplers.samples.num_samples is 3, there it is 4"),
        ({"problem_seed": 4}, "problem_seed is 4, there it is 3"),
        ({"max_new_tokens": 17}, "max_new_tokens is 17, there it is 16"),
        ({"dtype": "bfloat16"}, 'dtype is "bfloat16", there it is null'),
        ({"ramp_tokens": 3}, "samplers.smc_ramp.ramp_tokens is 3, there it is 2"),
    ],
)
def test_another_config_is_refused_with_the_fields_that_differ(
    model, easy, finished, change, message
):
    before = (finished.workdir / "records.jsonl").read_text()
    with pytest.raises(ValueError, match=message):
        evaluate.evaluate(small_config(model, **change), str(finished.workdir))
    assert (finished.workdir / "records.jsonl").read_text() == before


def test_other_grading_processes_are_no_other_config(model, easy, finished):
    config = small_config(model, grading_processes=1)
    assert evaluate.evaluate(config, str(finished.workdir)) == finished.returned


@pytest.mark.parametrize(
    "part",
    ["algorithm", "model", "target", "grading", "keys", "sampler", "problem", "rendering", "seed"],
)
def test_records_of_other_conditions_are_refused_and_named(model, easy, finished, tmp_path, part):
    shutil.copy(finished.workdir / "config.json", tmp_path)
    listed = finished.records()
    listed[5]["digest"][part] = "0123456789ab"
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in listed))
    run, seed, name = records.item_of(listed[5])
    named = re.escape(
        f"holds 1 record(s) made under other conditions than those of its job "
        f"({run}, seed {seed}, {name!r}: {part})"
    )
    for read_again in (
        lambda: evaluate.evaluate(small_config(model), str(tmp_path)),
        lambda: read_report(epath.Path(tmp_path)),
    ):
        with pytest.raises(ValueError, match=named):
            read_again()


def test_a_problem_that_has_changed_is_refused(model, easy, finished, monkeypatch):
    make = evaluate.load_task

    def changed(*args, **options):
        task = make(*args, **options)
        first = dataclasses.replace(task.problems[0], gold=8)
        return dataclasses.replace(task, problems=(first, *task.problems[1:]))

    monkeypatch.setattr(evaluate, "load_task", changed)
    with pytest.raises(ValueError, match=r"holds 16 record\(s\) .* seed 0, '.*': problem; "):
        evaluate.evaluate(small_config(model), str(finished.workdir))


def test_a_workdir_of_an_earlier_version_is_refused(model, easy, finished, tmp_path):
    held = json.loads((finished.workdir / "config.json").read_text())
    old = {name: held[name] for name in ("hash", "config", "chat", "labels", "device", "versions")}
    (tmp_path / "config.json").write_text(json.dumps(old))
    with pytest.raises(ValueError, match=r"was written by an earlier version.* start in a new"):
        evaluate.evaluate(small_config(model), str(tmp_path))


# --- A scope that grows or shrinks --------------------------------------------------------------


def few(model, names=("smc", "mh"), /, **changes):
    """With some of the samplers only."""
    config = small_config(model, **changes)
    for name in set(config.samplers) - set(names):
        del config.samplers[name]
    return config


def items(workdir):
    lines = (workdir / "records.jsonl").read_text().splitlines()
    return [records.item_of(json.loads(line)) for line in lines]


def test_a_scope_may_grow_and_what_is_finished_is_kept(model, easy, tmp_path, capsys):
    evaluate.evaluate(few(model, ("smc",), limit=2, seeds=(0,)), str(tmp_path))
    before = (tmp_path / "records.jsonl").read_text()
    for changes, names, done, total in (
        ({"limit": 4, "seeds": (0,)}, ("smc",), 2, 4),
        ({"limit": 4, "seeds": (0,)}, ("smc", "mh"), 4, 8),
        ({"limit": 4, "seeds": (0, 1)}, ("smc", "mh"), 8, 16),
    ):
        capsys.readouterr()
        summary = evaluate.evaluate(few(model, names, **changes), str(tmp_path))
        assert f"{done} of {total} items were finished" in capsys.readouterr().out
        assert summary["complete"] and summary["problems"] == 4
        assert len(items(tmp_path)) == len(set(items(tmp_path))) == total
    assert (tmp_path / "records.jsonl").read_text().startswith(before)
    assert len(json.loads((tmp_path / "config.json").read_text())["starts"]) == 4
    assert len(read_report(epath.Path(tmp_path)).items) == 16


def test_a_scope_may_shrink_and_grow_again(model, easy, tmp_path, capsys):
    whole = few(model, ("smc", "greedy"), seeds=(0, 1))
    first = evaluate.evaluate(whole, str(tmp_path))
    before = (tmp_path / "records.jsonl").read_text()
    smaller = few(model, ("smc",), limit=3, seeds=(1,))
    summary = evaluate.evaluate(smaller, str(tmp_path))
    assert "3 of 3 items were finished" in capsys.readouterr().out
    assert summary["complete"] and (summary["problems"], summary["seeds"]) == (3, [1])
    data = read_report(epath.Path(tmp_path))
    assert {item.scores.item[:2] for item in data.items} == {("smc", 1)} and len(data.items) == 3
    assert status_of(data).text == "finished: 3 items"
    assert evaluate.evaluate(whole, str(tmp_path)) == first
    assert (tmp_path / "records.jsonl").read_text() == before


def test_a_sampler_that_comes_back_changed_is_refused(model, easy, tmp_path):
    evaluate.evaluate(few(model, ("smc", "greedy"), limit=2), str(tmp_path))
    evaluate.evaluate(few(model, ("greedy",), limit=2), str(tmp_path))
    config = few(model, ("smc", "greedy"), limit=2)
    config.samplers.smc.ess_threshold = 0.25
    with pytest.raises(ValueError, match=r"4 record\(s\) .*\(smc, seed 0, '.*': sampler; "):
        evaluate.evaluate(config, str(tmp_path))


# --- The model and the date -------------------------------------------------------------------


def change_one_weight(directory):
    tensors = load_file(directory / "model.safetensors")
    tensors["lm_head.weight"] = tensors["lm_head.weight"].copy()
    tensors["lm_head.weight"][0, 0] += 1e-3
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("is_stopped", [True, False])
def test_weights_that_have_changed_since_the_first_start_are_refused(
    model, easy, tmp_path, is_stopped
):
    copy = shutil.copytree(model, tmp_path / "model")
    config, workdir = few(copy, ("greedy",), limit=2), tmp_path / "job"
    evaluate.evaluate(config, str(workdir), until=lambda: is_stopped)
    change_one_weight(copy)
    with pytest.raises(ValueError, match="records of another model: its weights changed since"):
        evaluate.evaluate(config, str(workdir))


def test_a_hub_model_that_has_moved_is_refused_with_its_commits(model, easy, tmp_path, monkeypatch):
    commits = ["a" * 40, "b" * 40]
    for commit in commits:
        shutil.copytree(model, tmp_path / f"models--me--it/snapshots/{commit}")
    moved = tmp_path / f"models--me--it/snapshots/{commits[1]}"
    change_one_weight(moved)
    (moved / "tokenizer_config.json").write_text("{}")
    load = evaluate.load
    config = few("me/it", ("greedy",), limit=2)
    for number, commit in enumerate(commits):
        directory = tmp_path / f"models--me--it/snapshots/{commit}"
        monkeypatch.setattr(evaluate, "load", lambda name, at=directory, **more: load(at, **more))
        if number:
            message = (
                f"model .commit {commits[0]} then, {commits[1]} now.: its tokenizer_config.json"
            )
            with pytest.raises(ValueError, match=message):
                evaluate.evaluate(config, str(tmp_path / "job"))
        else:
            evaluate.evaluate(config, str(tmp_path / "job"), until=lambda: True)
    assert json.loads((tmp_path / "job/config.json").read_text())["commit"] == commits[0]


def test_a_template_with_the_date_of_today_keeps_that_of_the_first_start(
    model, easy, tmp_path, monkeypatch, capsys
):
    copy = shutil.copytree(model, tmp_path / "model")
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    settings["chat_template"] = (
        "{% for m in messages %}{{ strftime_now('%d %b %Y') }} {{ m['content'] }}{% endfor %}\n"
    )
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    config, workdir = few(copy, ("greedy",), limit=3, seeds=(0,)), tmp_path / "job"
    days = iter([datetime.date(2026, 7, 31), datetime.date(2026, 8, 1)])
    monkeypatch.setattr(evaluate.start, "today", lambda: next(days))
    states = []

    def until():
        path = workdir / "records.jsonl"
        states.append(path.exists() and bool(path.read_text()))
        return states[-1]

    config.slots = 1
    evaluate.evaluate(config, str(workdir), until=until)
    assert 1 <= len(items(workdir)) < 3
    assert "date 2026-07-31" in capsys.readouterr().out
    evaluate.evaluate(config, str(workdir))
    assert "chat model, no BOS," in (out := capsys.readouterr().out)
    assert "date 2026-07-31" in out.splitlines()[0]
    listed = [json.loads(line) for line in (workdir / "records.jsonl").read_text().splitlines()]
    assert len(listed) == 3
    for record in listed:
        assert record["rendered"].strip() == f"31 Jul 2026 {record['prompt']}".strip()


# --- Several processes ------------------------------------------------------------------------


@pytest.fixture
def waits(monkeypatch):
    """Names of the waits for other processes, none of which is there."""
    noted = []
    monkeypatch.setattr(ProcessGroup, "barrier", lambda self, name, *more: noted.append(name))
    monkeypatch.setattr(ProcessGroup, "broadcast", lambda self, name, value: value)
    monkeypatch.setattr(ProcessGroup, "gather", lambda self, name, value: [value] * self.count)
    return noted


@pytest.mark.parametrize(
    "field",
    [
        *("version.code", "version.jax", "device", "config.alpha"),
        *("jax.local_devices", "jax.enable_x64", "jax.matmul_precision"),
    ],
)
def test_processes_that_differ_are_named(monkeypatch, field):
    def gather(self, name, value):
        other = json.loads(value)
        *parts, last = field.split(".")
        inner = other[parts[0]] if parts else other
        assert last in inner
        inner[last] = "another"
        return [value, json.dumps(other)]

    monkeypatch.setattr(ProcessGroup, "gather", gather)
    with pytest.raises(ValueError, match=f'process 1 has {field} "another" .process 0: '):
        evaluate_start.agree_on_start(ProcessGroup(0, 2), small_config("m"))


def test_processes_compare_the_settings_of_jax_that_change_results(monkeypatch):
    said = []

    def gather(self, name, value):
        said.append(json.loads(value)["jax"])
        return [value] * self.count

    monkeypatch.setattr(ProcessGroup, "gather", gather)
    evaluate_start.agree_on_start(ProcessGroup(0, 2), small_config("m"))
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        evaluate_start.agree_on_start(ProcessGroup(0, 2), small_config("m"))
    devices = {"local_devices": jax.local_device_count()}
    assert said[0] == devices | {"enable_x64": False, "matmul_precision": None}
    assert said[1] == devices | {"enable_x64": True, "matmul_precision": "highest"}


def test_a_workdir_is_locked_until_all_processes_have_done_their_share(
    model, easy, tmp_path, monkeypatch, waits
):
    def is_locked():
        with open(tmp_path / ".lock", "ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    file, locked = tmp_path / "records-00000.jsonl", []

    def barrier(self, name, *more):
        if file.exists() and file.stat().st_size:
            locked.append(is_locked())

    monkeypatch.setattr(ProcessGroup, "barrier", barrier)
    evaluate.evaluate(small_config(model), str(tmp_path), processes=ProcessGroup(0, 2))
    assert len(file.read_text().splitlines()) == 32
    assert locked[0]


@pytest.mark.parametrize("answer", ["True", "False"])
def test_all_processes_go_on_or_not_as_the_first_one_says(
    model, easy, finished, tmp_path, monkeypatch, waits, answer
):
    # The last record was written after the first one had looked, and before this one did.
    for file in ("config.json", "records.jsonl"):
        shutil.copy(finished.workdir / file, tmp_path)

    def broadcast(self, name, value):
        return answer if value in ("True", "False") else value

    monkeypatch.setattr(ProcessGroup, "broadcast", broadcast)
    assert evaluate.evaluate(small_config(model), str(tmp_path), processes=ProcessGroup(1, 2)) == {}
    assert ("the workdir is claimed" in waits) == (answer == "False")


def test_a_process_that_finds_other_records_than_the_first_one_is_refused(
    model, easy, finished, tmp_path, monkeypatch, waits
):
    shutil.copy(finished.workdir / "config.json", tmp_path)
    said = {"whether all is finished": "False", "what is finished": "other"}
    monkeypatch.setattr(ProcessGroup, "broadcast", lambda self, name, value: said.get(name, value))
    with pytest.raises(ValueError, match=r"process 1 does not find in .* what process 0 does"):
        evaluate.evaluate(small_config(model), str(tmp_path), processes=ProcessGroup(1, 2))


# --- Dry runs ---------------------------------------------------------------------------------


def test_what_another_job_finishes_meanwhile_is_not_done_again(
    model, easy, finished, tmp_path, monkeypatch
):
    kept = (finished.workdir / "records.jsonl").read_text().splitlines(keepends=True)
    shutil.copy(finished.workdir / "config.json", tmp_path)
    (tmp_path / "records.jsonl").write_text("".join(kept[:5]))
    load = evaluate.load

    def slow(*args, **options):
        # Here the other one ends, after this one has read what is finished.
        (tmp_path / "records.jsonl").write_text("".join(kept[:60]))
        return load(*args, **options)

    monkeypatch.setattr(evaluate, "load", slow)
    summary = evaluate.evaluate(small_config(model), str(tmp_path))
    assert summary["complete"]
    assert len((tmp_path / "records.jsonl").read_text().splitlines()) == len(kept)


@pytest.mark.parametrize("name", ["digest", "particles", "choice", "seconds", "info"])
def test_a_damaged_record_is_named(model, easy, finished, tmp_path, name):
    shutil.copy(finished.workdir / "config.json", tmp_path)
    listed = finished.records()
    del listed[2][name]
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in listed))
    with pytest.raises(ValueError, match=r"line 3 of .*the line has no|by an earlier version"):
        evaluate.evaluate(small_config(model), str(tmp_path))


# --- What others make of a workdir ---------------------------------------------------------------


@pytest.fixture(scope="module")
def short(model, easy, tmp_path_factory):
    """The workdir of a finished job of four items, its config and its summary."""
    config, workdir = few(model, ("greedy",), limit=2), tmp_path_factory.mktemp("short") / "job"
    return workdir, config, evaluate.evaluate(config, str(workdir))


def without_seconds(workdir):
    """Item -> its record, from all files."""
    listed = [r for r in store.read_records(epath.Path(workdir)) if r.pop("seconds")]
    return {records.item_of(record): record for record in listed}


EDITS = {
    "id": (lambda r: r | {"id": "other"}, "prompt_id is .*as id is 'other'"),
    "run": (lambda r: r | {"run": 7}, "run is 7; it must be a text"),
    "seed": (
        lambda r: r | {"seed": 1 - r["seed"]},
        r"1 record.s. .* \(greedy, seed .: seed\)|seed",
    ),
    "weight": (lambda r: _with_particle(r, log_weight=float("nan")), "NaN is not a number in JSON"),
    "large weight": (lambda r: _with_particle(r, log_weight=1000), "log_weight is 1000"),
    "choice": (lambda r: r | {"choice": -1}, "choice is -1"),
}


def _with_particle(record, **changes):
    first, *rest = record["particles"]
    return record | {"particles": [first | changes, *rest]}


def edit_line(workdir, number, edit):
    """Edits one record; returns its line."""
    lines = (workdir / "records.jsonl").read_text().splitlines(keepends=True)
    lines[number] = json.dumps(edit(json.loads(lines[number]))) + "\n"
    (workdir / "records.jsonl").write_text("".join(lines))
    return lines[number]


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_record_is_named(short, tmp_path, name):
    workdir, config, _ = short
    copy = shutil.copytree(workdir, tmp_path / "job")
    edit, message = EDITS[name]
    edit_line(copy, 1, edit)
    for read_again in (
        lambda: evaluate.evaluate(config, str(copy)),
        lambda: read_report(epath.Path(copy)),
    ):
        with pytest.raises(ValueError, match=message) as refusal:
            read_again()
        assert "line 2 of" in str(refusal.value) or name == "seed"
        assert "--redo_damaged" in str(refusal.value)


def test_edited_records_are_kept_aside_and_done_again_on_request(short, tmp_path, capsys):
    workdir, config, _ = short
    copy = shutil.copytree(workdir, tmp_path / "job")
    names = ("seed", "weight", "choice")
    edited = [edit_line(copy, number, EDITS[name][0]) for number, name in enumerate(names)]
    summary = evaluate.evaluate(config, str(copy), redo_damaged=True)
    out = capsys.readouterr().out
    assert "3 lines that are not records" in out and "1 of 4 items were finished" in out
    assert summary["complete"] and without_seconds(copy) == without_seconds(workdir)
    (aside,) = copy.glob("set-aside-*.jsonl")
    assert aside.read_text() == "".join(edited)
    assert len(read_report(epath.Path(copy)).items) == 4


def test_nothing_is_set_aside_where_nothing_is_wrong(short, tmp_path, capsys):
    workdir, config, summary = short
    copy = shutil.copytree(workdir, tmp_path / "job")
    assert evaluate.evaluate(config, str(copy), redo_damaged=True) == summary
    assert "lines that are not" not in capsys.readouterr().out
    assert (copy / "records.jsonl").read_bytes() == (workdir / "records.jsonl").read_bytes()


def once_recorded(workdir, act):
    """For ``until``: acts as soon as there is a record."""
    done = []

    def until():
        path = workdir / "records.jsonl"
        if not done and path.exists() and path.read_text():
            done.append(act(path))
        return False

    return until


def remove_all(path):
    shutil.rmtree(path.parent)


def replace(path):
    path.with_name("new").write_text(path.read_text().replace("greedy", "gready"))
    path.with_name("new").rename(path)


@pytest.mark.parametrize("act", [remove_all, replace])
def test_records_that_others_remove_or_replace_meanwhile_are_all_there(
    short, tmp_path, act, caplog
):
    workdir, config, summary = short
    config = ConfigDict(config.to_dict() | {"slots": 1})
    target = tmp_path / "job"
    made = evaluate.evaluate(config, str(target), until=once_recorded(target, act))
    assert made["complete"]
    assert [row["accuracy"] for row in made["rows"]] == [row["accuracy"] for row in summary["rows"]]
    found = {item: r for item, r in without_seconds(target).items() if item[0] == "greedy"}
    assert found == without_seconds(workdir)
    assert (target / "records-rescued-1.jsonl").exists()
    assert "records.jsonl was removed or replaced while the job runs; it goes on in" in caplog.text
    assert len(read_report(epath.Path(target)).items) == 4


def test_records_that_are_cut_meanwhile_are_finished_only_if_they_are_there(
    short, tmp_path, monkeypatch, caplog, capsys
):
    workdir, config, _ = short
    monkeypatch.setattr(appender, "MOST_KEPT", 1)
    config = ConfigDict(config.to_dict() | {"slots": 1})
    target, states = tmp_path / "job", []

    def until():
        path = target / "records.jsonl"
        if not states and path.exists() and path.read_text().count("\n") >= 2:
            states.append(path.write_text(""))
        return False

    assert not evaluate.evaluate(config, str(target), until=until)["complete"]
    assert "Stopped with 3 of 4 items finished; the same" in capsys.readouterr().out
    assert "records.jsonl was changed while the job runs" in caplog.text
    assert evaluate.evaluate(config, str(target))["complete"]
    assert without_seconds(target) == without_seconds(workdir)


def test_a_workdir_may_be_moved_while_the_job_runs(short, tmp_path, capsys):
    workdir, config, _ = short
    config = ConfigDict(config.to_dict() | {"slots": 1})
    old, new = tmp_path / "job", tmp_path / "moved"
    made = evaluate.evaluate(
        config, str(old), until=once_recorded(old, lambda path: old.rename(new))
    )
    assert made["complete"] and not old.exists()
    assert f"Every answer: {new}/records*.jsonl" in capsys.readouterr().out
    assert without_seconds(new) == without_seconds(workdir)
    assert strictly((new / "summary.json").read_text())["complete"]
    assert len((new / "records.jsonl").read_text().splitlines()) == 4


def test_the_table_of_a_finished_job_needs_no_writing(short, tmp_path, monkeypatch, capsys):
    workdir, config, _ = short

    def refuse(path, value):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(store, "write_json", refuse)
    smaller = ConfigDict(config.to_dict() | {"limit": 1})
    for each in (config, smaller):
        assert evaluate.evaluate(each, str(workdir))["complete"]
        out = capsys.readouterr().out
        assert f"{workdir} stays as it is ({workdir}/" in out and "Read-only file system)" in out
        assert "greedy" in out
    # One that has work to do, or has done some, says what is wrong.
    with pytest.raises(OSError, match="Read-only"):
        evaluate.evaluate(config, str(tmp_path / "new"))


@pytest.mark.parametrize(
    ("workdir", "message"), [("", "workdir is empty"), ("ftp://host/dir", "can write there")]
)
def test_a_workdir_that_cannot_be(workdir, message):
    with pytest.raises(ValueError, match=message):
        evaluate.evaluate(small_config("tiny-reasoner"), workdir)


@pytest.mark.parametrize("name", ["chat", "device", "date", "decided"])
def test_a_config_that_no_job_wrote_is_named(model, easy, finished, tmp_path, name):
    held = json.loads((finished.workdir / "config.json").read_text())
    del held[name]
    (tmp_path / "config.json").write_text(json.dumps(held))
    with pytest.raises(ValueError, match=r"config.json is not what a job wrote"):
        evaluate.evaluate(small_config(model), str(tmp_path))


def test_a_dry_run_needs_no_weights(tmp_path, capsys):
    config = small_config("tiny-reasoner", dry_run=True)
    for name in ("mh", "samples", "greedy", "low_temperature", "smc_ramp"):
        del config.samplers[name]
    summary = evaluate.evaluate(config, str(tmp_path))
    assert summary["complete"] and summary["problems"] == 2 and summary["seeds"] == [0]
    assert "DRY RUN" in capsys.readouterr().out


# --- What is refused --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model", "limit", "seeds", "samplers", "grading_seconds"])
def test_a_field_that_is_missing_is_named(name, tmp_path):
    config = make_config("no/such/model")
    del config[name]
    with pytest.raises(ValueError, match=f"the config lacks {name}"):
        evaluate.evaluate(config, str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


INTEGERS = ("limit", "problem_seed", "num_particles", "ramp_tokens", "max_new_tokens")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        *((name, "3", f"config.{name} is '3'; it must be an integer") for name in INTEGERS),
        *((name, 2.0, f"config.{name} is 2.0; it must be an integer") for name in INTEGERS),
        *((name, True, f"config.{name} is True; it must be an integer") for name in INTEGERS),
        *((name, -1, f"config.{name} is -1; it must be an integer") for name in INTEGERS),
        *((name, 2**31, f"config.{name} is 2147483648; it must be") for name in INTEGERS),
        ("limit", 0, "config.limit is 0; it must be an integer of at least 1"),
        ("max_new_tokens", 0, "config.max_new_tokens is 0; it must be an integer of at least 1"),
        ("max_new_tokens", 8, "config.samplers.mh: num_blocks is 16"),
        ("model", 5, "config.model is 5; it must be a name"),
        ("split", "dev", "config.split is 'dev'; allowed are train, valid, test"),
        ("alpha", 0.5, "alpha is 0.5; it must be a finite number of at least 1"),
        ("alpha", "4", "alpha is '4'; it must be a finite number"),
        ("alpha", float("nan"), "alpha is nan"),
        ("seeds", 0, "config.seeds is 0; it must be a tuple of integers"),
        ("seeds", (), r"config.seeds is \(\); at least one seed is needed"),
        ("seeds", (1, 1), r"config.seeds is \(1, 1\); they must differ"),
        ("slots", 0, "config.slots is 0; it must be an integer of at least 1"),
    ],
)
def test_fields_are_checked_before_the_model_is_read(name, value, message, tmp_path):
    config = make_config("no/such/model", **{name: value})
    with pytest.raises(ValueError, match=message):
        evaluate.evaluate(config, str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


# --- The command line -------------------------------------------------------------------------


def flags(model, workdir="new", config=ROOT / CONFIG, **changes):
    values = SMALL | {"model": model, "limit": 3, "seeds": "(0,)"} | changes
    values = {f"config.{name}": value for name, value in values.items()}
    return [f"--{n}={v}" for n, v in ({"config": config, "workdir": workdir} | values).items()]


@pytest.fixture
def code_config(tmp_path):
    """Changes to a config for a job whose answers are programs."""
    gold = {"prompt": "def f():\n", "test": "def check(f):\n    f()\n", "entry_point": "f"}
    (tmp_path / "code.jsonl").write_text(json.dumps({"id": "a", "question": "f", "answer": gold}))
    return {
        "task": "jsonl",
        "split": "test",
        "grader": "code",
        "data": str(tmp_path / "code.jsonl"),
        "allow_code_execution": True,
    }


def test_code_that_cannot_be_isolated_is_refused_before_the_model_is_read(
    code_config, monkeypatch, tmp_path
):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"apt-get install bubblewrap.*code_isolation=none"):
        evaluate.evaluate(small_config("no/such", **code_config), str(tmp_path / "job"))
    assert not (tmp_path / "job").exists()


@pytest.mark.parametrize("kind", ["bubblewrap", "none"])
def test_a_job_says_that_code_runs_without_isolation(kind, code_config, tmp_path):
    config = small_config("any", code_isolation=kind, **code_config)
    task, date = load_task(config, chat=False), datetime.date(2026, 1, 1)
    scope = conditions.Scope(["smc"], (0,), ["a"])
    stored = {"decided": "a base model"}
    plan = evaluate_start.Plan(config, tmp_path, task, [], scope, date, stored, {})
    headline = evaluate_start.headline(plan, None)
    assert ("RUNS WITHOUT ISOLATION" in headline) == (kind == "none")


BAD = {
    "limit": "config.limit is 0; it must be an integer of at least 1",
    "alpha": "alpha is 0.0; it must be a finite number of at least 1",
    "no particles": "config.num_particles is 0; it must be an integer of at least 1",
    "split": "config.split is 'dev'; allowed are train, valid, test",
    "no seeds": "at least one seed is needed",
    "seed": "config.seeds[0] is 0.5; it must be an integer",
    "lacking field": "the config lacks seeds, num_particles",
    "wrong type": "config.limit is '3'; it must be an integer",
    "wrong type of a flag": "--config.limit=many: invalid literal",
    "unknown field": "bogus",
    "no config": "--config must have a value",
    "no workdir": "--workdir must have a value",
    "extra argument": "unexpected arguments: more",
    "workdir is a file": "lacking.py",
    "no such model": "'no/such' is neither a directory nor fully in the hub's cache",
    "no config.json": "has no config.json",
    "missing tensor": "missing lm_head.weight",
    "long answer": "together they must not exceed the model's 256 positions",
    "code": "config.allow_code_execution is False",
}


@pytest.fixture(scope="module")
def refusals(model, tmp_path_factory):
    """The directory of the runs, and name -> (exit code, stdout, stderr)."""
    root = tmp_path_factory.mktemp("refusals")
    program = "import runpy\ndef get_config():\n    c = runpy.run_path({!r})['get_config']()\n"
    program = program.format(str(ROOT / CONFIG)) + "    {}\n    return c.unlock()\n"
    (root / "lacking.py").write_text(program.format("del c.seeds, c.num_particles"))
    (root / "wrong.py").write_text(program.format("del c.limit; c.unlock().limit = '3'"))
    empty, missing = root / "empty", shutil.copytree(model, root / "missing")
    empty.mkdir()
    tensors = load_file(missing / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, missing / "model.safetensors")
    cases = {
        "limit": flags(model, limit=0),
        "alpha": flags(model, alpha=0),
        "no particles": flags(model, num_particles=0),
        "split": flags(model, split="dev"),
        "no seeds": flags(model, seeds="()"),
        "seed": flags(model, seeds="(0.5,)"),
        "lacking field": ["--config=lacking.py", "--workdir=new"],
        "wrong type": ["--config=wrong.py", "--workdir=new"],
        "wrong type of a flag": flags(model, limit="many"),
        "unknown field": flags(model, bogus=1),
        "no config": ["--workdir=new"],
        "no workdir": flags(model)[:1],
        "extra argument": [*flags(model), "more"],
        "workdir is a file": flags(model, workdir="lacking.py"),
        "no such model": flags("no/such"),
        "no config.json": flags(empty),
        "missing tensor": flags(missing),
        "long answer": flags(model, max_new_tokens=250),
        "code": flags(model, task="humaneval", split="test"),
    }
    return root, outcomes("evaluate", cases, root)


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence(name, refusals):
    root, outcome = refusals
    assert_refused(outcome[name], BAD[name])
    assert not (root / "new").exists()


@pytest.mark.slow
def test_the_command_writes_its_files(model, tmp_path):
    arguments = flags(model, tmp_path / "new", config=CONFIG, split="test")
    code, out, err = call("evaluate", *arguments)
    assert (code, err) == ("0", "")
    summary = strictly((tmp_path / "new/summary.json").read_text())
    assert list(dict.fromkeys(row["run"] for row in summary["rows"])) == RUNS
    lines = (tmp_path / "new/records.jsonl").read_text().splitlines()
    listed = list(MADE("test", 3, 3))
    assert sorted((r["run"], r["prompt"], r["gold"]) for r in map(strictly, lines)) == sorted(
        (run, problem.question, problem.answer) for run in RUNS for problem in listed
    )
    assert "without replacement" in out
