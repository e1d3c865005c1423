"""Stop rules: every token after which a rule says stop, against ``re`` on the bytes so far."""

import dataclasses
import random
import re

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from jax_power_smc.targets import stop_rules
from jax_power_smc.targets.stop_rules import StopBoxed, StopRegex, StopString
from tests.targets.stop_cases import NAMES, RULES, TOKENIZERS, found_boxed, random_text, stops_at

# ---- the box ----


@pytest.mark.parametrize(
    ("text", "end"),
    [
        (r"\boxed{4} and on", 9),
        (r"\boxed{\frac{1}{2}}.", 19),
        (r"\boxed{}", 8),
        (r"\boxed 4 \boxed {4}", None),
        (r"\boxed{4", None),
        ("4} \\boxed\n{4}", None),
        (r"\boxed\{4\}", None),
        (r"\boxed{\{1, 2\}}", 16),
        (r"\boxed{\left\{ x \right.}", 25),
        (r"\boxed{a\\}", 11),
        (r"\boxed{a\\{b}}", 14),
        (r"\\boxed{4}", 10),  # as graders see it
        (r"\boxed{\boxed{3}+1}", 16),
        (r"\boxed{3 and then \boxed{4}", 27),
        (r"\boxed\boxed{4}", 15),
        (r"\bo\boxed{4}", 12),
        (r"\boxedx{4} \fbox{4}", None),
    ],
)
def test_where_the_box_closes(text, end):
    assert stops_at(StopBoxed().automaton(), text.encode()) == end


def test_braces_up_to_the_largest_depth():
    automaton = StopBoxed().automaton()
    inner = stop_rules.LARGEST_BRACE_DEPTH - 1
    deepest = b"\\boxed" + b"{" * (inner + 1) + b"}" * (inner + 1)
    deeper = b"\\boxed" + b"{" * (inner + 2) + b"}" * (inner + 2)
    assert stops_at(automaton, deepest) == len(deepest)
    assert stops_at(automaton, deeper) is None
    after = deeper + b" \\boxed{4}"
    assert stops_at(automaton, after) == len(after)
    inside = deeper[:20] + b"{{{\\boxed{{4}}"
    assert stops_at(automaton, inside) == len(inside)


def test_boxes_in_random_braces():
    rng = random.Random(3)
    alphabet = RULES[-1][2] + ["{{{{{{{", "}}}}}}}", "\\boxed {", "boxed{"]
    automaton = StopBoxed().automaton()
    ends = []
    for _ in range(1500):
        content = random_text(rng, alphabet, 30).encode()
        end = stops_at(automaton, content)
        ends.append(end)
        assert (end is not None) == found_boxed(content), content
        if end is not None:
            assert found_boxed(content[:end]) and not found_boxed(content[: end - 1]), content
    assert 200 < sum(end is None for end in ends) < 1300


# ---- the token table ----


def read_piece(automaton, state, piece):
    for byte in piece or b"":
        state = automaton.table[state, byte]
    return state


@pytest.mark.parametrize(("rule", "found", "alphabet"), RULES, ids=NAMES)
def test_the_table_reads_every_token_from_every_state(rule, found, alphabet):
    rng = random.Random(5)
    pieces = [None, b""] + [
        random_text(rng, alphabet, rng.randint(0, 6)).encode()[rng.randint(0, 1) :]
        for _ in range(60)
    ]
    pieces[7] = alphabet[0].encode() * 50
    rng.shuffle(pieces)
    automaton = rule.automaton()
    table = stop_rules.token_table(automaton, pieces)
    expected = [[read_piece(automaton, s, p) for p in pieces] for s in range(len(automaton.table))]
    assert table.next_state.dtype == np.int16
    np.testing.assert_array_equal(table.next_state, np.array(expected, np.int16))
    np.testing.assert_array_equal(table.accepting, automaton.accepting)
    # An ended sequence stays ended, and a token without bytes changes nothing.
    (end,) = np.flatnonzero(table.accepting)
    assert (table.next_state[end] == end).all()
    empty = [i for i, piece in enumerate(pieces) if not piece]
    np.testing.assert_array_equal(table.next_state[:, empty[0]], np.arange(len(automaton.table)))


