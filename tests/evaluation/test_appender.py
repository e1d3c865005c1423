"""A file of records, and what others make of it while a job appends to it."""

import errno
import os
import shutil

import pytest
from etils import epath

from jax_power_smc.core import files
from jax_power_smc.evaluation import appender, store
from tests.evaluation.made import record


@pytest.fixture
def workdir(tmp_path):
    (tmp_path / "job").mkdir()
    return epath.Path(tmp_path / "job")


def seeds(workdir):
    return [each["seed"] for each in store.read_records(workdir)]


def remove(path):
    path.unlink()


def replace(path):
    path.with_name("new").write_text(path.read_text().replace("What", "Why "))
    os.replace(path.with_name("new"), path)


def cut(path):
    path.write_text("")


@pytest.mark.parametrize("act", [remove, replace, cut])
@pytest.mark.parametrize("is_last", [False, True])
def test_what_was_written_is_there_whatever_became_of_the_file(workdir, act, is_last, caplog):
    with store.open_writer(workdir) as writer:
        writer.add(record(0))
        writer.add(record(1))
        act(workdir / "records.jsonl")
        if not is_last:
            writer.add(record(2))
            writer.add(record(3))
    assert sorted(seeds(workdir)) == ([0, 1] if is_last else [0, 1, 2, 3])
    assert all(each["prompt"] == "What is one?" for each in store.read_records(workdir))
    assert writer.rescued == (workdir / "records-rescued-1.jsonl",)
    assert "it goes on in" in caplog.text and "records-rescued-1.jsonl" in caplog.text


def test_what_earlier_starts_wrote_is_kept_as_well(workdir):
    for seed in range(3):
        with store.open_writer(workdir) as writer:
            writer.add(record(seed))
            if seed == 2:
                remove(workdir / "records.jsonl")
    assert seeds(workdir) == [0, 1, 2]


def test_a_file_that_has_grown_by_other_hands_is_left_to_them(workdir):
    with store.open_writer(workdir) as writer:
        writer.add(record(0))
        with open(workdir / "records.jsonl", "a") as file:
            file.write("their line\n")
        writer.add(record(1))
    assert (workdir / "records.jsonl").read_text().endswith("their line\n")
    assert (workdir / "records-rescued-1.jsonl").read_text().count("\n") == 2


def test_it_may_happen_again_and_again(workdir):
    with store.open_writer(workdir, process=1, num_processes=2) as writer:
        for seed in range(4):
            writer.add(record(seed))
            writer.path.unlink()
    assert [path.name for path in writer.rescued] == [
        f"records-00001-rescued-{number}.jsonl" for number in (1, 1, 1, 1)
    ]
    assert seeds(workdir) == [0, 1, 2, 3]


def test_only_so_much_is_kept_in_memory(workdir, monkeypatch):
    monkeypatch.setattr(appender, "MOST_KEPT", 3 * len(appender.line_of(record(0))))
    with store.open_writer(workdir) as writer:
        for seed in range(6):
            writer.add(record(seed))
        cut(workdir / "records.jsonl")
        writer.add(record(6))
    assert seeds(workdir) == [3, 4, 5, 6]


def test_a_large_file_is_copied_whole(workdir, monkeypatch):
    monkeypatch.setattr(appender, "_CHUNK", 1000)
    with store.open_writer(workdir) as writer:
        for seed in range(9):
            writer.add(record(seed))
        before = (workdir / "records.jsonl").read_bytes()
        assert len(before) > 3000
        remove(workdir / "records.jsonl")
    assert (workdir / "records-rescued-1.jsonl").read_bytes() == before


def test_a_directory_is_followed_where_it_goes(workdir):
    moved = workdir.parent / "elsewhere"
    with store.open_writer(workdir) as writer:
        writer.add(record(0))
        os.rename(workdir, moved)
        # Whoever has its name now is another one.
        workdir.mkdir()
        writer.add(record(1))
        assert writer.workdir == moved
    assert seeds(moved) == [0, 1] and writer.rescued == () and seeds(workdir) == []


def test_a_directory_that_was_removed_is_made_again(workdir):
    with store.open_writer(workdir) as writer:
        writer.add(record(0))
        shutil.rmtree(workdir)
        writer.add(record(1))
    assert seeds(workdir) == [0, 1] and writer.workdir == workdir


def full(*arguments):
    raise OSError(errno.ENOSPC, "No space left on device")


def no_locks(*arguments):
    raise OSError(errno.ENOLCK, "No locks available")


def test_a_full_disk_names_the_file_and_only_once(workdir, monkeypatch):
    with (
        pytest.raises(OSError, match="No space left") as refusal,
        store.open_writer(workdir) as writer,
    ):
        writer.add(record(0))
        monkeypatch.setattr(os, "fsync", full)
        writer.add(record(1))
    assert refusal.value.filename == str(workdir / "records.jsonl")
    assert writer.rescued == ()


def test_a_folder_without_locks_is_named(workdir, monkeypatch):
    monkeypatch.setattr(files.fcntl, "flock", no_locks)
    with pytest.raises(OSError, match="No locks") as refusal, store.open_writer(workdir):
        pass
    assert refusal.value.filename == str(workdir / "records.jsonl")


def test_no_file_stays_open(workdir, monkeypatch):
    before = len(os.listdir("/proc/self/fd"))
    with store.open_writer(workdir) as writer:
        writer.add(record(0))
        remove(workdir / "records.jsonl")
        writer.add(record(1))
        shutil.rmtree(workdir)
    with store.open_writer(workdir), pytest.raises(ValueError), store.open_writer(workdir):
        pass
    assert len(os.listdir("/proc/self/fd")) == before
