"""Stop rules with an oracle each: does the text so far contain a match?"""

import re

from jax_power_smc.targets import stop_rules
from jax_power_smc.targets.stop_rules import StopBoxed, StopRegex, StopString

TOKENIZERS = ["tiny", "qwen", "stories"]


def found_text(pattern, content):
    """A str pattern in bytes: what is no UTF-8 becomes surrogates, and no match crosses those."""
    text = content.decode(errors="surrogateescape")
    return any(re.search(pattern, part) for part in re.split("[\ud800-\udfff]", text))


def found_bytes(pattern, content):
    return re.search(pattern, content) is not None


def found_boxed(content):
    r"""From every \boxed{, a scan to the brace that closes it."""
    return any(_closes(content, m.end()) for m in re.finditer(rb"\\boxed\{", content))


def _closes(content, i):
    depth = 1
    while i < len(content):
        if content[i : i + 1] == b"\\":
            i += 2
            continue
        depth += {b"{": 1, b"}": -1}.get(content[i : i + 1], 0)
        if depth == 0:
            return True
        if depth > stop_rules.LARGEST_BRACE_DEPTH:
            return False
        i += 1
    return False


# (rule, does it match, what random texts are made of)
RULES = [
    (StopString("aab"), lambda b: b"aab" in b, ["a", "b", "aa", " "]),
    (StopString("abacab"), lambda b: b"abacab" in b, ["a", "b", "aba", "c", "cab"]),
    (StopString("\n\n"), lambda b: b"\n\n" in b, ["\n", " ", "a", "\n a"]),
    (
        StopString("caf\u00e9\u6570"),
        lambda b: "caf\u00e9\u6570".encode() in b,
        ["caf", "caf\u00e9", "\u6570", "\u6571", "\u00e8"],
    ),
    (
        StopString("\U0001f600"),
        lambda b: b"\xf0\x9f\x98\x80" in b,
        ["\U0001f600", *"\U0001f601\U0001f5c0\U0002f600\u0600\u00f0abcdefghij"],
    ),
    (StopRegex(r"a(b|ba)*c+?d"), lambda b: found_bytes(rb"a(b|ba)*cc*d", b), [*"abcd", "abac"]),
    (
        StopRegex(r"is (?a:\d+)\."),
        lambda b: found_bytes(rb"is [0-9]+\.", b),
        ["is", " ", "1", "23", ".", "is 4", "\u0663"],
    ),
    (
        StopRegex(r"is \d+\."),
        lambda b: found_text(r"is \d+\.", b),
        ["is", " ", "1", "23", ".", "is 4", "\u0663", "\u00b2"],
    ),
    (
        StopRegex(r"x[^a\u00e9]{2,3}y"),
        lambda b: found_text(r"x[^a\u00e9]{2,3}y", b),
        ["x", "xx", "y", "a", "\u00e9", "\u00e8y", "\u6570"],
    ),
    (StopRegex("a.b"), lambda b: found_text("a.b", b), ["a", "b", "\n", "\U0001f600", "\u6570"]),
    (StopRegex("(?s)a.b"), lambda b: found_text("(?s)a.b", b), ["a", "b", "\n", "\u00e9"]),
    (
        StopRegex("(?m)^Q: |\\AA"),
        lambda b: found_bytes(rb"(?m)^Q: |\AA", b),
        ["Q", "Q: ", "A", "\n", " ", "x"],
    ),
    (
        StopRegex("(?i)end(?-i:K)|stra\u00dfe\u00c9"),
        lambda b: found_text("(?i)end(?-i:K)|stra\u00dfe\u00c9", b),
        ["eN", "d", "K", "k", "\u212a", "\u017fTRA\u1e9eE", "\u00e9", "END"],
    ),
    (
        StopBoxed(),
        found_boxed,
        ["\\boxed", "\\boxed{", "{", "}", "\\", "\\{", "\\}", "\\\\", "x", "}}"],
    ),
]
NAMES = [str(rule) for rule, _, _ in RULES]


def random_text(rng, alphabet, length):
    return "".join(rng.choice(alphabet) for _ in range(length))


def stops_at(automaton, content):
    """How many bytes have been read when the automaton accepts, or None."""
    state = 0
    for i, byte in enumerate(content):
        state = automaton.table[state, byte]
        if automaton.accepting[state]:
            return i + 1
    return None
