"""Byte automata: where they stop against ``re`` on the bytes so far, and their size."""

import random
import re

import numpy as np
import pytest

from jax_power_smc.targets.regex_dfa import from_regex
from jax_power_smc.targets.stop_rules import StopRegex
from tests.targets.stop_cases import NAMES, RULES, random_text, stops_at


@pytest.mark.parametrize(("rule", "found", "alphabet"), RULES, ids=NAMES)
def test_the_automaton_stops_where_the_first_match_completes(rule, found, alphabet):
    rng = random.Random(1)
    ends = []
    for _ in range(150):
        content = bytearray(random_text(rng, alphabet, rng.randint(1, 16)).encode())
        if rng.random() < 0.3:  # some text that is no UTF-8
            content[rng.randrange(len(content))] = rng.choice([0x80, 0xBF, 0xC3, 0xE6, 0xFF, 0x61])
        content = bytes(content)
        expected = next((i for i in range(1, len(content) + 1) if found(content[:i])), None)
        assert stops_at(rule.automaton(), content) == expected, content
        ends.append(expected is None)
    assert 10 < sum(ends) < 140  # both happen


def random_pattern(rng, depth=3):
    kind = rng.randrange(8) if depth else 0
    if kind < 2:
        return rng.choice([*"abc", "\u00e9", ".", "[^a]", "[a\u00e9]", "[^b\u00e9]", "^", r"\s"])
    if kind < 4:
        return random_pattern(rng, depth - 1) + random_pattern(rng, depth - 1)
    if kind < 6:
        return f"(?:{random_pattern(rng, depth - 1)}|{random_pattern(rng, depth - 1)})"
    flags = rng.choice(["", "", "i", "s", "m", "a"])
    count = rng.choice(["*", "+", "?", "*?", "+?", "??", "{2}", "{1,3}", "{,2}?", ""])
    return f"(?{flags}:{random_pattern(rng, depth - 1)}){count}"


def test_random_patterns_stop_where_re_finds_a_match():
    rng = random.Random(8)
    refused, compiled, ends = 0, 0, 0
    for _ in range(200):
        pattern = random_pattern(rng)
        texts = [random_text(rng, [*"aabbcA\n\u00e9\u00c9"], 8) for _ in range(20)]
        try:
            automaton = StopRegex(pattern).automaton()
        except ValueError as error:
            refused += 1
            empty = re.fullmatch(pattern, "") is not None
            assert ("empty string" if empty else "can never match") in str(error), pattern
            assert empty or not any(re.search(pattern, text) for text in texts), pattern
            continue
        compiled += 1
        assert re.fullmatch(pattern, "") is None, pattern
        for text in texts:
            ends_at = [i for i in range(1, 9) if re.search(pattern, text[:i])]
            expected = len(text[: ends_at[0]].encode()) if ends_at else None
            assert stops_at(automaton, text.encode()) == expected, (pattern, text)
            ends += bool(ends_at)
    assert refused > 20
    assert compiled > 80 and 300 < ends < 20 * compiled - 300


@pytest.mark.parametrize(
    ("pattern", "states"),
    [("a", 2), ("aab", 4), ("[0-9]+", 2), ("a|b|ab", 2), ("a{3}", 4), ("abc|bc", 3), ("é", 3)],
)
def test_the_automaton_is_minimal(pattern, states):
    assert from_regex(pattern).table.shape == (states, 256)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("ab*c", "ab*?c"),
        ("a{2,4}?b", "(?:aa|aaa|aaaa)b"),
        ("a+", "a"),
        (r"\x41|[B-C]", "[A-C]"),
        ("(?x) a b # comment", "ab"),
        ("(?P<name>a)b", "ab"),
        ("(?a:\\w)x", "[0-9A-Za-z_]x"),
        ("(?:a|)(?:b|)c", "c"),
        ("a[^\\x00-\\U0010FFFF]|b", "b"),
        ("^a|(?:b|^)c", r"\Aa|(?:b|\A)c"),
        ("(?a)(?u:\\d)x", "\\dx"),
        ("(?:a*)*b", "b"),
        (r"\.\*", "[.][*]"),
    ],
)
def test_equal_languages_have_equal_automata(left, right):
    left, right = from_regex(left), from_regex(right)
    np.testing.assert_array_equal(left.table, right.table)
    np.testing.assert_array_equal(left.accepting, right.accepting)


CLASSES = [
    r"\w",
    r"\d",
    r"\s",
    r"\W",
    ".",
    "(?s).",
    "[^a]",
    "(?i)k",
    "(?i)[^s]",
    "(?a)\\W",
    "[é-数]",
]


@pytest.mark.parametrize("pattern", CLASSES)
def test_a_class_holds_the_characters_that_re_says(pattern):
    rng = random.Random(2)
    edges = [0x7F, 0x80, 0x7FF, 0x800, 0xFFF, 0x1000, 0xD7FF, 0xE000, 0xFFFF, 0x10000, 0x10FFFF]
    points = [*range(0x180), 0x212A, *edges, *(rng.randrange(0x110000) for _ in range(3000))]
    table, accepting = from_regex(r"\A" + pattern if "(" not in pattern else pattern)
    compiled = re.compile(pattern)
    for character in (chr(i) for i in points if not 0xD800 <= i < 0xE000):
        state = 0
        for byte in character.encode():
            state = table[state, byte]
        assert accepting[state] == (compiled.match(character) is not None), hex(ord(character))


@pytest.mark.parametrize(
    "content",
    [
        b"\x80",
        b"\xc3",
        b"\xc0\x80",
        b"\xc1\xbf",
        b"\xe0\x9f\xbf",
        b"\xed\xa0\x80",
        b"\xf0\x8f\xbf\xbf",
        b"\xf4\x90\x80\x80",
        b"\xf5\x80\x80\x80",
        b"\xff",
    ],
)
def test_invalid_utf8_matches_no_character(content):
    assert stops_at(from_regex("(?s)."), content) is None
    assert stops_at(from_regex("(?s)."), content + b"a") == len(content) + 1
