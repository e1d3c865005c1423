"""The evaluation job, on a model whose every answer is known and on one that is random."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest
from etils import epath

import jax_power_smc as psmc
from jax_power_smc.core.prng import prompt_id
from jax_power_smc.evaluation import job, records, store
from jax_power_smc.evaluation.conditions import Conditions
from jax_power_smc.evaluation.scores import read
from jax_power_smc.evaluation.summary import Run
from jax_power_smc.tasks.base import Problem, Task
from jax_power_smc.tiny_reasoner import problems
from tests.evaluation import tiny
from tests.evaluation.grading import Later

ALPHA, N, CAP = 4.0, 4, 8
SEEDS = (0, 1, 2)
PLAIN = Run("plain", "plain", psmc.Ancestral(1.0))
GREEDY = Run("greedy", "greedy", psmc.Ancestral(0.0))
MANY = Run("many", "many samples", psmc.Ancestral(1.0, N))
POWER = Run("power", "power", psmc.PowerSMC(N))
SWOR = Run("swor", "without", psmc.WithoutReplacement(N))
CHAIN = Run("chain", "chain", psmc.MetropolisHastings(2, 2))
RUNS = [PLAIN, GREEDY, MANY, POWER, SWOR, CHAIN]
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
    return make_task(questions[: len(GOLD)], GOLD)


def make_task(questions, gold, ids="abcdefghijkl"):
    made = [Problem(*each) for each in zip(ids, questions, gold, strict=False)]
    return Task("word problems", tuple(made), "reasoner")


def make(lm, task, runs=(PLAIN,), seeds=(0,), cap=CAP, slots=4, **target):
    target = psmc.PowerTarget(**{"alpha": ALPHA, "eos_ids": lm.eos_ids, **target})
    prompts = job.tokenize(lm, task)
    made = Conditions(
        {"algorithm": 1},
        {run.name: {} for run in runs},
        job.problem_digests(task),
        job.rendering_digests(prompts),
    )
    return job.Job(lm, task, runs, target, cap, seeds, prompts, made, slots)


def run(made, workdir, report=lambda state: None, until=lambda: False, grader=None):
    """One start of a job in a workdir; returns the records of this start and of all."""
    workdir = epath.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    done = [read(record) for record in store.read_records(workdir)]
    with store.open_writer(workdir) as writer, grader or Later() as grader:
        scores = job.evaluate(made, done, writer, grader, report, until)
    everything = list(store.read_records(workdir))
    assert [read(r) for r in everything[len(done) :]] == scores
    return everything


def without_seconds(listed):
    """Item -> the rest of its record, which must not depend on anything else."""
    return {
        records.item_of(r): {name: value for name, value in r.items() if name != "seconds"}
        for r in listed
    }


def assert_same(ours, theirs):
    """Equal records, but for the seconds; numbers up to rounding."""
    ours, theirs = without_seconds(ours), without_seconds(theirs)
    assert ours.keys() == theirs.keys()
    for item, record in ours.items():
        assert _rounded(record) == _rounded(theirs[item]), item


def _rounded(value):
    if isinstance(value, dict):
        return {name: _rounded(x) for name, x in value.items()}
    if isinstance(value, list):
        return [_rounded(x) for x in value]
    return pytest.approx(value, abs=1e-4) if isinstance(value, float) else value


@dataclasses.dataclass
class Finished:
    """A whole evaluation of the known model.

    Attributes:
      records: of all items.
      states: what was reported.
      written: how many lines there were each time.
    """

    records: list
    states: list
    written: list

    def of(self, run, **fields):
        """The records of a run that have these values, by seed and problem."""
        wanted = {"run": run.name, **fields}
        found = [r for r in self.records if wanted.items() <= r.items()]
        return sorted(found, key=lambda r: (r["seed"], r["id"]))


@pytest.fixture(scope="module")
def finished(known, task, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("job")
    states, written = [], []

    def report(state):
        states.append(state)
        written.append(len((workdir / "records.jsonl").read_text().splitlines()))

    return Finished(run(make(known, task, RUNS, SEEDS), workdir, report), states, written)


# --- Records ----------------------------------------------------------------------------------


def test_there_is_one_record_for_each_run_seed_and_problem(finished):
    items = [records.item_of(r) for r in finished.records]
    assert sorted(items) == sorted(
        (run.name, seed, name) for run in RUNS for seed in SEEDS for name in "abcd"
    )
    assert list(dict.fromkeys(r["run"] for r in finished.records)) == [r.name for r in RUNS]


def test_a_record_says_what_was_asked_and_what_came_of_it(finished, task):
    for record in finished.records:
        problem = task.problems["abcd".index(record["id"])]
        assert (record["prompt"], record["gold"]) == (problem.prompt, problem.gold)
        assert record["prompt_id"] == prompt_id(record["id"])
        assert record["failure"] is None
        assert record["digest"].keys() == {
            *("algorithm", "sampler", "problem", "rendering", "seed"),
        }
        assert record["rendered"] == problem.prompt
        assert record["seconds"].keys() == {"compile", "prefill", "decode"}
        weights = [p["log_weight"] for p in record["particles"]]
        assert sum(math.exp(w) for w in weights if w is not None) == pytest.approx(1, abs=1e-5)
        assert record["particles"][record["choice"]]["log_weight"] is not None
        # The fourth particle without replacement is a sequence of probability exp(-40).
        for particle in (p for p in record["particles"] if p["log_prob"] > -20):
            assert len(particle["tokens"]) == tiny.LENGTH and particle["finished"]
            assert particle["text"] == f"answer {particle['parsed']}"
            assert particle["correct"] is (particle["parsed"] == str(record["gold"]))
            expected = math.log(tiny.DIGITS[int(particle["parsed"])])
            assert particle["log_prob"] == pytest.approx(expected, abs=1e-4)


def test_evidence_is_that_of_the_power_distribution(finished):
    # The known model has one random token, so that both estimates have no error.
    for run in (POWER, SWOR):
        for record in finished.of(run):
            assert record["log_evidence"] == pytest.approx(EVIDENCE, abs=1e-3)
    for run in (PLAIN, GREEDY, MANY, CHAIN):
        assert {record["log_evidence"] for record in finished.of(run)} == {None}


def test_what_a_record_holds_is_what_the_library_returns(finished, known, task):
    for run in (MANY, POWER, SWOR, CHAIN):
        for seed in SEEDS:
            result = psmc.sample(
                known.model,
                known.params,
                [known.encode(problem.prompt) for problem in task.problems],
                key=jax.random.key(seed),
                target=psmc.PowerTarget(ALPHA, known.eos_ids),
                sampler=run.sampler,
                max_new_tokens=CAP,
                prompt_ids=[prompt_id(problem.id) for problem in task.problems],
                prompts_per_batch=4,
            )
            draws = [known.tokenizer.decode(ids, skip_special_tokens=True) for ids in result.draw()]
            ours = finished.of(run, seed=seed)
            assert [r["particles"][r["choice"]]["text"] for r in ours] == draws
            assert [r["info"]["model_tokens"] for r in ours] == result.info.model_tokens.tolist()
            roots = result.info.distinct_roots.tolist()
            assert [r["info"]["distinct_roots"] for r in ours] == roots
    assert len({r["particles"][0]["text"] for r in finished.of(MANY)}) > 1


def test_the_genealogy_can_be_rebuilt_from_the_moves(random, task, tmp_path):
    listed = run(make(random, task, [POWER, SWOR]), tmp_path)
    for each, own in ((POWER, N), (SWOR, 2 * N)):
        result = psmc.sample(
            random.model,
            random.params,
            [random.encode(problem.prompt) for problem in task.problems],
            key=jax.random.key(0),
            target=psmc.PowerTarget(ALPHA, random.eos_ids),
            sampler=each.sampler,
            max_new_tokens=CAP,
            prompt_ids=[prompt_id(problem.id) for problem in task.problems],
            prompts_per_batch=4,
        )
        by_id = {r["id"]: r for r in listed if r["run"] == each.name}
        for place, problem in enumerate(task.problems):
            record = by_id[problem.id]
            steps = len(record["info"]["ess"])
            assert steps == max(len(p["tokens"]) for p in record["particles"])
            parent = np.tile(np.arange(own), (CAP, 1))
            for step, row, old in record["info"]["moves"]:
                parent[step, row] = old
            np.testing.assert_array_equal(parent, result.info.parent[place])
        assert any(r["info"]["moves"] for r in by_id.values()), "nothing ever moved"


def test_seconds_are_booked_once(finished):
    for run in RUNS:
        spent = [r["seconds"] for r in finished.of(run)]
        assert all(x >= 0 for each in spent for x in each.values())
        assert sum(each["decode"] for each in spent) > 0


def test_a_stop_rule_ends_the_answers_of_every_sampler(known, task, tmp_path):
    made = make(known, task, [PLAIN, POWER], stop=psmc.StopString("answer"))
    listed = run(made, tmp_path)
    assert {p["text"] for r in listed for p in r["particles"]} == {"answer"}


def test_a_prompt_without_any_weight_says_so_and_stops_no_other(known, task, tmp_path):
    # Two tokens are too few for an end, which the target asks for.
    listed = run(make(known, task, [POWER], cap=2, top_k=1, length="forced_eos"), tmp_path)
    assert all("weight zero" in record["failure"] for record in listed)
    assert len(listed) == len(GOLD) and all(read(record).failed for record in listed)


# --- What decides about an item ---------------------------------------------------------------


def test_an_answer_follows_its_id_wherever_the_problem_stands(random, questions, tmp_path):
    forwards = make_task(questions[:4], GOLD, "abcd")
    backwards = Task("backwards", forwards.problems[::-1], "reasoner")
    ours, theirs = (
        run(make(random, task, [POWER]), tmp_path / task.name) for task in (forwards, backwards)
    )
    assert_same(ours, theirs)
    assert len({r["particles"][0]["text"] for r in ours}) == 4


def test_equal_problems_of_different_ids_have_randomness_of_their_own(random, questions, tmp_path):
    listed = run(make(random, make_task(questions[:1] * 8, range(8))), tmp_path)
    assert len({r["particles"][0]["text"] for r in listed}) > 4


@pytest.mark.parametrize("each", [POWER, CHAIN], ids=["slots", "chains"])
def test_slots_change_nothing(random, questions, tmp_path, each, monkeypatch):
    monkeypatch.setattr(job, "CHAINS_BATCH", 5)
    task = make_task(questions, range(12))
    ours, theirs = (
        run(make(random, task, [each], (0, 1), slots=slots), tmp_path / str(slots))
        for slots in (4, 3)
    )
    assert len(ours) == 24
    assert_same(ours, theirs)


def test_verdicts_may_come_late_and_in_any_order(known, task, finished, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "MAX_PENDING", 7)
    grader = Later(after=100)
    listed = run(make(known, task, [PLAIN, POWER], SEEDS), tmp_path, grader=grader)
    assert grader.most == 8, "decoding waits for the grader when so many are pending"
    assert_same(listed, finished.of(PLAIN) + finished.of(POWER))


# --- Restarts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("lines", [0, 1, 5, 13, 17])
def test_a_restart_does_what_is_left(known, task, tmp_path, finished, lines):
    made = make(known, task, [PLAIN, POWER, CHAIN], SEEDS)
    whole = finished.of(PLAIN) + finished.of(POWER) + finished.of(CHAIN)
    kept = [json.dumps(r) + "\n" for r in whole[:lines]]
    (tmp_path / "records.jsonl").write_text("".join(kept) + '{"run": "pla')
    states = []
    assert_same(run(made, tmp_path, states.append), whole)
    assert (tmp_path / "records.jsonl").read_text().startswith("".join(kept))
    assert len(states) == len(whole) - lines
    # What was finished before counts as done.
    assert states[0].done == 1 + (lines if lines < 12 else lines - 12)
    assert states[0].total == len(SEEDS) * len(GOLD)


def test_a_finished_job_does_nothing_more(known, task, tmp_path, monkeypatch):
    made = make(known, task, [PLAIN, CHAIN])
    listed = run(made, tmp_path)
    monkeypatch.delattr(job, "Engine")
    monkeypatch.delattr(job.sample, "sample")
    assert run(made, tmp_path) == listed


@pytest.mark.parametrize("after", [0, 1, 3, 6])
def test_a_job_that_is_asked_to_stop_records_what_is_finished(
    known, task, tmp_path, finished, after
):
    made = make(known, task, [PLAIN, POWER], SEEDS, slots=4)
    states = []
    some = run(made, tmp_path, states.append, until=lambda: len(states) >= after)
    assert after <= len(some) < 12, "it went on"
    assert_same(run(made, tmp_path), finished.of(PLAIN) + finished.of(POWER))


@pytest.mark.parametrize("run_", [PLAIN, CHAIN], ids=["slots", "chains"])
def test_what_has_come_out_together_is_all_recorded(known, task, tmp_path, run_):
    states = []
    made = make(known, task, [run_], SEEDS)
    some = run(made, tmp_path, states.append, until=lambda: bool(states))
    # Four problems to a batch; answers of one length leave the four slots together.
    assert len(some) == len(GOLD)


def test_chains_are_given_up_between_moves(known, task, tmp_path, finished):
    made, asked = make(known, task, [CHAIN], SEEDS), []

    def until():
        asked.append(None)
        return len(asked) > 3

    assert run(made, tmp_path, until=until) == []
    assert len(asked) < 3 + 8, "not at once"
    assert_same(run(made, tmp_path), finished.of(CHAIN))


# --- Progress ---------------------------------------------------------------------------------


def test_progress_is_reported_after_every_record(finished):
    each = len(SEEDS) * len(GOLD)
    assert [(s.label, s.done) for s in finished.states] == [
        (run.label, done) for run in RUNS for done in range(1, each + 1)
    ]
    assert finished.written == list(range(1, len(RUNS) * each + 1))
    for state in finished.states:
        assert state.total == each
        # Of few items nothing can be told.
        assert math.isnan(state.seconds_left) == (state.done < job.ENOUGH)
        assert (state.seconds_left == 0) == (state.done == each)


def test_what_the_rows_were_used_for_is_reported(finished):
    for state in finished.states:
        chains = state.label == CHAIN.label
        assert (state.stats is None) == chains
        assert chains or 0 < state.stats.row_steps <= state.stats.table_steps


def test_accuracy_so_far_is_that_of_the_draws(finished):
    for run in RUNS:
        right = [read(r).answers["draw"].correct for r in finished.records if r["run"] == run.name]
        reported = [s.accuracy for s in finished.states if s.label == run.label]
        np.testing.assert_allclose(reported, np.cumsum(right) / np.arange(1, len(right) + 1))


# --- What is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"min_new_tokens": CAP + 1}, "min_new_tokens is 9"),
        ({"eos_ids": (10**6,)}, "eos_ids"),
        ({"runs": [Run("mh", "mh", psmc.MetropolisHastings(CAP + 1))]}, "num_blocks"),
        ({"cap": 0}, "max_new_tokens is 0; it must be an integer"),
        ({"cap": 250}, "the prompt of problem '.' has .* tokens and max_new_tokens is 250; .* 256"),
        ({"slots": 0}, "is 0; it must be an integer of at least 1"),
    ],
)
def test_what_would_stop_it_later_is_refused_before(known, task, values, message):
    with pytest.raises(ValueError, match=message):
        job.check(make(known, task, **values))


@pytest.mark.parametrize(
    ("kind", "gold", "message"),
    [
        ("choice", "K", "problem 'a': gold is 'K'; it must be a letter from A to J"),
        ("code", {"prompt": "", "test": "", "entry_point": "a.b"}, "entry_point is 'a.b'"),
    ],
)
def test_what_no_grader_takes_is_refused_before(known, kind, gold, message):
    task = dataclasses.replace(make_task(["What?"], [gold]), kind=kind)
    with pytest.raises(ValueError, match=message):
        job.check(make(known, task))


def test_an_empty_prompt_is_refused(known):
    with pytest.raises(ValueError, match=r"the prompt is ' .n'; it must hold"):
        job.check(make(known, make_task(["What?", " \n"], GOLD)))


def test_what_can_be_done_is_not_refused(known, task):
    job.check(make(known, task, RUNS, SEEDS))
    # 248 tokens with the newline.
    job.check(make(known, make_task(["3" * 247], GOLD)))
