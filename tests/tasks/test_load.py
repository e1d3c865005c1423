"""``load_task``: from a config to prompts, with a hub that is a dictionary."""

import json
import sys
import time
import types

import pytest

from jax_power_smc.evaluation import job_config
from jax_power_smc.tasks import prompts
from jax_power_smc.tasks.hub_data import UnavailableError, is_hub_dataset
from jax_power_smc.tasks.load import DATASETS, kind_of, load_task
from jax_power_smc.tiny_reasoner import problems

RECORDS = [
    {"problem": f"Q{i}", "answer": str(i), "id": f"p{i}", "solution": f"S{i}"} for i in range(4)
]


def make_config(**changes):
    config = job_config.default()
    config.update({"task": "math500"} | changes)
    return config


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "problems.jsonl", RECORDS)


class Hub:
    """Stands in for the library: answers from a dictionary and records the calls."""

    def __init__(self, splits):
        self.splits, self.asked = splits, []

    def load_dataset(self, name, config, *, split):
        self.asked.append((name, config, split))
        if (name, config, split) not in self.splits:
            raise ConnectionError("Couldn't reach\nthe hub.")
        return self.splits[name, config, split]


@pytest.fixture
def hub(monkeypatch):
    made = Hub({})
    module = types.ModuleType("datasets")
    module.load_dataset = made.load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)
    return made


# --- Files ------------------------------------------------------------------------------------


def test_problems_of_a_file(file):
    task = load_task(make_config(data=file))
    assert (task.name, task.kind) == ("MATH-500", "math")
    assert [(p.id, p.gold) for p in task.problems] == [(f"p{i}", str(i)) for i in range(4)]
    assert task.problems[1].prompt == prompts.MATH.replace("{question}", "Q1")


def test_the_limit_takes_the_first_and_reads_no_further(tmp_path):
    file = write(tmp_path / "a.jsonl", [*RECORDS[:2], {"problem": "no answer"}])
    assert [p.id for p in load_task(make_config(data=file, limit=2)).problems] == ["p0", "p1"]
    with pytest.raises(ValueError, match=r"line 3 of a.jsonl lacks answer; it has problem\."):
        load_task(make_config(data=file, limit=3))


def test_a_relative_path_is_not_a_hub_dataset():
    assert is_hub_dataset("openai/gsm8k") and is_hub_dataset("a/b.c")
    names = ("data/problems.jsonl", "a/b.json", "a/b.csv", "a/b.json.gz", "./a/b", "gs://a/b", "a")
    assert not any(map(is_hub_dataset, names))


def test_a_file_takes_precedence_over_a_dataset_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_hub_dataset("some/one")
    (tmp_path / "some").mkdir()
    write(tmp_path / "some/one", RECORDS[:1])
    assert not is_hub_dataset("some/one")
    assert len(load_task(make_config(data="some/one")).problems) == 1


def test_equal_ids_are_refused(tmp_path):
    file = write(tmp_path / "a.jsonl", [*RECORDS, RECORDS[1]])
    with pytest.raises(
        ValueError, match=r"line 2 of a.jsonl and line 5 of a.jsonl have the same id"
    ):
        load_task(make_config(data=file))


def test_a_file_without_problems(tmp_path):
    with pytest.raises(ValueError, match="nothing to evaluate: no problems"):
        load_task(make_config(data=write(tmp_path / "a.jsonl", [])))


def test_an_empty_question(tmp_path):
    file = write(tmp_path / "a.jsonl", [{"problem": " ", "answer": "1"}])
    with pytest.raises(ValueError, match=r"line 1 of a.jsonl has an empty problem"):
        load_task(make_config(data=file))


# --- The hub ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "asked"),
    [
        ("math500", ("HuggingFaceH4/MATH-500", None, "test")),
        ("gsm8k", ("openai/gsm8k", "main", "test")),
        ("gpqa", ("Idavidrein/gpqa", "gpqa_diamond", "train")),
        ("humaneval", ("openai/openai_humaneval", None, "test")),
        ("aime", ("HuggingFaceH4/aime_2024", None, "train")),
    ],
)
def test_each_dataset_is_on_the_hub(hub, task, asked):
    hub.splits[asked] = DATASETS[task].samples
    loaded = load_task(make_config(task=task))
    assert hub.asked == [asked] and len(loaded.problems) == 2
    # Naming it explicitly makes no difference.
    assert load_task(make_config(task=task, data=asked[0])) == loaded
    assert hub.asked == [asked, asked]


