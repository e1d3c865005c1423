"""HumanEval: finding the program in a response, and grading it."""

import textwrap

import pytest

from jax_power_smc.grading.base import Verdict
from jax_power_smc.grading.factory import open_grader
from jax_power_smc.grading.humaneval import CodeWorker, normalise, solution
from jax_power_smc.grading.isolation import BUBBLEWRAP
from tests.grading import mutants
from tests.grading.isolated import HERE, needs_bubblewrap
from tests.grading.shared import needs, read_lines

GOLD = {
    "prompt": "import math\n\ndef helper(x):\n    return x\n\n\n"
    'def half(x: int) -> int:\n    """Half."""\n',
    "test": "def check(candidate):\n    assert candidate(4) == 2\n    assert candidate(7) == 3\n",
    "entry_point": "half",
}
BODY = "    return math.floor(helper(x) / 2)\n"
WHOLE = "def half(x):\n" + BODY
SECONDS = 20.0
# Of each solution, so many places are tried.
MUTANTS = 8

RIGHT = {
    "continuation": BODY,
    "continuation after an empty line": "\n" + BODY,
    "cut before what follows": BODY + "\n\ndef other(:\n",
    "cut before prose": BODY + "```\nThat is it.",
    "closing bracket": "    return int(\n        x / 2\n)\n",
    "stripped": BODY.strip(),
    "whole": WHOLE,
    "whole, then prose": WHOLE + "\nThis function halves it.",
    "words, then whole": "Sure, here it is:\n\n" + WHOLE,
    "whole, then a heading": WHOLE + "\nExplanation:\n- It halves the number.",
    "whole, then a bold heading": WHOLE + "\n**Explanation:**\n\nIt halves the number.",
    "whole, then a list": WHOLE + "\n1. It halves the number.",
    "heading, words, whole, words": "## Solution\nWe halve it. Then it is\nRounded!\n"
    + WHOLE
    + "\nThis function halves it.",
    "stripped body, then the function again": BODY.strip() + "\n\n\ndef half(x):\n    return 1\n",
    "stripped body with an import, then the function again": "import math\n"
    + BODY
    + "\n\ndef half(x):\n    return 1\n",
    "whole with indented lines before": "import math\n\nif True:\n    y = 1\n\n" + WHOLE,
    "whole with imports": "import math\n\n" + WHOLE,
    "block": "Here it is:\n\n```python\n" + WHOLE + "```\nIt works.",
    "last block": "```python\ndef half(x):\n    pass\n```\nBetter:\n```python\n" + WHOLE + "```",
    "usage in another block": "```python\n" + WHOLE + "```\nUse it:\n```\nhalf(1/0)\n```",
    "block with a body": "```\n" + BODY + "```",
    "block that was cut": "Well:\n```python\n" + WHOLE,
    "carriage returns": BODY.replace("\n", "\r\n"),
    "writes to its directory": '    open("x", "w").write("1")\n    return x // 2\n',
    "prints": '    print("x" * 10000)\n    return x // 2\n',
    "dataclass": "    from dataclasses import dataclass\n    @dataclass\n    class A:\n"
    '        x: "int"\n    return A(x // 2).x\n',
}

WRONG = {
    "nothing": "",
    "pass": "    pass\n",
    "wrong": "    return x\n",
    "syntax": "    (((\n",
    "exit": "    import os; os._exit(0)\n",
    "SystemExit": "    raise SystemExit(0)\n",
    "big file": "    with open('x', 'wb') as f:\n        for _ in range(99):\n"
    "            f.write(b'0' * 10**5)\n    return x // 2\n",
    "memory": "    x = [0] * 10**10\n",
    "surrogate": "    '\udcff'\n    return x // 2\n",
    "NUL": "    \x00\n",
    "recursion": "    return half(x)\n",
    "too long": "    x = 1\n" * 10_000 + BODY,
    "prints the verdict": "    import os\n    for fd in range(3, 9):\n        try:\n"
    "            os.write(fd, b'started\\npassed\\n')\n        except OSError:\n"
    "            pass\n    os._exit(0)\n",
}

# Not to be run without isolation.
HARMFUL = {
    "fork": "    import os\n    while True: os.fork()\n",
    "subprocess": "    import subprocess; subprocess.run(['true']); return x // 2\n",
    "network": "    import socket; socket.socket(); return x // 2\n",
    "kills": "    import os; os.kill(os.getppid(), 9)\n",
}
OPTIONS = {"allow_code_execution": True, "code_isolation": HERE}


@pytest.fixture(scope="module")
def verdicts():
    """name -> verdict of every response above."""
    named = RIGHT | WRONG | (HARMFUL if HERE == BUBBLEWRAP else {})
    with open_grader("code", processes=2, seconds=SECONDS, **OPTIONS) as grader:
        grader.submit(0, GOLD, list(named.values()))
        ((_, found),) = grader.finished(wait=True)
    return dict(zip(named, found, strict=True))


def indented(code, by):
    return textwrap.indent(code, by)


