"""The evaluation job, on a model whose every answer is known and on one that is random."""

import dataclasses
import json
import math
import statistics

import jax
import numpy as np
import pytest

import jax_power_smc as psmc
from jax_power_smc.evaluation import job
from jax_power_smc.evaluation.intervals import wilson
from jax_power_smc.evaluation.methods import Row, Run
from jax_power_smc.randomness import prompt_id
from jax_power_smc.reasoner import problems
from tests.evaluation import tiny

ALPHA, N, CAP = 4.0, 4, 8
SEEDS = (0, 1, 2)
PLAIN = Run(psmc.Ancestral(1.0), (Row("plain", "draw"),), 1.0)
GREEDY = Run(psmc.Ancestral(0.0), (Row("greedy", "draw"),), 0.0)
MANY = Run(psmc.Ancestral(1.0, N), (Row("best", "best"), Row("vote", "vote")), 1.0)
POWER = Run(psmc.PowerSMC(N), (Row("power", "draw"),), 1 / ALPHA)
RUNS = [PLAIN, GREEDY, MANY, POWER]
ROWS = ["plain", "greedy", "best", "vote", "power"]
# The known model never says 7.
GOLD = (3, 4, 5, 7)
EVIDENCE = math.log(sum(p**ALPHA for p in tiny.DIGITS.values()))


@pytest.fixture(autouse=True, scope="module")
def compiled_once(tmp_path_factory):
    with tiny.compiled_once(tmp_path_factory):
        yield


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    return psmc.load(tiny.write_known(tmp_path_factory.mktemp("known")))


@pytest.fixture(scope="module")
def random(tmp_path_factory):
    return psmc.load(tiny.write_random(tmp_path_factory.mktemp("random")))


@pytest.fixture(scope="module")
def questions(known):
    """Questions that the engine pads to one length."""
    listed = [problem.question for problem in problems.problems("test", 30)]
    return [text for text in listed if 64 < len(known.encode(text)) <= 128][:12]


@pytest.fixture(scope="module")
def task(questions):
    return job.Task(tuple("abcd"), questions[: len(GOLD)], GOLD, problems.parse_answer)


def run(lm, task, workdir, runs=(PLAIN,), seeds=(0,), report=lambda *state: None):
    target = psmc.PowerTarget(ALPHA, lm.eos_ids)
    return job.evaluate(lm, task, runs, target, CAP, seeds, workdir, report)


def read(workdir):
    return [json.loads(line) for line in (workdir / "records.jsonl").read_text().splitlines()]


def by_problem(records):
    """Records are written batch by batch, short prompts first."""
    return sorted(records, key=lambda record: record["problem"])


@dataclasses.dataclass
class Finished:
    """A whole evaluation of the known model.

    Attributes:
      scores: what it returned.
      records: the lines of its file.
      reports: row name -> the states that were reported, with the number of lines written then.
    """

    scores: list
    records: list
    reports: dict

    def of(self, row, **fields):
        """The records of a row that have these values."""
        wanted = {"method": row, **fields}
        return by_problem(r for r in self.records if wanted.items() <= r.items())