def test_another_dataset_is_taken_as_it_is(hub):
    hub.splits["some/one", "part", "dev"] = RECORDS
    config = make_config(data="some/one", data_name="part", split="dev", limit=3)
    assert [p.id for p in load_task(config).problems] == ["p0", "p1", "p2"]


def test_a_record_of_the_hub_is_named(hub):
    hub.splits["HuggingFaceH4/MATH-500", None, "test"] = [RECORDS[0], {"answer": "1"}]
    with pytest.raises(
        ValueError, match="record 2 of HuggingFaceH4/MATH-500 lacks problem or prompt"
    ):
        load_task(make_config())


def test_a_hub_that_cannot_be_reached(hub):
    with pytest.raises(UnavailableError) as error:
        load_task(make_config(task="gpqa"))
    assert str(error.value) == (
        "dataset 'Idavidrein/gpqa' (gpqa_diamond, train) cannot be loaded from the hub (Couldn't "
        "reach the hub); config.data can be a file instead."
    )


def test_a_hub_that_never_ends_its_answer(hub):
    hub.load_dataset = sys.modules["datasets"].load_dataset = lambda *_, **__: time.sleep(20)
    config = make_config()
    config.limits.hub_seconds = 0.1
    with pytest.raises(UnavailableError, match=r"\(the library took longer than 0.1 s\); config"):
        load_task(config)


def test_a_library_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        UnavailableError, match=r"not installed; .*pip install 'jax-power-smc\[data"
    ):
        load_task(make_config())


