"""Reads questions and solutions back, independently of the code that writes them."""

import re

LINE = re.compile(r"(-?\d+)([*+-])(-?\d+)")
STATED = re.compile(LINE.pattern + r"=(-?\d+)")


def compute(a, op, b):
    if op == "*":
        return a * b
    return a + b if op == "+" else a - b


def read_question(question):
    """The arithmetic that the words describe, as (start, steps)."""
    sentences = question.split(". ")
    assert question.endswith(" is that?\n") and sentences.pop().startswith("How many ")
    start, first = map(int, re.findall(r"\d+", sentences[0]))
    steps = [("+" if " has " in sentences[0] else "*", first)]
    for sentence in sentences[1:]:
        (number,) = map(int, re.findall(r"\d+", sentence))
        if sentence.startswith(("All are sold at", "This is done for")):
            steps.append(("*", number))
        else:
            assert sentence.startswith("Then ")
            steps.append(("+" if f" {number} more " in sentence else "-", number))
    return start, tuple(steps)


def key_of(question):
    start, steps = read_question(question)
    return f"{start}" + "".join(f"{op}{number}" for op, number in steps)


def check_columns(a, op, b, text):
    """Checks every digit of columns such as ``7*2=14,4*2+1=9`` and returns what they spell."""
    shift = 0
    if op == "*" and b % 10 == 0:
        b, shift = b // 10, 1
    carry, value = 0, 0
    columns = text.split(",")
    for place, column in enumerate(columns):
        left, right = column.split("=")
        digit_a = a // 10**place % 10
        digit_b = b if op == "*" else b // 10**place % 10
        carried = "" if place == 0 else f"{'-' if op == '-' else '+'}{carry}"
        if op == "-":
            borrow = digit_a - digit_b - carry < 0
            digit_a += 10 * borrow
            result = digit_a - digit_b - carry
            carry = int(borrow)
        else:
            result = compute(digit_a, op, digit_b) + carry
            carry = result // 10
        assert left == f"{digit_a}{op}{digit_b}{carried}", column
        assert int(right) == result, column
        last = place == len(columns) - 1
        value += (result if last else result % 10) * 10**place
    width = len(str(a)) if op == "*" else max(len(str(a)), len(str(b)))
    assert len(columns) == width
    return value * 10**shift


def check_step(a, op, b, lines):
    """Checks the lines of ``a op b``, taken from the iterator, and returns the value."""
    line = next(lines)
    head = f"{a}{op}{b}"
    truth = compute(a, op, b)
    if line == f"{head}:":
        assert op == "*" and b > 9 and b % 10
        units = check_step(a, "*", b % 10, lines)
        tens = check_step(a, "*", b // 10 * 10, lines)
        return check_step(units, "+", tens, lines)
    if line.startswith(f"{head}:"):
        columns, value = line.removeprefix(f"{head}:").split(">")
        assert check_columns(a, op, b, columns) == truth
        assert int(value) == truth, line
    else:
        assert line == f"{head}={truth}"
    return truth


def check_solution(problem, text):
    """Checks that a solution has no mistake anywhere."""
    lines = iter(text.split("\n"))
    value = problem.start
    for op, operand in problem.steps:
        value = check_step(value, op, operand, lines)
    assert value == problem.answer
    assert next(lines) == f"answer {value}"
    assert next(lines, None) is None