@pytest.fixture(scope="module")
def finished(known, task, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("job") / "made" / "by the job"
    reports = {}

    def report(name, *state):
        reports.setdefault(name, []).append((*state, len(read(workdir))))

    scores = run(known, task, workdir, RUNS, SEEDS, report)
    return Finished(scores, read(workdir), reports)


# --- Records ----------------------------------------------------------------------------------


def test_there_is_one_record_for_each_row_seed_and_problem_short_prompts_first(
    finished, known, task
):
    got = [(r["method"], r["seed"], r["problem"]) for r in finished.records]
    lengths = [len(known.encode(text)) for text in task.prompts]
    assert len(set(lengths)) > 1
    assert got == [
        (row.name, seed, problem)
        for run in RUNS
        for seed in SEEDS
        for row in run.rows
        for problem in sorted(range(len(GOLD)), key=lambda i: lengths[i])
    ]


def test_a_record_says_what_was_asked_and_how_it_was_judged(finished, task):
    for record in finished.records:
        assert set(record) == {
            *("method", "num_particles", "seed", "problem", "prompt", "gold"),
            *("id", "response", "parsed", "log_prob", "failure", "correct"),
        }
        assert record["id"] == task.ids[record["problem"]] and record["failure"] is None
        assert record["prompt"] == task.prompts[record["problem"]]
        assert record["gold"] == GOLD[record["problem"]]
        assert record["num_particles"] == (1 if record["method"] in ("plain", "greedy") else N)
        assert record["correct"] is (record["parsed"] == record["gold"])
        if record["method"] == "vote":
            assert record["response"] is None
        else:
            assert record["response"] == f"answer {record['parsed']}"
            expected = math.log(tiny.DIGITS[record["parsed"]])
            assert record["log_prob"] == pytest.approx(expected, abs=1e-4)


def test_greedy_decoding_gives_the_most_probable_answer(finished):
    assert [r["parsed"] for r in finished.of("greedy")] == [3] * len(GOLD) * len(SEEDS)
    assert finished.scores[ROWS.index("greedy")].correct.tolist() == [1, 0, 0, 0]


def test_best_and_vote_are_read_off_the_same_samples(finished, known, task):
    for seed in SEEDS:
        result = psmc.sample(
            known.model,
            known.params,
            [known.encode(text) for text in task.prompts],
            key=jax.random.key(seed),
            target=psmc.PowerTarget(ALPHA, known.eos_ids),
            sampler=MANY.sampler,
            max_new_tokens=CAP,
            prompt_ids=[prompt_id(name) for name in task.ids],
        )
        texts = result.texts(known.tokenizer)
        answers = [[int(text.removeprefix("answer ")) for text in row] for row in texts]
        log_probs = np.asarray(result.log_probs)
        best, vote = finished.of("best", seed=seed), finished.of("vote", seed=seed)
        for i, row in enumerate(answers):
            # The answer of highest log p is the smallest digit; a tie of votes goes to the first.
            assert best[i]["parsed"] == min(row)
            assert best[i]["log_prob"] == pytest.approx(log_probs[i].max(), abs=1e-6)
            assert vote[i]["parsed"] == statistics.mode(row)
            assert vote[i]["log_prob"] == pytest.approx(log_probs[i].mean(), abs=1e-6)
    assert [r["parsed"] for r in finished.of("best")] != [r["parsed"] for r in finished.of("vote")]


def test_an_answer_that_cannot_be_read_is_wrong(random, task, tmp_path):
    scores = run(random, task, tmp_path, [PLAIN, MANY])
    assert [s.accuracy for s in scores] == [0.0] * 3
    records = read(tmp_path)
    assert {(r["parsed"], r["correct"]) for r in records} == {(None, False)}
    assert all(isinstance(r["response"], str) for r in records if r["method"] != "vote")


def test_answers_belong_to_their_prompts(random, task, tmp_path):
    run(random, task, tmp_path, [GREEDY])
    records = by_problem(read(tmp_path))
    log_probs = [r["log_prob"] for r in records]
    assert len(set(log_probs)) == len(GOLD), "equal prompts would show no wrong order"
    backwards = psmc.sample(
        random.model,
        random.params,
        [random.encode(text) for text in reversed(task.prompts)],
        key=jax.random.key(0),
        target=psmc.PowerTarget(ALPHA, random.eos_ids),
        sampler=GREEDY.sampler,
        max_new_tokens=CAP,
    )
    expected = np.asarray(backwards.log_probs)[::-1, 0]
    np.testing.assert_allclose(log_probs, expected, rtol=1e-5)
    texts = backwards.texts(random.tokenizer)
    assert [r["response"] for r in records] == [row[0] for row in reversed(texts)]


def test_batches_change_nothing(random, questions, tmp_path, monkeypatch):
    task = job.Task(tuple("abcdefghijkl"), questions, tuple(range(12)), len)
    calls = {3: [], 4: []}
    for largest, seen in calls.items():
        monkeypatch.setattr(job, "LARGEST_BATCH", largest)
        run(
            random,
            task,
            tmp_path / str(largest),
            report=lambda *state, seen=seen: seen.append(state),
        )
    assert [[state[1] for state in seen] for seen in calls.values()] == [[3, 6, 9, 12], [4, 8, 12]]
    records = read(tmp_path / "3")
    assert records == read(tmp_path / "4")
    assert [r["problem"] for r in by_problem(records)] == list(range(12))
    # Every problem has randomness of its own, also across batches.
    assert len({r["response"] for r in records}) > 6


def test_an_answer_follows_its_id_wherever_the_problem_stands(random, questions, tmp_path):
    ids = tuple("abcd")
    forwards = job.Task(ids, questions[:4], range(4), len)
    backwards = job.Task(ids[::-1], questions[:4][::-1], range(4), len)
    answers = []
    for name, task in (("forwards", forwards), ("backwards", backwards)):
        run(random, task, tmp_path / name, [POWER])
        answers.append({r["id"]: r["response"] for r in read(tmp_path / name)})
    assert answers[0] == answers[1] and len(set(answers[0].values())) == 4


def test_equal_problems_of_different_ids_have_randomness_of_their_own(random, questions, tmp_path):
    task = job.Task(tuple("abcdefgh"), [questions[0]] * 8, range(8), len)
    run(random, task, tmp_path, [PLAIN])
    assert len({r["response"] for r in read(tmp_path)}) > 4


def test_ids_that_are_not_different_are_refused(known, questions, tmp_path):
    task = job.Task(("a", "b", "a"), questions[:3], GOLD[:3], problems.parse_answer)
    with pytest.raises(ValueError, match="3 problems and 2 different ids"):
        run(known, task, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_prompt_without_any_weight_says_so_and_stops_no_other(known, task, tmp_path, monkeypatch):
    sample = job.engine.sample

    def one_dead(*args, **kwargs):
        result = sample(*args, **kwargs)
        return dataclasses.replace(result, log_weights=result.log_weights.at[0].set(-jax.numpy.inf))

    monkeypatch.setattr(job.engine, "sample", one_dead)
    scores = run(known, task, tmp_path, [POWER, MANY])
    records = read(tmp_path)
    dead = [r for r in records if r["failure"] is not None]
    assert [r["method"] for r in dead] == ["power", "best", "vote"]
    for r in dead:
        assert "weight zero" in r["failure"]
        assert (r["response"], r["parsed"], r["correct"]) == (None, None, False)
        assert r["log_prob"] is None
    assert all(r["parsed"] in tiny.DIGITS for r in records if r["failure"] is None)
    # They are wrong answers, but no values to average.
    power = scores[0]
    kept = [r["log_prob"] for r in records if r["method"] == "power" and r["failure"] is None]
    assert len(kept) == len(GOLD) - 1 and power.log_prob == pytest.approx(statistics.mean(kept))
    assert power.log_evidence == pytest.approx(EVIDENCE, abs=1e-3) and power.failed == 1
    summary = job.summarize(scores, ALPHA, [])
    assert [row["failed"] for row in summary["rows"]] == [1, 1, 1]


def test_nothing_is_averaged_where_every_prompt_failed(known, task, tmp_path):
    # Two tokens are too few for an end, which the target asks for.
    target = psmc.PowerTarget(ALPHA, known.eos_ids, top_k=1, length="forced_eos")
    (scores,) = job.evaluate(known, task, [POWER], target, 2, (0,), tmp_path, lambda *state: None)
    assert scores.failed == len(GOLD) and scores.accuracy == 0
    assert math.isnan(scores.log_prob) and math.isnan(scores.log_evidence)
    row = job.summarize([scores], ALPHA, [])["rows"][0]
    assert row["mean_log_prob"] is None and row["log_evidence"] is None


def test_a_stop_rule_ends_the_answers_of_every_method(known, task, tmp_path):
    target = psmc.PowerTarget(ALPHA, known.eos_ids, stop=psmc.StopString("answer"))
    job.evaluate(known, task, [PLAIN, POWER], target, CAP, (0,), tmp_path, lambda *state: None)
    assert {r["response"] for r in read(tmp_path)} == {"answer"}


@pytest.mark.parametrize(
    ("target", "runs", "message"),
    [
        ({"min_new_tokens": CAP + 1}, [PLAIN], "min_new_tokens is 9"),
        ({"eos_ids": (10**6,)}, [PLAIN], "eos_ids"),
        (
            {},
            [PLAIN, Run(psmc.MetropolisHastings(CAP + 1), (Row("mh", "draw"),), 1.0)],
            "num_blocks",
        ),
    ],
)
def test_targets_and_samplers_that_cannot_be_leave_older_records_in_place(
    known, task, tmp_path, target, runs, message
):
    (tmp_path / "records.jsonl").write_text("older\n")
    target = psmc.PowerTarget(**{"alpha": ALPHA, "eos_ids": known.eos_ids, **target})
    with pytest.raises(ValueError, match=message):
        job.evaluate(known, task, runs, target, CAP, (0,), tmp_path, lambda *state: None)
    assert [path.name for path in tmp_path.iterdir()] == ["records.jsonl"]


@pytest.mark.parametrize("field", ["ids", "answers"])
def test_a_task_needs_an_id_and_an_answer_for_every_problem(known, task, tmp_path, field):
    for values in (getattr(task, field)[:-1], (*getattr(task, field), "more")):
        with pytest.raises(ValueError, match="needs one of each"):
            run(known, dataclasses.replace(task, **{field: values}), tmp_path / "new")
    assert not (tmp_path / "new").exists()


# --- Scores -----------------------------------------------------------------------------------


def test_rows_come_in_the_order_of_the_runs(finished):
    assert [s.row.name for s in finished.scores] == ROWS
    assert [s.run for s in finished.scores] == [PLAIN, GREEDY, MANY, MANY, POWER]


def test_accuracy_is_the_mean_of_the_records(finished):
    for score in finished.scores:
        judged = [r["correct"] for r in finished.of(score.row.name)]
        assert score.accuracy == pytest.approx(statistics.mean(judged))
    # Random answers: right now and then, or the test above would not tell much.
    assert 0 < finished.scores[0].accuracy < 1


def test_seeds_are_averaged_within_each_problem(finished):
    for score in finished.scores:
        for problem in range(len(GOLD)):
            judged = [r["correct"] for r in finished.of(score.row.name, problem=problem)]
            assert len(judged) == len(SEEDS)
            assert score.correct[problem] == pytest.approx(statistics.mean(judged))
    shares = np.concatenate([score.correct for score in finished.scores])
    assert np.any((shares > 0.01) & (shares < 0.99)), "no problem on which the seeds differ"


def test_log_prob_is_the_mean_of_the_records(finished):
    for score in finished.scores:
        log_probs = [r["log_prob"] for r in finished.of(score.row.name)]
        assert score.log_prob == pytest.approx(statistics.mean(log_probs))


def test_tokens_are_those_of_all_particles_for_one_problem(finished):
    particles = {"plain": 1, "greedy": 1, "best": N, "vote": N, "power": N}
    for score in finished.scores:
        assert score.tokens == particles[score.row.name] * tiny.LENGTH


def test_evidence_is_that_of_the_power_distribution(finished):
    # The known model has one random token, so that the estimate has no error.
    evidence = {s.row.name: s.log_evidence for s in finished.scores}
    assert evidence.pop("power") == pytest.approx(EVIDENCE, abs=1e-3)
    assert all(math.isnan(value) for value in evidence.values())


def test_times_are_those_of_the_run(known, task, tmp_path, monkeypatch):
    sample = job.engine.sample

    def timed(*args, **kwargs):
        result = sample(*args, **kwargs)
        result.info.seconds.update(compile=100.0, prefill=1.0, decode=2.0)
        return result

    monkeypatch.setattr(job.engine, "sample", timed)
    best, vote = run(known, task, tmp_path, [MANY], seeds=(0, 1))
    # Two calls for eight answers; compilation is kept apart.
    assert best.seconds == vote.seconds == 2 * (1 + 2) / 8
    assert best.compile_seconds == vote.compile_seconds == 2 * 100


def test_progress_is_reported_after_every_batch(finished):
    assert list(finished.reports) == ["plain", "greedy", "best", "power"]
    written = 0
    for name, states in finished.reports.items():
        total = len(GOLD) * len(SEEDS)
        assert [state[:2] for state in states] == [(done, total) for done in (4, 8, 12)]
        accuracy, left = zip(*(state[2:4] for state in states), strict=True)
        assert accuracy[-1] == pytest.approx(finished.scores[ROWS.index(name)].accuracy)
        first = [r["correct"] for r in finished.of(name, seed=SEEDS[0])]
        assert accuracy[0] == pytest.approx(statistics.mean(first))
        assert left[0] > 0 and left[-1] == 0
        # The records of a batch are in the file before it is reported.
        rows = 2 if name == "best" else 1
        assert [state[4] for state in states] == [written + rows * done for done in (4, 8, 12)]
        written += rows * total


# --- Again ------------------------------------------------------------------------------------


def test_a_seed_gives_the_same_answers_whatever_else_is_evaluated(finished, known, task, tmp_path):
    run(known, task, tmp_path, [PLAIN, POWER], seeds=(2,))
    records = read(tmp_path)
    for row in ("plain", "power"):
        again = by_problem(r for r in records if r["method"] == row)
        assert again == finished.of(row, seed=2)
    answers = [[r["parsed"] for r in finished.of("plain", seed=seed)] for seed in SEEDS]
    assert answers[0] != answers[1] or answers[0] != answers[2]


def test_older_records_are_kept_under_another_name(random, task, tmp_path):
    contents = []
    for seed in (0, 1, 0):
        run(random, task, tmp_path, seeds=(seed,))
        contents.append((tmp_path / "records.jsonl").read_text())
    files = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert files == {
        "records.1.jsonl": contents[0],
        "records.2.jsonl": contents[1],
        "records.jsonl": contents[2],
    }
    assert contents[0] == contents[2] != contents[1]


# --- The summary ------------------------------------------------------------------------------


def strictly(summary):
    """The summary after a round through JSON, which has no not-a-number and no infinity."""
    return json.loads(json.dumps(summary, allow_nan=False))


def test_the_summary_holds_every_row(finished):
    pairs = [{"method": "power", "against": "plain", "difference": 0.1, "ci95": [0.0, 0.2]}]
    summary = strictly(job.summarize(finished.scores, ALPHA, pairs))
    assert summary["device"] == jax.devices()[0].device_kind
    assert summary["problems"] == len(GOLD)
    assert summary["comparisons"] == pairs
    assert [row["method"] for row in summary["rows"]] == ROWS
    for row, score in zip(summary["rows"], finished.scores, strict=True):
        assert row == {
            "method": score.row.name,
            "sampler": "PowerSMC" if score.row.name == "power" else "Ancestral",
            "num_particles": 1 if score.row.name in ("plain", "greedy") else N,
            "alpha": ALPHA,
            "temperature": score.run.temperature,
            "accuracy": score.accuracy,
            "ci95": list(wilson(score.accuracy, len(GOLD))),
            "mean_log_prob": score.log_prob,
            "log_evidence": score.log_evidence if score.row.name == "power" else None,
            "failed": 0,
            "tokens_per_problem": score.tokens,
            "seconds_per_problem": score.seconds,
            "multiple": score.seconds / finished.scores[0].seconds,
        }


def test_compilation_is_counted_once_for_each_run(finished):
    seconds = {id(s.run): s.compile_seconds for s in finished.scores}
    assert len(seconds) == len(RUNS) < len(finished.scores)
    summary = job.summarize(finished.scores, ALPHA, [])
    assert summary["compile_seconds"] == pytest.approx(sum(seconds.values()))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_becomes_null(finished, value):
    broken = dataclasses.replace(finished.scores[-1], log_prob=value, log_evidence=value)
    row = strictly(job.summarize([broken], ALPHA, []))["rows"][0]
    assert row["mean_log_prob"] is None and row["log_evidence"] is None


# --- What is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ((), "nothing to evaluate: no seeds"),
        ((0, 1, 0), r"seeds is \(0, 1, 0\); they must differ"),
        ((0, 0.5), r"seeds\[1\] is 0.5; it must be an integer"),
        ((True,), r"seeds\[0\] is True; it must be an integer"),
        (("0",), r"seeds\[0\] is '0'; it must be an integer"),
        ((-1,), r"seeds\[0\] is -1; it must be an integer of at least 0"),
        # JAX would take this for seed 0.
        ((0, 2**32), r"seeds\[1\] is 4294967296; it must be an integer of at most"),
    ],
)
def test_seeds_that_cannot_be(known, task, tmp_path, seeds, message):
    with pytest.raises(ValueError, match=message):
        run(known, task, tmp_path / "new", seeds=seeds)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "nothing to evaluate: no problems"),
        (["What?", " \n"], "the prompt is ' .n'; it must hold some text"),
        (
            ["What?", "3" * 249],
            "problem 1 has 250 tokens and max_new_tokens is 8; .* 256 positions",
        ),
    ],
)
def test_prompts_that_cannot_be(known, tmp_path, prompts, message):
    task = job.Task("abcd"[: len(prompts)], prompts, range(len(prompts)), problems.parse_answer)
    with pytest.raises(ValueError, match=message):
        run(known, task, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_longest_prompt_that_fits_is_taken(known, tmp_path):
    # 248 tokens with the newline; nothing is run, so that nothing is compiled for this length.
    task = job.Task(("a",), ["3" * 247], (3,), problems.parse_answer)
    assert run(known, task, tmp_path, runs=[]) == []
    assert read(tmp_path) == []


@pytest.mark.parametrize("cap", [0, -3, 2.0])
def test_caps_that_cannot_be(known, task, tmp_path, cap):
    target = psmc.PowerTarget(ALPHA, known.eos_ids)
    with pytest.raises(ValueError, match=f"max_new_tokens is {cap}; it must be an integer"):
        job.evaluate(known, task, RUNS, target, cap, (0,), tmp_path / "new", lambda *state: None)
    assert not (tmp_path / "new").exists()


def test_a_refusal_leaves_older_records_in_place(known, task, tmp_path):
    (tmp_path / "records.jsonl").write_text("older\n")
    with pytest.raises(ValueError, match="no seeds"):
        run(known, task, tmp_path, seeds=())
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "records.jsonl": "older\n"
    }


def test_a_file_in_place_of_the_workdir(known, task, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        run(known, task, tmp_path / "file")
