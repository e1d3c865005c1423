"""The workdir: who may write there, what a kill leaves behind, and what is read back."""

import json
import os
import re

import pytest
from etils import epath

from jax_power_smc.evaluation import store

CONFIG = {"model": "m", "seeds": [0], "samplers": {"smc": {"num_particles": 8}}}


def record(seed=0, id="a", **more):
    return {"run": "smc", "seed": seed, "id": id, **more}


@pytest.fixture
def workdir(tmp_path):
    return epath.Path(tmp_path / "new" / "job")


def lines(workdir, name="records.jsonl"):
    return (workdir / name).read_text().splitlines()


# --- Whose workdir it is ----------------------------------------------------------------------


def test_a_new_workdir_says_what_was_asked_for(workdir):
    digest = store.claim(workdir, CONFIG, {"version": "1"})
    assert store.read_config(workdir) == {"hash": digest, "config": CONFIG, "version": "1"}
    assert [path.name for path in workdir.iterdir()] == ["config.json"]


def test_the_same_config_may_go_on(workdir):
    digest = store.claim(workdir, CONFIG, {"version": "1"})
    tuples = {**CONFIG, "seeds": (0,)}
    assert store.claim(workdir, tuples, {"version": "2"}) == digest
    assert store.read_config(workdir)["version"] == "1"


def test_another_config_is_refused_with_every_field_that_differs(workdir):
    store.claim(workdir, CONFIG, {})
    other = {
        "model": "n",
        "seeds": [0, 1],
        "samplers": {"smc": {"num_particles": 16}},
        "more": None,
    }
    with pytest.raises(ValueError, match="another config") as refusal:
        store.claim(workdir, other, {})
    for sentence in (
        'model is "n", there it is "m"',
        "seeds is [0, 1], there it is [0]",
        "samplers.smc.num_particles is 16, there it is 8",
        "more is null, there it is absent",
    ):
        assert sentence in str(refusal.value)
    assert store.read_config(workdir)["config"] == CONFIG


def test_every_field_counts_for_the_hash():
    hashes = {
        store.fingerprint(config)
        for config in (
            CONFIG,
            {**CONFIG, "model": "n"},
            {**CONFIG, "seeds": [1]},
            {**CONFIG, "samplers": {"smc": {"num_particles": 9}}},
        )
    }
    assert len(hashes) == 4 and all(re.fullmatch("[0-9a-f]{12}", x) for x in hashes)
    assert store.fingerprint(dict(reversed(CONFIG.items()))) == store.fingerprint(CONFIG)


def test_records_of_nobody_are_left_alone(workdir):
    workdir.mkdir(parents=True)
    (workdir / "records.jsonl").write_text("older\n")
    with pytest.raises(ValueError, match=r"records.jsonl and no config.json"):
        store.claim(workdir, CONFIG, {})
    assert lines(workdir) == ["older"]


@pytest.mark.parametrize(("one", "other"), [(2, 2.0), (1, True), ({}, None)])
def test_values_that_python_calls_equal_are_not_for_the_hash(workdir, one, other):
    store.claim(workdir, {"x": [one]}, {})
    with pytest.raises(ValueError, match="another config: x is"):
        store.claim(workdir, {"x": [other]}, {})


def test_a_hash_that_is_not_that_of_the_config(workdir):
    digest = store.claim(workdir, CONFIG, {})
    text = (workdir / "config.json").read_text()
    (workdir / "config.json").write_text(text.replace(digest, "0123456789ab"))
    with pytest.raises(ValueError, match=r"config.json is damaged: its hash is 0123456789ab"):
        store.claim(workdir, CONFIG, {})