def stops_after(table, tokens):
    """How many tokens have been generated when the rule says stop, or None."""
    state = table.start
    for i, token in enumerate(tokens):
        state = table.next_state[state, token]
        if table.accepting[state]:
            return i + 1
    return None


PIECES = [b"a", b"aa", b"xa", b"bx", b"aab", b"xaabx", b"\xc3", b"\xa9a", b"\xa8", None, b""]


@pytest.mark.parametrize(
    ("rule", "tokens", "end"),
    [
        (StopString("aab"), [b"aa", b"a", b"bx"], 3),  # an overlapping prefix
        (StopString("aab"), [b"a", b"xaabx", b"a"], 2),  # starts and completes inside a token
        (StopString("aab"), [b"xa", b"a", b"bx"], 3),  # starts in one, completes in another
        (StopString("aab"), [b"xa", None, b"a", None, b"bx"], 5),  # special tokens between
        (StopString("aab"), [b"aab"], 1),
        (StopString("aab"), [b"a", b"bx", b"a"], None),
        (StopString("\u00e9"), [b"a", b"\xc3", b"\xa9a"], 3),  # a character cut in two
        (StopString("\u00e9"), [b"\xc3", b"\xa8", b"\xa9a"], None),
        (StopString("\u00e9"), [b"\xc3", b"\xc3", b"", b"\xa9a"], 4),
        (StopRegex("[^a]a"), [b"aa", b"\xc3", b"\xa9a"], 3),
        (StopRegex("[^a]a"), [b"aa", b"\xa9a"], None),
        (StopRegex("xa*?b"), [b"bx", b"aa", b"aa", b"bx"], 4),
    ],
)
def test_tokens_that_hold_parts_of_a_match(rule, tokens, end):
    table = stop_rules.token_table(rule.automaton(), PIECES)
    assert stops_after(table, [PIECES.index(piece) for piece in tokens]) == end


@pytest.mark.parametrize(("rule", "found", "alphabet"), RULES, ids=NAMES)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_random_tokens_stop_where_re_finds_a_match(name, rule, found, alphabet, vocabulary):
    tokenizer, pieces = vocabulary(name)
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    table = stop_rules.token_table(rule.automaton(), pieces)
    rng = random.Random(6)
    # Tokens that share their bytes with the rule, so that matches come about in every way.
    letters = set("".join(alphabet).encode())
    related = [i for i, piece in enumerate(pieces) if piece and set(piece) <= letters]
    ends = []
    for trial in range(80):
        if trial % 2:
            text = random_text(rng, alphabet, rng.randint(1, 24))
            tokens = backend.encode(text, add_special_tokens=False).ids
        else:
            tokens = rng.choices(related, k=rng.randint(1, 20))
        for _ in range(rng.randint(0, 2)):
            tokens.insert(rng.randint(0, len(tokens)), rng.randrange(len(pieces)))
        texts = [b"".join(pieces[t] or b"" for t in tokens[: i + 1]) for i in range(len(tokens))]
        expected = next((i + 1 for i, text in enumerate(texts) if found(text)), None)
        assert stops_after(table, tokens) == expected, texts[-1]
        ends.append(expected is None)
    assert 0 < sum(ends) < 80  # both happen


# ---- values and refusals ----


def test_rules_are_values():
    assert StopString("a") == StopString("a") != StopString("b")
    assert len({StopRegex("a"), StopRegex("a"), StopBoxed(), StopBoxed()}) == 2
    for rule in (StopString("a"), StopRegex("a"), StopBoxed()):
        with pytest.raises(dataclasses.FrozenInstanceError):
            rule.text = rule.pattern = "b"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "text is ''; it must not be empty."),
        ("\ud800", r"text is '\ud800'; it has the surrogate '\ud800', which UTF-8 cannot encode."),
        (b"a", "text is b'a'; it must be a string."),
        ("a" * 512, "it has 512 bytes; at most 511 are allowed."),
        ("é" * 256, "it has 512 bytes; at most 511 are allowed."),
    ],
)
def test_strings_that_are_refused(text, reason):
    with pytest.raises(ValueError, match=re.escape(reason)):
        StopString(text)


