"""The grading launcher: files in, files out, and what it refuses."""

import errno
import json
import os

import pytest

from jax_power_smc.cli.grade import KINDS, grade, read_lines
from jax_power_smc.grading import inline
from tests.cli.command import assert_refused, call, outcomes
from tests.grading.isolated import HERE
from tests.grading.shared import needs
from tests.grading.shared import read_lines as read_shared

GOOD = [
    {"gold": r"\frac{1}{2}", "response": r"so $\boxed{0.5}$", "id": 7, "note": "old"},
    {"gold": "9", "response": r"\boxed{10}"},
    {"gold": "9", "response": r"\boxed{9^{9^{9}}}"},
    {"gold": 12, "response": r"\boxed{3 \cdot 4}", "nested": {"a": [1, None]}},
]
CODE = {
    "prompt": "def one():\n",
    "test": "def check(f):\n    assert f() == 1\n",
    "entry_point": "one",
}

# What is wrong -> what the sentence says.
BAD = {
    "no JSON": "line 2 of in.jsonl: this is not JSON.",
    "no object": "line 2 of in.jsonl: this is not a JSON object.",
    "no gold": "line 2 of in.jsonl: the field gold is missing.",
    "no response": "line 2 of in.jsonl: the field response is missing.",
    "response of another type": "line 2 of in.jsonl: response is a list; it must be a text.",
    "gold of another type": "line 2 of in.jsonl: gold is None; it must be a non-empty",
    "opts": "line 2 of in.jsonl: opts has strict='no'; allowed are",
    "not UTF-8": "line 2 of in.jsonl: this is not JSON.",
    "NaN": "line 2 of in.jsonl: NaN is not a number in JSON.",
    "nested": "line 2 of in.jsonl: its brackets are nested too deeply.",
    "infinite": "line 2 of in.jsonl: the number 1e400 is too large.",
    "gold without an answer": "line 2 of in.jsonl: gold is '####'; an answer must follow",
    "task": "task is 'chess'; allowed are math500, gsm8k",
    "no input": "missing.jsonl: No such file or directory.",
    "same file": "input and output are the same file",
    "seconds": "seconds is -1.0",
    "processes": "processes is 0",
    "code": "HumanEval runs code that the model wrote",
    "no output": "Flag --output must have a value",
    "extra argument": "unexpected arguments: more",
}
LINES = {
    "no JSON": b"{",
    "no object": b"[1]",
    "no gold": b'{"response": "1"}',
    "no response": b'{"gold": "1"}',
    "response of another type": b'{"gold": "1", "response": ["1"]}',
    "gold of another type": b'{"gold": null, "response": "1"}',
    "opts": b'{"gold": "1", "response": "1", "opts": {"strict": "no"}}',
    "not UTF-8": b'{"gold": "1", "response": "\xff"}',
    "NaN": b'{"gold": "1", "response": "1", "score": NaN}',
    "nested": b'{"gold": "1", "response": "1", "score": ' + b"[" * 10**5 + b"]" * 10**5 + b"}",
    "infinite": b'{"gold": "1", "response": "1", "score": 1e400}',
    "gold without an answer": b'{"gold": "####", "response": "1"}',
}
FLAGS = {
    "task": ["--task=chess"],
    "no input": ["--input=missing.jsonl"],
    "same file": ["--output=in.jsonl"],
    "seconds": ["--seconds=-1"],
    "processes": ["--processes=0"],
    "code": ["--task=humaneval"],
    "extra argument": ["more"],
}


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def graded(tmp_path, task, lines, **options):
    target = tmp_path / "out.jsonl"
    grade(task, write(tmp_path / "in.jsonl", lines), target, **options)
    return read(target)


@pytest.fixture(scope="module")
def cli(tmp_path_factory):
    """name -> outcome of every command line that is wrong."""
    directory = tmp_path_factory.mktemp("cli")
    good = json.dumps(GOOD[1]).encode() + b"\n"
    (directory / "in.jsonl").write_bytes(good)
    cases = {}
    for name in BAD:
        source = "in.jsonl"
        if name in LINES:
            (directory / name).mkdir()
            source = f"{name}/in.jsonl"
            (directory / source).write_bytes(good + LINES[name] + b"\n")
        cases[name] = ["--task=math500", f"--input={source}", "--output=out.jsonl"]
        cases[name] += FLAGS.get(name, [])
    cases["no output"].pop()
    done = outcomes("grade", cases, directory)
    assert not (directory / "out.jsonl").exists()
    return done


def test_the_command_grades_a_file_and_sums_up(tmp_path):
    source, target = write(tmp_path / "in.jsonl", GOOD), tmp_path / "new" / "out.jsonl"
    arguments = ["--task=math500", f"--input={source}", f"--output={target}", "--seconds=3"]
    code, out, err = call("grade", *arguments)
    assert (code, err) == ("0", "")
    assert out.startswith("4 graded   correct 50.0%   by strings 25.0%   1 could not be graded   ")
    lines = read(target)
    assert [line["correct"] for line in lines] == [True, False, False, True]
    assert [line["correct_string"] for line in lines] == [True, False, False, False]
    assert [line["parsed"] for line in lines] == [r"\frac{1}{2}", "10", None, "12"]
    assert [line.get("note") for line in lines] == [None, None, "took longer than 3 s", None]
    for line, given in zip(lines, GOOD, strict=True):
        assert {**given, **line} == {**line, **{k: v for k, v in given.items() if k == "note"}}
    assert lines[0]["id"] == 7 and lines[3]["nested"] == {"a": [1, None]}
    assert [path.name for path in target.parent.iterdir()] == ["out.jsonl"]


