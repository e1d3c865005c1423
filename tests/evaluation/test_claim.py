"""Whose a workdir is, and who else may work there."""

import json
import multiprocessing

import pytest
from etils import epath

from jax_power_smc.evaluation import claim, store

CONFIG = {
    "model": "m",
    "limit": 2,
    "seeds": [0],
    "samplers": {"smc": {"kind": "smc", "label": None, "num_particles": 8}},
}
CONDITIONS = {"algorithm": 1, "model": {"files": {"weights": "aa", "config.json": "bb"}}}
WANTED = {
    "config": CONFIG,
    "conditions": CONDITIONS,
    "num_problems": 2,
    "labels": {"smc": "Power-SMC"},
    "date": "2026-07-31",
    "commit": None,
    "problems": {"a": "1", "b": "2"},
    "renderings": {"a": "3", "b": "4"},
    "start": {"started": "now"},
}


@pytest.fixture
def workdir(tmp_path):
    return epath.Path(tmp_path / "new" / "job")


def wanted(config=None, **changes):
    return {**WANTED, "config": CONFIG | (config or {}), **changes}


def test_a_new_workdir_says_what_it_is_for(workdir):
    held = claim.claim(workdir, WANTED)
    assert claim.read_config(workdir) == held
    own = {name: value for name, value in WANTED.items() if name != "start"}
    assert held == own | {"hash": claim.hash_of(WANTED), "starts": [{"started": "now"}]}
    assert [path.name for path in workdir.iterdir()] == ["config.json"]


def test_the_same_may_go_on_and_keeps_the_first_date(workdir):
    first = claim.claim(workdir, WANTED)
    again = claim.claim(
        workdir, wanted({"seeds": (0,)}, date="2026-08-01", start={"started": "later"})
    )
    assert again == first | {"starts": [{"started": "now"}, {"started": "later"}]}
    assert claim.read_config(workdir) == again


@pytest.mark.parametrize(
    "change",
    [
        {"limit": 1},
        {"seeds": [0, 1]},
        {"samplers": {**CONFIG["samplers"], "swor": {"kind": "swor"}}},
        {"samplers": {"swor": {"kind": "swor"}}},
        {"samplers": {"smc": {**CONFIG["samplers"]["smc"], "label": "another name"}}},
        {"num_particles": 9},
        {"mesh": {"scope": "global"}},
    ],
)
def test_another_scope_may_go_on_and_is_written_down(workdir, change):
    claim.claim(workdir, WANTED)
    assert claim.claim(workdir, wanted(change))["config"] == CONFIG | change


def test_problems_of_earlier_scopes_are_remembered_behind_those_of_this_one(workdir):
    claim.claim(workdir, WANTED)
    held = claim.claim(workdir, wanted(num_problems=1, problems={"b": "2"}, renderings={"b": "4"}))
    assert list(held["problems"].items()) == [("b", "2"), ("a", "1")]
    assert held["renderings"] == {"a": "3", "b": "4"}


def test_another_config_is_refused_with_every_field_that_differs(workdir):
    held = claim.claim(workdir, WANTED)
    smc = {**CONFIG["samplers"]["smc"], "num_particles": 16}
    with pytest.raises(ValueError, match="another config") as refusal:
        claim.claim(workdir, wanted({"model": "n", "samplers": {"smc": smc}, "more": None}))
    for sentence in (
        'model is "n", there it is "m"',
        "samplers.smc.num_particles is 16, there it is 8",
        "more is null, there it is absent",
    ):
        assert sentence in str(refusal.value)
    assert claim.read_config(workdir) == held


def test_other_conditions_are_refused(workdir):
    claim.claim(workdir, WANTED)
    with pytest.raises(ValueError, match="algorithm is 2, there it is 1"):
        claim.claim(workdir, wanted(conditions=CONDITIONS | {"algorithm": 2}))


def test_another_model_is_refused_with_the_files_that_changed(workdir):
    claim.claim(workdir, WANTED)
    files = {"weights": "cc", "config.json": "bb", "chat_template.jinja": "dd"}
    other = CONDITIONS | {"model": {"files": files}}
    with pytest.raises(ValueError, match=r"another model: its chat_template.jinja and weights ch"):
        claim.claim(workdir, wanted(conditions=other))
    with pytest.raises(ValueError, match=r"another model \(commit None then, abc now\): its"):
        claim.claim(workdir, wanted(conditions=other, commit="abc"))