@pytest.mark.parametrize(
    "response",
    [
        "1. Write it:\n\n   ```python\n" + indented(WHOLE, "   ") + "   ```\n2. Done.",
        "- Code:\n    ```\n" + indented(WHOLE, "    ") + "    ```\n",
        "* Code:\n\t```py\n" + indented(WHOLE, "\t") + "\t```\n",
        "   ```python\n" + indented(WHOLE, "   ") + "   ```\n",
        " 1. Code:\n    ```python\n" + indented(WHOLE, "    ") + "    ```\n",
        "1. Code:\n   ```python\n" + WHOLE + "   ```\n",
        "1. The body:\n   ```python\n" + indented(BODY, "   ") + "   ```\n",
        "<think>\n```python\ndef half(x):\n    return 0\n```\n</think>\n```python\n"
        + WHOLE
        + "```",
        "```python\ndef half(x):\n    return 0\n```\n</think>" + BODY,
        "```python\n" + WHOLE + "```\n<think>\n```python\ndef half(x):\n    return 0\n",
    ],
)
def test_blocks_in_lists_and_beside_reasoning_are_found(response):
    names = {}
    exec(solution(response, GOLD["prompt"], "half"), names)
    assert [names["half"](4), names["half"](7)] == [2, 3]


@pytest.mark.parametrize("name", RIGHT)
def test_right_programs_pass(name, verdicts):
    found = verdicts[name]
    assert found == Verdict(found.parsed, True, True)
    assert "return" in found.parsed


@pytest.mark.parametrize(
    "name", [*WRONG, *(pytest.param(name, marks=needs_bubblewrap) for name in HARMFUL)]
)
def test_wrong_programs_fail(name, verdicts):
    assert verdicts[name]._replace(parsed=None) == Verdict(None, False, False)


def test_a_program_that_hangs_is_killed():
    responses = ["    while True: pass\n", "    import time; time.sleep(99)\n", BODY]
    with open_grader("code", processes=1, seconds=1, **OPTIONS) as grader:
        grader.submit(0, GOLD, responses)
        ((_, found),) = grader.finished(wait=True)
    late = Verdict(None, False, False, "took longer than 1 s")
    assert found[:2] == [late, late] and found[2].correct


def test_code_is_run_only_where_the_user_allows_it():
    with pytest.raises(ValueError, match=r"--config\.allow_code_execution=True"):
        open_grader("code")


def test_closing_kills_the_running_program():
    grader = open_grader("code", processes=1, seconds=60, **OPTIONS)
    grader.submit(0, GOLD, ["    while True: pass\n", "    while 1: pass\n"])
    grader.close()
    assert grader.pending == 0 and grader.finished(wait=True) == []


def test_votes_are_counted_by_the_text_of_the_code(verdicts):
    prompt, name = GOLD["prompt"], GOLD["entry_point"]
    commented = "    # halves\n\n" + BODY.replace("\n", "  \n")
    assert normalise(solution(commented, prompt, name)) == normalise(solution(BODY, prompt, name))
    assert verdicts["continuation"].parsed == verdicts["stripped"].parsed
    assert verdicts["pass"].parsed != verdicts["continuation"].parsed


def test_a_code_worker_can_only_judge():
    with pytest.raises(ValueError, match="function is 'merge'"):
        CodeWorker(1.0).call("merge")


@pytest.mark.slow
@needs("HumanEval.jsonl")
def test_all_canonical_solutions_pass():
    problems = read_lines("HumanEval.jsonl")
    with open_grader("code", processes=2, seconds=SECONDS, **OPTIONS) as grader:
        for each in problems:
            gold = {name: each[name] for name in GOLD}
            solved = each["canonical_solution"]
            chat = f"So:\n```python\n{each['prompt']}{solved}```\n"
            grader.submit(each["task_id"], gold, [solved, chat, "    pass\n"])
        found = {}
        while grader.pending:
            found |= dict(grader.finished(wait=True))
    assert len(found) == 164
    assert {tuple(v.correct for v in each) for each in found.values()} == {(True, True, False)}


@pytest.mark.slow
@needs("HumanEval.jsonl")
@pytest.mark.parametrize("half", [0, 1])
def test_mutated_solutions_are_told_apart_as_by_plain_execution(half):
    """For each solution: the first mutant that its tests find out, and the first that passes."""
    expected = {}
    with open_grader("code", processes=2, seconds=SECONDS, **OPTIONS) as grader:
        for each in read_lines("HumanEval.jsonl")[half::2]:
            gold = {name: each[name] for name in GOLD}
            below = each["prompt"].count("\n")
            whole = each["prompt"] + each["canonical_solution"]
            programs = list(mutants.mutants(whole, below))[:MUTANTS]
            found = mutants.plain_verdicts(programs, gold["test"], gold["entry_point"])
            chosen = {
                verdict: programs[found.index(verdict)]
                for verdict in (False, True)
                if verdict in found
            }
            expected[each["task_id"]] = list(chosen)
            grader.submit(
                each["task_id"], gold, [f"```python\n{code}```" for code in chosen.values()]
            )
        judged = {}
        while grader.pending:
            judged |= dict(grader.finished(wait=True))
    assert {name: [v.correct for v in each] for name, each in judged.items()} == expected
    # The others have no such token, or every change of one passes or runs on and on.
    assert sum(False in each for each in expected.values()) >= 70