def test_an_older_output_is_kept(tmp_path):
    for number in range(3):
        graded(tmp_path, "string", [{"gold": "1", "response": str(number)}])
    kept = [read(tmp_path / name)[0]["parsed"] for name in ("out.1.jsonl", "out.2.jsonl")]
    assert [*kept, read(tmp_path / "out.jsonl")[0]["parsed"]] == ["0", "1", "2"]
    assert not (tmp_path / "out.jsonl.tmp").exists()


@pytest.mark.parametrize(
    ("task", "gold", "right", "wrong"),
    [
        ("math500", r"2\sqrt{3}", r"\boxed{\sqrt{12}}", r"\boxed{12}"),
        ("gsm8k", "She has $2 and 16 more.\n#### 18", "The answer is 18.", "#### 2"),
        ("aime", "070", r"\boxed{70}", r"\boxed{7}"),
        ("gpqa", "C", r"\boxed{C}", "The answer is (D)."),
        ("humaneval", CODE, "    return 1\n", "    return 2\n"),
        ("tiny_reasoner", 42, "6*7=42\nanswer 42", "answer 41"),
        ("string", "1/2", r"\boxed{\frac12}", r"\boxed{2/4}"),
    ],
)
def test_every_task(task, gold, right, wrong, tmp_path):
    lines = [{"gold": gold, "response": right}, {"gold": gold, "response": wrong}]
    options = {"allow_code_execution": True, "code_isolation": HERE}
    done = graded(tmp_path, task, lines, processes=1, **options)
    assert [line["correct"] for line in done] == [True, False]
    assert all("note" not in line for line in done)


def test_all_tasks_are_tested():
    (mark,) = test_every_task.pytestmark
    assert {case[0] for case in mark.args[1]} == set(KINDS)


def test_empty_lines_are_left_out_and_any_text_is_kept(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'\n{"gold": "1", "response": "\\ud800\\u0000"}\r\n\n')
    (line,) = read_lines(path, "string")
    assert line.fields["response"] == "\ud800\x00"
    summary = grade("string", path, tmp_path / "out.jsonl")
    assert read(tmp_path / "out.jsonl")[0]["response"] == "\ud800\x00"
    assert (summary.graded, summary.correct) == (1, 0)


@pytest.mark.parametrize("gold", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("task", KINDS)
def test_nan_as_gold_is_refused(task, gold, tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text(f'\n{{"gold": {gold}, "response": "1"}}\n')
    with pytest.raises(ValueError, match=rf"line 2 of .*in.jsonl: {gold} is not a number"):
        read_lines(path, task)


def test_a_device_is_not_renamed(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    source = write(tmp_path / "in.jsonl", GOOD)
    with pytest.raises(ValueError, match="pipe; it must be a regular file"):
        grade("math500", source, tmp_path / "pipe")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "pipe"]


def test_files_named_like_an_unfinished_output_are_kept(tmp_path):
    source = write(tmp_path / "out.jsonl.tmp", GOOD[:1])
    before = source.read_text()
    grade("string", source, tmp_path / "out.jsonl")
    assert source.read_text() == before and len(read(tmp_path / "out.jsonl")) == 1


def test_of_two_that_write_one_output_the_second_is_refused(tmp_path, monkeypatch):
    source, target = write(tmp_path / "in.jsonl", GOOD[:2]), tmp_path / "out.jsonl"
    finished, met = inline.InlineGrader.finished, []

    def meanwhile(self, wait=False):
        if not met:
            met.append(None)
            with pytest.raises(ValueError, match=r"another job is writing to .*out\.jsonl; wait"):
                grade("string", source, target)
            grade("string", source, tmp_path / "other.jsonl")
        return finished(self, wait)

    monkeypatch.setattr(inline.InlineGrader, "finished", meanwhile)
    grade("string", source, target)
    assert met and len(read(target)) == len(read(tmp_path / "other.jsonl")) == 2
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["in.jsonl", "other.jsonl", "out.jsonl"]


def test_a_full_disk_names_the_output_and_leaves_the_older_one(tmp_path, monkeypatch):
    source, target = write(tmp_path / "in.jsonl", GOOD[:1]), tmp_path / "out.jsonl"
    target.write_text("older")

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space") as refusal:
        grade("string", source, target)
    assert refusal.value.filename == str(target) and target.read_text() == "older"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_an_empty_file_is_graded(tmp_path):
    assert graded(tmp_path, "math500", []) == []


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence_and_nothing_is_written(name, cli):
    message = BAD[name].replace("in.jsonl", f"{name}/in.jsonl") if name in LINES else BAD[name]
    assert_refused(cli[name], message)
    assert cli[name][1] == ""


@needs("grader_cases.jsonl")
def test_the_cases_of_the_library(tmp_path):
    cases = read_shared("grader_cases.jsonl")
    for case in cases:
        case["response"] = case.pop("pred")
    done = graded(tmp_path, "math500", cases)
    assert [bool(line["expected"]) for line in done] == [line["correct"] for line in done]
