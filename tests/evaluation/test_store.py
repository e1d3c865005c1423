"""The workdir: what a kill leaves behind, and what is read back."""

import json
import os

import pytest
from etils import epath

from jax_power_smc.evaluation import store
from tests.evaluation.made import record


@pytest.fixture
def workdir(tmp_path):
    return epath.Path(tmp_path / "new" / "job")


def lines(workdir, name="records.jsonl"):
    return (workdir / name).read_text().splitlines()


# --- Lines of a local file --------------------------------------------------------------------


def test_records_come_back(workdir):
    workdir.mkdir(parents=True)
    written = [record(seed, id, text="\ud800 \n é") for seed in (0, 1) for id in "ab"]
    with store.open_writer(workdir) as writer:
        for number, each in enumerate(written, start=1):
            writer.add(each)
            # Others see it while the job goes on.
            assert len(list(store.read_records(workdir))) == number
    assert list(store.read_records(workdir)) == written


def test_every_line_is_on_the_disk_before_the_next(workdir, monkeypatch):
    workdir.mkdir(parents=True)
    sizes = []
    with store.open_writer(workdir) as writer:
        monkeypatch.setattr(os, "fsync", lambda file: sizes.append(os.fstat(file).st_size))
        writer.add(record(0))
        writer.add(record(1))
    assert len(sizes) == 2 and 0 < sizes[0] < sizes[1]
    assert sizes[1] == os.path.getsize(workdir / "records.jsonl")


@pytest.mark.parametrize("size", [0, 1, 2**20, 2**20 + 1])
@pytest.mark.parametrize("whole", [0, 1, 3])
def test_a_torn_last_line_is_cut_off_and_nothing_else(workdir, whole, size):
    workdir.mkdir(parents=True)
    with store.open_writer(workdir) as writer:
        for seed in range(whole):
            writer.add(record(seed, text="x" * 2**20))
    with open(workdir / "records.jsonl", "a") as file:
        file.write("{" * size)
    assert [r["seed"] for r in store.read_records(workdir)] == list(range(whole))
    with store.open_writer(workdir) as writer:
        assert writer.torn == size
        writer.add(record(9))
    assert [r["seed"] for r in store.read_records(workdir)] == [*range(whole), 9]


def test_a_line_torn_off_before_its_end_of_line_is_done_again(workdir):
    workdir.mkdir(parents=True)
    with store.open_writer(workdir) as writer:
        writer.add(record(0))
    with open(workdir / "records.jsonl", "r+") as file:
        file.truncate(os.path.getsize(workdir / "records.jsonl") - 1)
    assert list(store.read_records(workdir)) == []


@pytest.mark.parametrize(
    "line", ["{", "[]", "7", '{"run": "smc"}', '{"run": [], "seed": 0, "id": "a"}', "\\x00"]
)
def test_a_damaged_line_is_named(workdir, line):
    workdir.mkdir(parents=True)
    (workdir / "records.jsonl").write_text(f"{json.dumps(record(0))}\n{line}\n")
    with pytest.raises(ValueError, match=r"line 2 of .*records.jsonl is not a record"):
        list(store.read_records(workdir))


def test_an_item_that_was_recorded_twice_is_read_once(workdir):
    workdir.mkdir(parents=True)
    (workdir / "records.jsonl").write_text(f"{json.dumps(record(0, n=1))}\n")
    (workdir / "records-00001.jsonl").write_text(
        f"{json.dumps(record(0, n=2))}\n{json.dumps(record(1, n=2))}\n"
    )
    assert sorted(r["seed"] for r in store.read_records(workdir)) == [0, 1]


def test_only_one_writes_to_a_file(workdir):
    workdir.mkdir(parents=True)
    with store.open_writer(workdir) as writer:
        # The lock belongs to the open file, so this is what another process would see.
        with (
            pytest.raises(ValueError, match="another job is writing to"),
            store.open_writer(workdir),
        ):
            pass
        with store.open_writer(workdir, process=1, num_processes=2) as other:
            other.add(record(1))
        writer.add(record(0))
    assert lines(workdir, "records-00001.jsonl") and len(lines(workdir)) == 1
    with store.open_writer(workdir):
        pass


# --- Objects of a remote workdir --------------------------------------------------------------


def objects(workdir):
    return [path.read_text().splitlines() for path in sorted((workdir / "records").iterdir())]


def test_objects_are_written_whole_and_read_in_order(workdir, monkeypatch):
    monkeypatch.setattr(store, "is_remote", lambda path: True)
    monkeypatch.setattr(store, "OBJECT_RECORDS", 2)
    workdir.mkdir(parents=True)
    with store.open_writer(workdir) as writer:
        writer.add(record(0))
        assert objects(workdir) == []
        writer.add(record(1))
        assert [len(x) for x in objects(workdir)] == [2]
        writer.add(record(2))
    assert [len(x) for x in objects(workdir)] == [2, 1]
    with store.open_writer(workdir) as writer:
        writer.add(record(3))
        writer.flush()
        writer.flush()
    assert sorted(len(x) for x in objects(workdir)) == [1, 1, 2]
    assert sorted(r["seed"] for r in store.read_records(workdir)) == [0, 1, 2, 3]


def test_an_object_does_not_wait_long(workdir, monkeypatch):
    monkeypatch.setattr(store, "is_remote", lambda path: True)
    clock = [100.0]
    monkeypatch.setattr(store.time, "monotonic", lambda: clock[0])
    workdir.mkdir(parents=True)
    with store.open_writer(workdir) as writer:
        writer.add(record(0))
        clock[0] += store.OBJECT_SECONDS - 1
        writer.add(record(1))
        assert objects(workdir) == []
        clock[0] += 1
        writer.add(record(2))
        assert [len(x) for x in objects(workdir)] == [3]
