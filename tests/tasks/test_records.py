"""Files of problems, valid and invalid."""

import gzip
import json
import tracemalloc

import pytest

from jax_power_smc.tasks.records import Record, numbered, read_records

RECORDS = [{"question": "One?\nTwo\u2028lines", "answer": 1}, {"question": "Two?", "answer": "2"}]
LINES = "\n".join(json.dumps(record, ensure_ascii=False) for record in RECORDS) + "\n\n"


def values(path):
    return [dict(record.fields) for record in read_records(str(path))]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.json.gz", "a.jsonl.gz"])
@pytest.mark.parametrize("text", [LINES, json.dumps(RECORDS, indent=2), "\ufeff" + LINES])
def test_a_list_and_lines_are_distinguished_by_their_content(tmp_path, name, text):
    data = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert values(tmp_path / name) == RECORDS


def test_csv(tmp_path):
    (tmp_path / "a.csv").write_text('question,answer\n"One, or\ntwo?",1\nThree?,3\n')
    assert values(tmp_path / "a.csv") == [
        {"question": "One, or\ntwo?", "answer": "1"},
        {"question": "Three?", "answer": "3"},
    ]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", b'{"a": 1}\n\n{"a": \n', r"line 3 of a.jsonl is not JSON"),
        ("a.jsonl", b'{"a": 1}\n5\n', r"line 2 of a.jsonl holds a JSON int; it must be an object"),
        ("a.json", b"[{}, 5]", r"record 2 of a.json holds a JSON int"),
        ("a.json", b"[{}", r"a.json is not JSON"),
        (
            "a.csv",
            b"a,b\n1,2\n1,2,3\n",
            r"record 2 of a.csv has more cells than a.csv has field names",
        ),
        ("a.csv", b'a,b\n1,"2\n', r"a.csv is not CSV"),
        ("a.jsonl", b'{"a": 1}\n' + b"[" * 10**5, r"line 2 of a.jsonl is not JSON \(its brackets"),
        ("a.json", b"[" * 10**5, r"a.json is not JSON \(its brackets"),
        ("a.jsonl", b"\xff\xfe", r"a.jsonl'; it cannot be read \('utf-8'"),
        ("a.jsonl.gz", b"{}", r"a.jsonl.gz'; it cannot be read \(Not a gzipped file"),
    ],
)
def test_a_bad_record_is_located(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_records(str(tmp_path / name))


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.csv.gz"])
def test_a_file_that_is_too_large_is_not_read_to_its_end(tmp_path, name):
    path = tmp_path / name
    content = b'{"a": 1}\n' + b" " * (2 * 10**6 - 9)
    packed = name.endswith(".gz")
    path.write_bytes(gzip.compress(content * 100) if packed else content)
    unpacked = " when it is unpacked" if packed else ""
    tracemalloc.start()
    with pytest.raises(ValueError, match=f"has more than 1 million bytes{unpacked}; if that"):
        read_records(str(path), megabytes=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * 10**6  # of 200 million
    path.write_bytes(gzip.compress(content) if packed else content)
    if "json" in name:
        assert len(read_records(str(path), megabytes=2)) == 1


def test_a_device_is_not_read_for_ever():
    with pytest.raises(ValueError, match=r"config.data is '/dev/zero', which has more than 1 mill"):
        read_records("/dev/zero", megabytes=1)


def test_damaged_compression(tmp_path):
    packed = bytearray(gzip.compress(b'{"a": 1}\n' * 1000))
    for position in (12, len(packed) // 2, len(packed) - 6):
        damaged = packed.copy()
        damaged[position] ^= 0xFF
        (tmp_path / "a.jsonl.gz").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a.jsonl.gz'; it cannot be read \("):
            read_records(str(tmp_path / "a.jsonl.gz"))


def test_a_missing_file(tmp_path):
    with pytest.raises(ValueError, match=r"config.few_shot_data is '.*no.json'; there is no such"):
        read_records(str(tmp_path / "no.json"), "config.few_shot_data")
    with pytest.raises(ValueError, match="cannot be read"):
        read_records(str(tmp_path))


def test_a_field_has_several_possible_names():
    record = Record("line 1", {"a": None, "b": 2, "c": "x"})
    assert record.value("a", "b", "c") == 2 and record.text("a", "b") == "2"
    assert record.has("a", "b") and not record.has("a", "d")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone", "line 4 lacks gone or other; it has null, empty, list, flag, half, nan"),
        ("null", "line 4 lacks null or other"),
        ("empty", "line 4 has an empty empty"),
        ("nan", "line 4 lacks nan or other"),
        ("infinite", "line 4 has infinite -inf; it must be a finite number"),
        ("list", r"line 4 has list \[1\]; it must be a text"),
        ("flag", "line 4 has flag True; it must be a text"),
        ("half", "line 4 has half a character .a lone surrogate. in half"),
    ],
)
def test_a_field_that_is_not_text(name, message):
    values = {"null": None, "empty": " \n", "list": [1], "flag": True}
    values |= {"half": "\ud83d", "nan": float("nan"), "infinite": -float("inf")}
    record = Record("line 4", values)
    with pytest.raises(ValueError, match=message):
        record.text(name, "other")


def test_an_optional_text():
    record = Record("line 4", {"null": None, "empty": " \n", "list": [1], "text": " x"})
    assert [record.text_or_none(name) for name in ("gone", "null", "empty", "text")] == [
        *[None] * 3,
        " x",
    ]
    with pytest.raises(ValueError, match=r"line 4 has list \[1\]"):
        record.text_or_none("list")


def test_nan_in_a_file_is_a_missing_field(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"question": "One?", "answer": 1}\n{"answer": NaN}\n')
    records = read_records(str(tmp_path / "a.jsonl"))
    assert not records[1].has("answer") and records[1].text_or_none("answer") is None
    with pytest.raises(ValueError, match=r"line 2 of a.jsonl lacks answer"):
        records[1].text("answer")


def test_records_are_counted_from_one():
    assert [record.location for record in numbered([{}, {}], "data")] == [
        "record 1 of data",
        "record 2 of data",
    ]