def test_a_dry_run_needs_no_hub(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    for task, dataset in DATASETS.items():
        loaded = load_task(make_config(task=task, dry_run=True))
        assert len(loaded.problems) == 2 and loaded.kind == dataset.kind
    assert len(load_task(make_config(dry_run=True, limit=1)).problems) == 1
    own = {"task": "jsonl", "data": "some/one", "grader": "choice"}
    assert [p.id for p in load_task(make_config(**own, dry_run=True)).problems] == [
        "sample/0",
        "sample/1",
    ]
    # A missing file is still an error; finding it is what dry runs are for.
    with pytest.raises(ValueError, match="no such file"):
        load_task(make_config(data=str(tmp_path / "no.json"), dry_run=True))


# --- Prompts ----------------------------------------------------------------------------------


def test_a_template_of_the_config(file):
    config = make_config(data=file, prompt_format=r"Solve: {question} (\boxed{})")
    assert load_task(config).problems[0].prompt == r"Solve: Q0 (\boxed{})"


def test_chat_models_are_asked_for_a_code_block(hub):
    config = make_config(task="humaneval", dry_run=True)
    plain, chat = load_task(config).problems[0], load_task(config, chat=True).problems[0]
    assert plain.prompt == DATASETS["humaneval"].samples[0]["prompt"]
    assert chat.prompt == prompts.CODE_CHAT.replace("{question}", plain.prompt)
    assert chat.gold == plain.gold
    config.chat = False
    assert load_task(config, chat=True).problems[0] == plain


def test_worked_examples_are_never_problems_of_the_task(file, tmp_path):
    shots = write(
        tmp_path / "shots.jsonl", [RECORDS[0] | {"problem": "Q0 \n"}, RECORDS[3], RECORDS[1]]
    )
    config = make_config(data=file, limit=2, few_shot=1, few_shot_data=shots)
    template = prompts.MATH
    assert [p.prompt for p in load_task(config).problems] == [
        f"{template.replace('{question}', 'Q3')}\nS3\n\n{template.replace('{question}', q)}"
        for q in ("Q0", "Q1")
    ]
    config.few_shot = 2
    with pytest.raises(ValueError, match=r"config.few_shot is 2; .* has only 1 that are not asked"):
        load_task(config)


def test_a_worked_example_needs_a_solution(file, tmp_path):
    shots = write(tmp_path / "shots.jsonl", [{"problem": "Q", "answer": "1"}])
    with pytest.raises(ValueError, match=r"line 1 of shots.jsonl has no solution"):
        load_task(make_config(data=file, few_shot=1, few_shot_data=shots))


def test_a_worked_program_is_one_code_block_for_a_chat_model(tmp_path):
    asked, shown = DATASETS["humaneval"].samples
    data = write(tmp_path / "a.jsonl", [asked])
    shots = write(tmp_path / "b.jsonl", [shown])
    config = make_config(task="humaneval", data=data, few_shot=1, few_shot_data=shots)
    program = shown["prompt"] + shown["canonical_solution"]
    assert load_task(config).problems[0].prompt == f"{program}\n\n{asked['prompt']}"
    chat = load_task(config, chat=True).problems[0].prompt
    assert f"```\n```python\n{program}```\n\n" in chat and chat.count("```") == 6


# --- Which problems ---------------------------------------------------------------------------


def test_tiny_problems():
    task = load_task(make_config(task="tiny_reasoner", split="valid", limit=3, problem_seed=2))
    assert task.kind == "reasoner" and len(task.problems) == 3
    assert all(isinstance(p.gold, int) and p.prompt.endswith("?\n") for p in task.problems)
    asked = list(problems.problems("valid", 3, 2))
    assert [(p.id, p.prompt, p.gold) for p in task.problems] == [
        (p.key, p.question, p.answer) for p in asked
    ]
    other = load_task(make_config(task="tiny_reasoner", split="valid", limit=3, problem_seed=3))
    assert {p.id for p in task.problems}.isdisjoint(p.id for p in other.problems)
    assert len(load_task(make_config(task="tiny_reasoner")).problems) == 400


def test_own_problems(tmp_path):
    file = write(tmp_path / "a.jsonl", [{"q": "Capital?", "a": "Rome"}])
    config = make_config(task="jsonl", data=file, grader="string")
    config.fields.update({"question": "q", "answer": "a", "id": None})
    (problem,) = load_task(config).problems
    assert (problem.prompt, problem.gold) == ("Capital?", "Rome")
    assert load_task(config).kind == kind_of(config) == "string"


@pytest.mark.parametrize("task", ["math500", "gsm8k", "gpqa", "aime"])
def test_a_blank_solution_is_none(task, tmp_path):
    answer = "A" if task == "gpqa" else "3"
    record = {"id": "1", "question": "Q?", "answer": answer, "solution": " "}
    (problem,) = load_task(
        make_config(task=task, data=write(tmp_path / "a.jsonl", [record]))
    ).problems
    assert problem.gold == answer


OWN = {"task": "jsonl", "data": "a.jsonl", "grader": "math"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "mmlu"}, "config.task is 'mmlu'; allowed are math500, gsm8k, gpqa, humaneval, "),
        ({"split": "dev"}, "config.split is 'dev'; allowed are test"),
        ({"task": "gsm8k", "split": "dev"}, "config.split is 'dev'; allowed are test, train"),
        ({"task": "tiny_reasoner", "split": "dev"}, "allowed are train, valid, test"),
        ({"data": "a.json", "split": ""}, "config.split is ''; it must be the name of a split"),
        ({"limit": 0}, "config.limit is 0; it must be an integer of at least 1"),
        ({"problem_seed": -1}, "config.problem_seed is -1; it must be an integer of at least 0"),
        ({"few_shot": -1}, "config.few_shot is -1; it must be an integer of at least 0"),
        ({"few_shot": 1}, "config.few_shot is 1; config.few_shot_data must then name the file"),
        ({"data": ""}, "config.data is ''; it must be None or a text"),
        ({"prompt_format": "Q"}, "config.prompt_format is 'Q'; it must be None or a text"),
        ({"grader": "math"}, "config.grader is 'math'; it must be None"),
        ({"task": "tiny_reasoner", "data": "x.json"}, "has neither data nor examples"),
        ({"task": "tiny_reasoner", "few_shot": 1}, "has neither data nor examples"),
        (OWN | {"data": None}, "config.data is None; the jsonl task needs the file"),
        (OWN | {"grader": None}, "config.grader is None; allowed are math, choice, code, "),
        (OWN | {"grader": "bleu"}, "config.grader is 'bleu'; allowed are math, choice, code, "),
        (OWN | {"fields": {"answer": ""}}, "config.fields.answer is ''; it must be the name"),
        (OWN | {"fields": {"more": "x"}}, "config.fields has .*more.*; it must have id, question"),
    ],
)
def test_fields_are_checked_before_a_file_is_opened(changes, message):
    with pytest.raises(ValueError, match=message):
        load_task(make_config(**changes))