@pytest.mark.parametrize("text", ["", "{", "[]", '{"config": {}}', '{"config": 1, "hash": ""}'])
def test_a_damaged_config_is_named(workdir, text):
    workdir.mkdir(parents=True)
    (workdir / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config.json is not what a job wrote"):
        store.claim(workdir, CONFIG, {})


# --- Lines of a local file --------------------------------------------------------------------


def test_records_come_back(workdir):
    store.claim(workdir, CONFIG, {})
    written = [record(seed, id, text="\ud800 \n é") for seed in (0, 1) for id in "ab"]
    with store.open_writer(workdir) as writer:
        for number, each in enumerate(written, start=1):
            writer.add(each)
            # Others see it while the job goes on.
            assert len(list(store.read_records(workdir))) == number
    assert list(store.read_records(workdir)) == written


def test_every_line_is_on_the_disk_before_the_next(workdir, monkeypatch):
    store.claim(workdir, CONFIG, {})
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
    store.claim(workdir, CONFIG, {})
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
    store.claim(workdir, CONFIG, {})
    with store.open_writer(workdir) as writer:
        writer.add(record(0))
    with open(workdir / "records.jsonl", "r+") as file:
        file.truncate(os.path.getsize(workdir / "records.jsonl") - 1)
    assert list(store.read_records(workdir)) == []


@pytest.mark.parametrize(
    "line", ["{", "[]", "7", '{"run": "smc"}', '{"run": [], "seed": 0, "id": "a"}', "\\x00"]
)
def test_a_damaged_line_is_named(workdir, line):
    store.claim(workdir, CONFIG, {})
    (workdir / "records.jsonl").write_text(f"{json.dumps(record(0))}\n{line}\n")
    with pytest.raises(ValueError, match=r"line 2 of .*records.jsonl is no record"):
        list(store.read_records(workdir))


def test_an_item_that_was_recorded_twice_is_read_once(workdir):
    store.claim(workdir, CONFIG, {})
    (workdir / "records.jsonl").write_text(f"{json.dumps(record(0, n=1))}\n")
    (workdir / "records-00001.jsonl").write_text(
        f"{json.dumps(record(0, n=2))}\n{json.dumps(record(1, n=2))}\n"
    )
    assert sorted(r["seed"] for r in store.read_records(workdir)) == [0, 1]


def test_only_one_writes_to_a_file(workdir):
    store.claim(workdir, CONFIG, {})
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


def test_jobs_of_one_and_of_several_processes_keep_each_other_out(workdir):
    store.claim(workdir, CONFIG, {})
    for counts in ((1, 2), (2, 1)):
        with (
            store.open_writer(workdir, num_processes=counts[0]),
            pytest.raises(ValueError, match="another job is writing to"),
            store.open_writer(workdir, num_processes=counts[1]),
        ):
            pass


# --- Objects of a remote workdir --------------------------------------------------------------


def objects(workdir):
    return [path.read_text().splitlines() for path in sorted((workdir / "records").iterdir())]


def test_objects_are_written_whole_and_read_in_order(workdir, monkeypatch):
    monkeypatch.setattr(store, "is_remote", lambda path: True)
    monkeypatch.setattr(store, "OBJECT_RECORDS", 2)
    store.claim(workdir, CONFIG, {})
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
    store.claim(workdir, CONFIG, {})
    with store.open_writer(workdir) as writer:
        writer.add(record(0))
        clock[0] += store.OBJECT_SECONDS - 1
        writer.add(record(1))
        assert objects(workdir) == []
        clock[0] += 1
        writer.add(record(2))
        assert [len(x) for x in objects(workdir)] == [3]


@pytest.mark.parametrize(
    ("path", "remote"), [("gs://bucket/job", True), ("s3://b/j", True), ("/tmp/job", False)]
)
def test_remote_workdirs_are_told_by_their_scheme(path, remote):
    assert store.is_remote(epath.Path(path)) is remote


def test_a_draft_is_never_seen_in_place_of_the_file(workdir, monkeypatch):
    workdir.mkdir(parents=True)
    path = workdir / "summary.json"
    store.write_json(path, {"old": 1})

    def full(*names):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        store.write_json(path, {"new": 2})
    assert json.loads(path.read_text()) == {"old": 1}


@pytest.mark.parametrize(
    ("write", "content"),
    [(store.write_whole, "é\r\n"), (store.write_bytes_whole, b"\x89PNG\r\n\x1a\n")],
)
def test_a_file_is_written_as_it_is_and_in_place_of_another(write, content, tmp_path):
    path = epath.Path(tmp_path / "file")
    path.write_text("a longer one that was there before")
    write(path, content)
    expected = content.encode() if isinstance(content, str) else content
    assert path.read_bytes() == expected
    assert [each.name for each in path.parent.iterdir()] == ["file"]