@pytest.mark.parametrize(("one", "other"), [(2, 2.0), (1, True), ({}, None)])
def test_values_that_python_calls_equal_are_not_the_same(workdir, one, other):
    claim.claim(workdir, wanted({"x": [one]}))
    with pytest.raises(ValueError, match="another config: x is"):
        claim.claim(workdir, wanted({"x": [other]}))


def test_every_field_counts_for_the_hash():
    hashes = {
        claim.hash_of(each)
        for each in (
            WANTED,
            wanted({"model": "n"}),
            wanted({"seeds": [1]}),
            wanted(conditions={"algorithm": 2}),
        )
    }
    assert len(hashes) == 4
    assert claim.hash_of(wanted(dict(reversed(CONFIG.items())))) == claim.hash_of(WANTED)


def test_records_of_nobody_are_left_alone(workdir):
    workdir.mkdir(parents=True)
    (workdir / "records.jsonl").write_text("older\n")
    with pytest.raises(ValueError, match=r"records.jsonl and no config.json"):
        claim.claim(workdir, WANTED)
    assert (workdir / "records.jsonl").read_text() == "older\n"


def test_a_hash_that_is_not_that_of_the_config(workdir):
    held = claim.claim(workdir, WANTED)
    text = (workdir / "config.json").read_text()
    (workdir / "config.json").write_text(text.replace(held["hash"], "0123456789ab"))
    with pytest.raises(ValueError, match=r"config.json is damaged: its hash is 0123456789ab"):
        claim.claim(workdir, WANTED)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"config": {}}', '{"config": 1, "hash": ""}'])
def test_a_damaged_config_is_named(workdir, text):
    workdir.mkdir(parents=True)
    (workdir / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config.json is not what a job wrote"):
        claim.claim(workdir, WANTED)


def test_a_config_of_an_earlier_version_is_refused(workdir):
    workdir.mkdir(parents=True)
    (workdir / "config.json").write_text(json.dumps({"hash": "x", "config": CONFIG}))
    with pytest.raises(ValueError, match="written by an earlier version of this package"):
        claim.claim(workdir, WANTED)


# --- Starts at the same time --------------------------------------------------------------------


def test_only_one_job_is_in_a_workdir(workdir):
    # The lock belongs to the open file, so this is what another process would see.
    with (
        claim.locked(workdir),
        pytest.raises(ValueError, match="another job is writing to"),
        claim.locked(workdir),
    ):
        pass
    with claim.locked(workdir):
        pass


def race(workdir, alpha, start, stay, said):
    start.wait()
    try:
        with claim.locked(epath.Path(workdir)):
            claim.claim(epath.Path(workdir), wanted({"alpha": alpha}))
            said.put((alpha, "works"))
            stay.wait()
    except ValueError as error:
        said.put((alpha, str(error)))


def test_of_real_processes_that_race_for_a_fresh_workdir_one_gets_it(workdir):
    context = multiprocessing.get_context("fork")
    start, stay, said = context.Event(), context.Event(), context.Queue()
    racers = [
        context.Process(target=race, args=(str(workdir), alpha, start, stay, said))
        for alpha in range(8)
    ]
    for each in racers:
        each.start()
    start.set()
    heard = [said.get(timeout=60) for _ in racers]
    stay.set()
    for each in racers:
        each.join()
    (winner,) = [alpha for alpha, text in heard if text == "works"]
    assert claim.read_config(workdir)["config"]["alpha"] == winner
    for alpha, text in heard:
        assert alpha == winner or "another job is writing to" in text
    # And when it has ended, the others are another config.
    with pytest.raises(ValueError, match=f"alpha is 99, there it is {winner}"):
        claim.claim(workdir, wanted({"alpha": 99}))


def test_a_remote_workdir_lets_at_most_one_config_through(workdir, monkeypatch):
    monkeypatch.setattr(store, "is_remote", lambda path: True)
    write = store.write_json

    def meanwhile(path, value):
        monkeypatch.setattr(store, "write_json", write)
        with pytest.raises(ValueError, match=r"a job of another config \(.{12}\) has just started"):
            claim.claim(workdir, wanted({"alpha": 2.0}))
        write(path, value)

    # After the first one has claimed it, and before its config.json is there.
    monkeypatch.setattr(store, "write_json", meanwhile)
    claim.claim(workdir, wanted({"alpha": 4.0}))
    assert claim.read_config(workdir)["config"]["alpha"] == 4.0
    claim.claim(workdir, wanted({"alpha": 4.0, "limit": 9}))
