"""What each dataset reads from a record, in the layouts in which it is distributed."""

import pytest

from jax_power_smc.tasks import aime, gpqa, gsm8k, humaneval, jsonl, math500
from jax_power_smc.tasks.base import KINDS
from jax_power_smc.tasks.load import DATASETS
from jax_power_smc.tasks.records import Record, read_records
from tests.paths import SHARED

DATA = SHARED / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"{SHARED}/data is absent")


def record(**fields):
    return Record("line 7", fields)


def spaced(**fields):
    """Field names with spaces in them are written with underscores here."""
    return Record("line 7", {name.replace("_", " "): value for name, value in fields.items()})


# --- MATH-500 ---------------------------------------------------------------------------------


def test_math500_in_both_layouts():
    hub = record(problem="Q", answer=" 3 ", unique_id="u", solution="S", subject="x", level=2)
    example = math500.read(hub)
    assert (example.id, example.question, example.gold, example.solution) == ("u", "Q", "3", "S")
    example = math500.read(record(prompt="Q", answer="3", source="math", id="u"))
    assert (example.id, example.question, example.gold, example.solution) == ("u", "Q", "3", None)


def test_a_missing_id_follows_from_the_question():
    first, again, other = (math500.read(record(problem=q, answer=a)) for q, a in ["Q1", "Q2", "P1"])
    assert first.id == again.id != other.id


# --- GSM8K ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("It is 9.\n#### 18", "18"),
        ("It is 9.\n#### -1,234,567 ", "-1234567"),
        ("a #### 1\n#### 2.50", "2.50"),
        ("#### 5", "5"),
        ("1,300", "1300"),
        (7, "7"),
    ],
)
def test_gsm8k_answer_is_what_follows_the_mark(answer, gold):
    assert gsm8k.read(record(question="Q", answer=answer)).gold == gold
    assert gsm8k.read(record(prompt="Q", answer=answer, id="3")).gold == gold


def test_gsm8k_solution_ends_as_the_prompt_asks():
    example = gsm8k.read(record(question="Q", answer="3*4=<<3*4=12>>12 $<<1+1=2>>2\n#### 1,200"))
    assert example.solution == "3*4=12 $2\nThe answer is \\boxed{1200}."
    assert gsm8k.read(record(question="Q", answer="5")).solution is None


@pytest.mark.parametrize("answer", ["It is nine.", "It is 9.\n####", "9 eggs"])
def test_gsm8k_answer_without_a_number(answer):
    with pytest.raises(
        ValueError, match=r"line 7 has answer .*; it must be a number, or end in ####"
    ):
        gsm8k.read(record(question="Q", answer=answer))


# --- GPQA -------------------------------------------------------------------------------------

GPQA = {
    "Question": "Which?\n",
    "Correct_Answer": "right\n",
    "Incorrect_Answer_1": "w1",
    "Incorrect_Answer_2": "w2",
    "Incorrect_Answer_3": "w3",
}


def test_gpqa_letter_is_that_of_the_right_option():
    letters = []
    for i in range(200):
        example = gpqa.read(spaced(**GPQA, Record_ID=f"rec{i}", Explanation="Because."))
        lines = example.question.splitlines()
        assert lines[:2] == ["Which?", ""]
        assert sorted(line[3:] for line in lines[2:]) == ["right", "w1", "w2", "w3"]
        assert f"{example.gold}) right" in lines
        assert example.solution == f"Because.\nThe answer is \\boxed{{{example.gold}}}."
        letters.append(example.gold)
    # 50 expected of each, standard deviation 6.
    assert all(25 < letters.count(letter) < 75 for letter in "ABCD")


def test_gpqa_order_depends_on_the_id_only():
    one = gpqa.read(spaced(**GPQA, Record_ID="rec5"))
    again = gpqa.read(spaced(Record_ID="rec5", **(GPQA | {"Question": "What?"})))
    assert one.gold == again.gold and one.id == "rec5" and one.solution is None


def test_gpqa_with_the_options_in_the_prompt():
    example = gpqa.read(record(prompt="Which?\nA) a\nB) b", answer="(B)", id=4))
    assert (example.id, example.question, example.gold) == ("4", "Which?\nA) a\nB) b", "B")
    with pytest.raises(ValueError, match="line 7 has answer 'E'; it must be one of A, B, C, D"):
        gpqa.read(record(prompt="Which?", answer="E"))


def test_gpqa_with_an_option_missing():
    with pytest.raises(ValueError, match="line 7 lacks Incorrect Answer 3; it has Question, "):
        gpqa.read(spaced(**{k: v for k, v in GPQA.items() if k != "Incorrect_Answer_3"}))


# --- HumanEval --------------------------------------------------------------------------------


