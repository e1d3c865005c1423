"""Stop rules: every token after which a rule says stop, against ``re`` on the bytes so far."""

import dataclasses
import random
import re
import unicodedata

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from jax_power_smc.targets import stop_rules
from jax_power_smc.targets.regex_dfa import from_regex
from jax_power_smc.targets.stop_rules import StopBoxed, StopRegex, StopString
from jax_power_smc.tiny_reasoner import tokenizer as reasoner
from tests.conftest import STORIES
from tests.paths import SHARED

QWEN = SHARED / "tokenizers/qwen2.5"
TOKENIZERS = ["tiny", "qwen", "stories"]


@pytest.fixture(scope="module")
def tiny():
    return reasoner.train_tokenizer(reasoner.corpus(50, seed=0), vocab_size=330)


@pytest.fixture(scope="module")
def qwen():
    if not QWEN.is_dir():
        pytest.skip(f"{SHARED}/tokenizers/qwen2.5 is absent")
    return Tokenizer.from_file(str(QWEN / "tokenizer.json"))


@pytest.fixture(scope="module")
def stories():
    if not STORIES.is_dir():
        pytest.skip(f"{SHARED}/models/stories260K is absent")
    return AutoTokenizer.from_pretrained(STORIES)


@pytest.fixture(scope="module")
def vocabulary(request):
    """A function from a name to (tokenizer, token bytes), each read once."""
    known = {}

    def read(name):
        if name not in known:
            tokenizer = request.getfixturevalue(name)
            known[name] = tokenizer, stop_rules.token_bytes(tokenizer)
        return known[name]

    return read


# ---- oracles: does the text so far hold a match? ----


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


# ---- the automaton ----


def stops_at(automaton, content):
    """How many bytes have been read when the automaton accepts, or None."""
    state = 0
    for i, byte in enumerate(content):
        state = automaton.table[state, byte]
        if automaton.accepting[state]:
            return i + 1
    return None


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
def test_what_is_no_utf8_is_no_character(content):
    assert stops_at(from_regex("(?s)."), content) is None
    assert stops_at(from_regex("(?s)."), content + b"a") == len(content) + 1


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


# ---- tokens ----

# Accents and scripts, spaces in rows, controls, four-byte characters.
TEXTS = [
    "",
    "a",
    "One day, 12 + 30 = 42.\n\n",
    "  two  spaces\tand a tab \r\n",
    "caf\u00e9 \u6570\u5b66 \u0434\u0430 \U0001f600\u200d\U0001f525 \u00a0\x00\x7f",
    "<0x0A> \u0120\u010a <tool_call>",
]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_bytes_of_the_tokens_are_the_bytes_of_the_text(name, vocabulary):
    tokenizer, pieces = vocabulary(name)
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    rng = random.Random(4)
    characters = [*range(0x20, 0x180), 0x0A, 0x3B1, 0x4E00, 0xAC00, 0x1F600, 0x10FFFD]
    texts = [*TEXTS, *("".join(map(chr, rng.choices(characters, k=20))) for _ in range(100))]
    for text in texts:
        text = unicodedata.normalize("NFC", text)  # as qwen2.5 does
        ids = backend.encode(text, add_special_tokens=False).ids
        expected = text.encode()
        if name == "stories" and text:
            expected = b" " + expected  # SentencePiece puts one in front
        assert b"".join(pieces[i] for i in ids) == expected


@pytest.mark.parametrize("name", TOKENIZERS)
def test_special_tokens_have_no_bytes(name, vocabulary):
    tokenizer, pieces = vocabulary(name)
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    special = {i for i, token in backend.get_added_tokens_decoder().items() if token.special}
    assert special
    assert {i for i, piece in enumerate(pieces) if piece is None} == special
    assert len(pieces) == backend.get_vocab_size()


def test_added_tokens_are_text(tiny):
    backend = Tokenizer.from_str(tiny.to_str())
    backend.add_tokens([AddedToken("\u00e9\u00e9"), AddedToken("<think>\n"), AddedToken("a ")])
    added = ["\u00e9\u00e9".encode(), b"<think>\n", b"a "]
    assert stop_rules.token_bytes(backend) == stop_rules.token_bytes(tiny) + added


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


def test_named_tokens_of_qwen(vocabulary):
    tokenizer, pieces = vocabulary("qwen")
    assert pieces[tokenizer.token_to_id("<tool_call>")] == b"<tool_call>"
    assert pieces[tokenizer.token_to_id("<|im_end|>")] is None


def test_a_transformers_tokenizer_is_read_like_the_one_inside(tiny):
    wrapped = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tiny.to_str()))
    assert stop_rules.token_bytes(wrapped) == stop_rules.token_bytes(tiny)


def test_space_marks_and_byte_tokens():
    vocabulary = {"\u2581": 0, "\u2581a\u2581b": 1, "<0xe2>": 2, "<0x0A>": 3, "<0x0A>b": 4, "é": 6}
    backend = Tokenizer(models.BPE(vocabulary, []))
    mark = decoders.Replace("\u2581", " ")
    backend.decoder = decoders.Sequence([mark, decoders.ByteFallback(), decoders.Fuse()])
    pieces = [b" ", b" a b", b"\xe2", b"\n", b"<0x0A>b", None, "é".encode()]
    assert stop_rules.token_bytes(backend) == pieces
    backend.decoder = decoders.Metaspace()
    assert stop_rules.token_bytes(backend) == [*pieces[:2], b"<0xe2>", b"<0x0A>", *pieces[4:]]


def test_a_model_may_have_more_or_fewer_ids_than_its_tokenizer(tiny):
    pieces = stop_rules.token_bytes(tiny)
    assert stop_rules.token_bytes(tiny, len(pieces) + 3) == [*pieces, None, None, None]
    assert stop_rules.token_bytes(tiny, len(pieces) - 3) == pieces[:-3]
    table = stop_rules.compile_stop(StopString("a"), tiny, len(pieces) + 3)
    assert table.next_state.shape == (2, len(pieces) + 3)


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
        ("\ud800", r"text is '\ud800'; it holds the surrogate '\ud800', which no text holds."),
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
    "\ud800": r"it holds the surrogate '\ud800'",
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


@pytest.mark.parametrize(
    ("decoder", "name"),
    [
        (None, "None"),
        (decoders.WordPiece(), "WordPiece"),
        (decoders.BPEDecoder(), "BPEDecoder"),
        (decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()]), "ByteFallback + Fuse"),
        (
            decoders.Sequence(
                [decoders.Replace("_", "-"), decoders.ByteFallback(), decoders.Fuse()]
            ),
            "Replace + ByteFallback + Fuse",
        ),
    ],
)
def test_tokenizers_of_other_kinds_are_refused(decoder, name):
    backend = Tokenizer(models.BPE({"a": 0}, []))
    if decoder is not None:
        backend.decoder = decoder
    with pytest.raises(ValueError, match=re.escape(f"the tokenizer's decoder is {name}; ")):
        stop_rules.compile_stop(StopString("a"), backend)


def test_what_is_no_tokenizer_is_refused():
    with pytest.raises(ValueError, match="tokenizer is a list; as such it must hold the bytes"):
        stop_rules.compile_stop(StopString("a"), ["a"])
