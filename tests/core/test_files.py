"""Strict JSON, written whole or not at all, and older files that are kept."""

import errno
import fcntl
import json
import pathlib

import pytest
from etils import epath

from jax_power_smc.core import files

INF, NAN = float("inf"), float("nan")


def test_a_line_has_null_for_numbers_that_are_not_finite():
    value = {"a": [1.5, -INF, (NAN, 2)], "b": {"c": INF}, "d": "NaN"}
    line = files.json_line(value)
    assert line.endswith("\n") and "\n" not in line[:-1]
    assert json.loads(line) == {"a": [1.5, None, [None, 2]], "b": {"c": None}, "d": "NaN"}


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "x.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json(path, {"a": NAN})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_older_files_are_numbered(tmp_path):
    path = tmp_path / "records.jsonl"
    files.keep_older(path)
    for content in ("first", "second"):
        path.write_text(content)
        files.keep_older(path)
    assert not path.exists()
    assert (tmp_path / "records.1.jsonl").read_text() == "first"
    assert (tmp_path / "records.2.jsonl").read_text() == "second"


@pytest.mark.parametrize(
    ("path", "remote"), [("gs://bucket/job", True), ("s3://b/j", True), ("/tmp/job", False)]
)
def test_remote_paths_are_recognized_by_their_scheme(path, remote):
    assert files.is_remote(epath.Path(path)) is remote


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = epath.Path(tmp_path / "summary.json")
    files.write_json(path, {"old": 1})

    def full(*names):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        files.write_json(path, {"new": 2})
    assert json.loads(path.read_text()) == {"old": 1}


def test_a_file_is_written_as_it_is_and_in_place_of_another(tmp_path):
    path = epath.Path(tmp_path / "file")
    path.write_text("a longer one that was there before")
    files.write_bytes_whole(path, b"\x89PNG\r\n\x1a\n")
    assert path.read_bytes() == b"\x89PNG\r\n\x1a\n"
    assert [each.name for each in path.parent.iterdir()] == ["file"]


def test_a_file_called_like_an_unfinished_one_is_left_alone(tmp_path):
    own = tmp_path / "x.json.tmp"
    own.write_text("precious")
    files.write_json(tmp_path / "x.json", {"a": 1})
    assert own.read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.json", "x.json.tmp"]


def test_two_that_write_one_file_do_not_meet_and_the_name_may_be_long(tmp_path):
    path = tmp_path / ("x" * 250)
    with files.replacing(path) as one, files.replacing(path) as other:
        assert one.name != other.name
        one.write(b"one")
        other.write(b"other")
    assert path.read_bytes() == b"one" and list(tmp_path.iterdir()) == [path]


def test_an_error_in_between_leaves_the_older_file_in_its_place(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("older")
    with pytest.raises(KeyboardInterrupt), files.replacing(path, keep=True) as file:
        file.write(b"new")
        raise KeyboardInterrupt
    assert path.read_text() == "older" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["fsync", "replace", "open"])
def test_every_error_of_the_system_names_the_file(tmp_path, monkeypatch, name):
    def fail(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = epath.Path(tmp_path / "summary.json")
    monkeypatch.setattr(files if name == "open" else files.os, name, fail, raising=False)
    with pytest.raises(OSError, match="No space") as refusal:
        files.write_json(path, {})
    assert refusal.value.filename == str(path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", fail)
    with pytest.raises(OSError, match="No locks") as refusal, files.writing_alone(tmp_path / "x"):
        pass
    assert refusal.value.filename == str(tmp_path / "x")


def test_one_at_a_time_writes_a_file_and_no_lock_stays(tmp_path):
    path = tmp_path / "out.jsonl"
    with (
        files.writing_alone(path),
        files.writing_alone(tmp_path / "other.jsonl"),
        pytest.raises(ValueError, match=r"another job is writing to .*out.jsonl; wait for it"),
        files.writing_alone(path),
    ):
        pass
    with files.writing_alone(path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_file_that_its_holder_has_removed_is_not_taken(tmp_path, monkeypatch):
    path, locked = tmp_path / "out", []

    def flock(file, how):
        if not locked:  # opened, and removed by the holder before it was locked
            pathlib.Path(file.name).unlink()
        locked.append(file)
        fcntl.flock(file.fileno(), how)

    monkeypatch.setattr(files, "fcntl", type("", (), vars(fcntl) | {"flock": flock}))
    with files.writing_alone(path):
        assert len(locked) == 2 and (tmp_path / ".out.lock").exists()


@pytest.mark.parametrize("depth", [40, 2000, 200_000])
@pytest.mark.parametrize(("left", "right"), ["[]", ('{"a":', "}")])
def test_json_that_is_nested_without_end_is_refused(depth, left, right):
    with pytest.raises(ValueError, match="nested too deeply"):
        files.parse_json(left * depth + "1" + right * depth)


def test_json_is_strict():
    assert files.parse_json('{"a": [1.5, null, [[]]]}') == {"a": [1.5, None, [[]]]}
    assert files.parse_json("7") == 7
    for text in ("NaN", "[-Infinity]", "{", ""):
        with pytest.raises(ValueError):
            files.parse_json(text)


def test_what_python_reads_as_json_and_others_write():
    values = files.parse_json("[NaN, 1e999, -Infinity]", strict=False)
    assert str(values) == "[nan, inf, -inf]"
    with pytest.raises(ValueError, match="NaN is not a number in JSON"):
        files.parse_json("[NaN]")
    with pytest.raises(ValueError, match="the number 1e999 is too large"):
        files.parse_json("[1e999]")
    with pytest.raises(ValueError, match="nested too deeply"):
        files.parse_json("[" * 10**5, strict=False)
