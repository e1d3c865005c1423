"""Strict JSON, written whole or not at all, and older files that are kept."""

import json

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