def test_humaneval_keeps_what_its_tests_need():
    fields = {"prompt": "def f():\n", "test": "def check(c): ...\n", "entry_point": "f"}
    example = humaneval.read(
        record(**fields, task_id="HumanEval/3", canonical_solution="    pass\n")
    )
    assert example.id == "HumanEval/3" and example.gold == fields
    assert example.question == "def f():\n" and example.solution == "    pass\n"
    with pytest.raises(ValueError, match="line 7 lacks test"):
        humaneval.read(record(prompt="def f():\n", entry_point="f"))


# --- AIME -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"problem": "Q", "answer": "025", "id": 60, "solution": "S", "year": "2024"}, "60"),
        ({"Problem": "Q", "Answer": 25, "ID": "2024-I-1", "Solution": "S"}, "2024-I-1"),
        ({"problem": "Q", "solution": r"\boxed{1} or \boxed{25}", "id": 0}, "0"),
        ({"problem": "Q", "answer": 25, "problem_idx": 3}, "3"),
    ],
)
def test_aime_in_the_layouts_of_its_years(values, key):
    example = aime.read(record(**values))
    assert (example.id, example.question, example.gold) == (key, "Q", "25")


@pytest.mark.parametrize("answer", ["-1", "1000", "2.5", "x", r"\frac12"])
def test_an_invalid_aime_answer(answer):
    with pytest.raises(ValueError, match="it must be an integer from 0 to 999"):
        aime.read(record(problem="Q", answer=answer))
    with pytest.raises(ValueError, match="line 7 lacks answer or Answer"):
        aime.read(record(problem="Q", solution="nothing in a box"))


# --- Own problems -----------------------------------------------------------------------------

FIELDS = {"id": "key", "question": "ask", "answer": "gold", "solution": None}


def own(kind, gold, **fields):
    return jsonl.dataset(FIELDS | fields, kind).read(record(key="k", ask="Q", gold=gold, why="W"))


def test_own_fields_are_those_of_the_config():
    example = own("string", " yes ")
    assert (example.id, example.question, example.gold) == ("k", "Q", "yes")
    assert example.solution is None and own("string", "yes", solution="why").solution == "W"
    assert own("string", "yes", id=None).id not in ("k", "")
    with pytest.raises(ValueError, match="line 7 lacks number; it has key, ask, gold, why"):
        own("string", "yes", id="number")


CODE = {"prompt": "p", "test": "t", "entry_point": "e"}


@pytest.mark.parametrize(
    ("kind", "given", "gold"),
    [
        ("math", 3, "3"),
        ("choice", "B", "B"),
        ("reasoner", "12", 12),
        ("code", CODE | {"more": 1}, CODE),
        ("code", '{"prompt": "p", "test": "t", "entry_point": "e"}', CODE),
    ],
)
def test_own_answers_are_what_graders_expect(kind, given, gold):
    assert own(kind, given).gold == gold


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        ("reasoner", "twelve", "line 7 has gold 'twelve'; it must be an integer"),
        ("choice", "Paris", "line 7 has gold 'Paris'; it must be the letter"),
        ("choice", "b", "it must be the letter"),
        ("code", "print(1)", "it must be an object with the texts prompt, test, entry_point"),
        (
            "code",
            {"prompt": "p", "test": 1, "entry_point": "e"},
            "it must be an object with the texts",
        ),
        ("math", "", "line 7 has an empty gold"),
    ],
)
def test_own_answers_that_no_grader_accepts(kind, given, message):
    with pytest.raises(ValueError, match=message):
        own(kind, given)


# --- All --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_own_samples_can_be_read(kind):
    made = jsonl.dataset(FIELDS, kind)
    examples = [made.read(Record("sample", sample)) for sample in made.samples]
    assert len({example.id for example in examples}) == 2


@pytest.mark.parametrize("name", DATASETS)
def test_samples_are_worked_problems_in_the_layout_of_the_hub(name):
    made = DATASETS[name]
    examples = [made.read(Record("sample", sample)) for sample in made.samples]
    assert len({example.id for example in examples}) == 2
    assert all(example.solution and example.gold for example in examples)


@needs_data
@pytest.mark.parametrize(
    ("name", "file", "count"),
    [
        ("math500", "MATH500.json", 500),
        ("gsm8k", "gsm8k_test.jsonl", 1319),
        ("humaneval", "HumanEval.jsonl", 164),
    ],
)
def test_real_files_are_read_whole(name, file, count):
    examples = [DATASETS[name].read(found) for found in read_records(str(DATA / file))]
    assert len(examples) == len({example.id for example in examples}) == count
    if name == "gsm8k":
        assert all(float(example.gold) == int(example.gold) for example in examples)
        assert not any("<<" in example.solution for example in examples)
