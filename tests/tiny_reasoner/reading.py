"""Reads questions and solutions back, independently of the code that writes them."""

import math
import re

# A step as its first line names it: what was there before (not in the first step), and a product.
HEAD = re.compile(r"(?:(-?\d+)([+-]))?(\d+)\*(\d+)")
STATED = re.compile(HEAD.pattern + r"=(-?\d+)")
WRITTEN = re.compile(HEAD.pattern + ":")
COLUMNS = re.compile(r"(\d+(?:[*+-]\d+)+):(-?\d+(?:,-?\d+)*)>(-?\d+)")


def read_question(question):
    """The arithmetic that the words describe, as (op, groups, size) of every step."""
    sentences = question.split(". ")
    assert question.endswith(" is that?\n") and sentences.pop().startswith("How many ")
    steps = []
    for sentence in sentences:
        assert sentence.startswith("Then ") == bool(steps) and sentence.endswith(" each")
        groups, size = map(int, re.findall(r"\d+", sentence))
        gained = not steps or f" {groups} more " in sentence
        steps.append(("+" if gained else "-", groups, size))
    return steps


def key_of(question):
    return "".join(f"{op}{groups}*{size}" for op, groups, size in read_question(question))[1:]


def evaluate(expression):
    """The value of ``a*b``, ``a+b+c`` or ``a-b``."""
    a, *rest = map(int, re.findall(r"\d+", expression))
    if "*" in expression:
        return math.prod([a, *rest])
    return a + sum(rest) if "+" in expression else a - sum(rest)


def check_columns(line, head):
    """Checks every column of ``head:t0,t1,...>value`` and returns the value."""
    expression, columns, value = COLUMNS.fullmatch(line).groups()
    assert expression == head
    totals = [int(total) for total in columns.split(",")]
    numbers = [int(number) for number in re.findall(r"\d+", head)]
    zeros = 1 if "*" in head and numbers[1] % 10 == 0 else 0
    width = max(len(str(n)) for n in (numbers[:1] if "*" in head else numbers))
    assert len(totals) == width
    carry = 0
    for place, total in enumerate(totals):
        digits = [n // 10**place % 10 for n in numbers]
        if "*" in head:
            part = digits[0] * (numbers[1] // 10**zeros)
        else:
            part = sum(digits) if "+" in head else digits[0] - digits[1]
        assert total == part + carry, line
        carry = math.floor(total / 10)
    spelled = totals[-1] * 10 ** (width - 1)
    spelled += sum(total % 10 * 10**place for place, total in enumerate(totals[:-1]))
    assert int(value) == spelled * 10**zeros == evaluate(head), line
    return int(value)


def check_step(value, step, lines, first):
    """Checks the lines of one step, taken from the iterator, and returns the value after it."""
    op, groups, size = step
    product = groups * size
    after = value + product if op == "+" else value - product
    head = f"{groups}*{size}" if first else f"{value}{op}{groups}*{size}"
    line = next(lines)
    if line == f"{head}={after}":
        return after
    assert line == f"{head}:"
    one = check_columns(next(lines), f"{groups}*{size % 10}")
    ten = check_columns(next(lines), f"{groups}*{size // 10 * 10}")
    if first or op == "-":
        assert check_columns(next(lines), f"{one}+{ten}") == product
    if first:
        return product
    last = f"{value}+{one}+{ten}" if op == "+" else f"{value}-{product}"
    assert check_columns(next(lines), last) == after
    return after


def check_solution(problem, text):
    """Checks that a solution has no mistake anywhere."""
    lines = iter(text.split("\n"))
    value = 0
    for index, step in enumerate(problem.steps):
        value = check_step(value, step, lines, first=index == 0)
    assert value == problem.answer
    assert next(lines) == f"answer {value}"
    assert next(lines, None) is None