@pytest.mark.parametrize("text", ["a" * 511, "é" * 255 + "a"])
def test_the_longest_string(text):
    assert StopString(text).automaton().table.shape == (512, 256)
    assert stops_at(StopString(text).automaton(), b"a" + text.encode()) in (511, 512)


UNSUPPORTED = {
    "a(?=b)": "lookahead and lookbehind are",
    "(?<=a)b": "lookahead and lookbehind are",
    "a(?!b)": "negative lookahead and lookbehind are",
    "(?<!a)b": "negative lookahead and lookbehind are",
    "a(?!)": "negative lookahead and lookbehind are",
    r"(a)\1": "a backreference is",
    "(?P<x>a)(?P=x)": "a backreference is",
    "(a)(?(1)b|c)": "a conditional group is",
    "(?>a)b": "an atomic group is",
    "a*+b": "a possessive quantifier is",
    "a$": "the anchor $ is",
    r"a\Z": r"the anchor of the end (\Z) is",
    r"a\b": r"the word boundary \b is",
    r"a\B": r"the word boundary \B is",
}


@pytest.mark.parametrize("pattern", UNSUPPORTED)
def test_regexes_that_are_refused_by_name(pattern):
    reason = f"pattern is {pattern!r}; {UNSUPPORTED[pattern]} not supported in a stop rule."
    with pytest.raises(ValueError, match=f"^{re.escape(reason)}$"):
        StopRegex(pattern)


REFUSED = {
    "(": "it is not a regular expression: missing ), unterminated subpattern at position 0",
    r"\p{L}": r"it is not a regular expression: bad escape \p at position 0",
    "(?:" * 3000 + "a" + ")" * 3000: "its groups are nested too deeply",
    "a{99999999999}": "a repetition count is too large",
    "(a{1000}){1000}": "it is too large; use smaller",
    "((){1000}){1000}": "it is too large; use smaller",
    "a{512}": "its automaton has more than 512 states; use smaller",
    "a.{20}b": "its automaton has more than 8192 states before minimisation",
    "": "it matches the empty string",
    "a*": "it matches the empty string",
    "^": "it matches the empty string",
    "(?m)^": "it matches the empty string",
    r"[^\s\S]": "it can never match",
    r"a\Ab": "it can never match",
    "\ud800": r"it has the surrogate '\ud800'",
}


@pytest.mark.parametrize("pattern", REFUSED)
def test_regexes_that_are_refused(pattern):
    reason = f"pattern is {pattern!r}; {REFUSED[pattern]}"
    with pytest.raises(ValueError, match=f"^{re.escape(reason)}[^\n]*\\.$"):
        StopRegex(pattern)


def test_a_pattern_must_be_a_string():
    with pytest.raises(ValueError, match=r"pattern is b'a'; it must be a string\."):
        StopRegex(b"a")


def test_the_largest_regex():
    assert StopRegex("a{511}").automaton().table.shape == (512, 256)


def test_lists_of_strings_are_refused():
    with pytest.raises(ValueError, match="tokenizer is a list; as such it must hold the bytes"):
        stop_rules.compile_stop(StopString("a"), ["a"])


@pytest.mark.parametrize(
    ("rule", "field"),
    [
        (StopString("<|im_end|>"), "text is '<|im_end|>'"),
        (StopString("done<|im_end|>\n"), "text is 'done<|im_end|>\\n'"),
        (StopRegex(r"(<\|im_end\|>|QED)"), "pattern is"),
    ],
)
def test_the_text_of_a_special_token_is_refused(rule, field, tiny):
    backend = Tokenizer.from_str(tiny.to_str())
    stop_rules.compile_stop(rule, backend)  # text like any other here
    backend.add_tokens([AddedToken("<|im_end|>", special=True)])
    for tokenizer in (backend, PreTrainedTokenizerFast(tokenizer_object=backend)):
        with pytest.raises(ValueError) as error:
            stop_rules.compile_stop(rule, tokenizer)
        message = str(error.value)
        assert message.startswith(field) and "'<|im_end|>' is a special token" in message
        assert f"put its id, {tiny.get_vocab_size()}, in eos_ids instead." in message
    stop_rules.compile_stop(StopBoxed(), backend)
