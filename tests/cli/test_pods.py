"""Evaluations by several real processes: what they record, and what happens when one is lost."""

import os
import shutil
import signal
import sys
import time

import pytest

from tests.cli import pods
from tests.cli.command import ROOT

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux ends children with a parent"
)
# What CI runs too, and what only ``make test-pods`` does: every run starts several processes.
slow, pods_only = pytest.mark.slow, pytest.mark.pods
TOGETHER = {"mesh.scope": "global"}


@pytest.fixture(scope="module")
def evaluations(tmp_path_factory):
    return pods.Pods(tmp_path_factory.mktemp("pods"))


@pytest.fixture(scope="module")
def alone(evaluations, tmp_path_factory):
    """The workdir of a single process."""
    workdir = tmp_path_factory.mktemp("alone") / "new"
    evaluations.alone(workdir)
    assert len(pods.read(workdir)) == pods.LIMIT * len(pods.RUNS)
    return workdir


@pytest.mark.parametrize(
    ("count", "devices", "runs", "mesh"),
    [
        pytest.param(2, 1, pods.RUNS, {}, id="2-shares", marks=pods_only),
        pytest.param(4, 1, pods.FEW, {}, id="4-shares", marks=pods_only),
        pytest.param(
            *(2, 2, pods.FEW, {"mesh.model": 2}),
            id="2-shares-model-cut-within-each",
            marks=pods_only,
        ),
        pytest.param(2, 1, pods.RUNS, TOGETHER, id="2-decode-together", marks=pods_only),
        pytest.param(
            *(2, 1, pods.RUNS, TOGETHER | {"mesh.model": 2}), id="model-cut-over-2", marks=slow
        ),
        pytest.param(
            *(4, 1, pods.FEW, TOGETHER | {"mesh.model": 2}),
            id="model-cut-over-2-of-4",
            marks=pods_only,
        ),
    ],
)
def test_several_processes_record_what_one_does(
    evaluations, alone, tmp_path, count, devices, runs, mesh
):
    run = evaluations.together(tmp_path, count, devices=devices, runs=runs, **mesh)
    assert run.codes() == [0] * count, run.said()
    pods.assert_same(tmp_path, alone, runs)
    # Every process has a file of its own, and an even share of the problems for each sampler.
    assert pods.shards(tmp_path) == [f"records-{index:05d}.jsonl" for index in range(count)]
    sizes = [
        (tmp_path / name).read_bytes().count(b"\n") / len(runs) for name in pods.shards(tmp_path)
    ]
    assert all(pods.LIMIT // count <= size <= pods.LIMIT // count + 1 for size in sizes)
    printed = [out for out, _ in run.outputs()]
    assert "Every answer: " in printed[0]
    # The library of CPU collectives says that it is connected.
    own = [[line for line in out.splitlines() if "[Gloo]" not in line] for out in printed[1:]]
    assert own == [[]] * (count - 1)
    assert [err for _, err in run.outputs()] == [""] * count
    assert run.left_at_the_end == []


@slow
def test_a_killed_process_ends_the_others_and_three_finish_what_four_began(
    evaluations, alone, tmp_path
):
    total = pods.LIMIT * len(pods.FEW)
    run = evaluations.together(tmp_path, 4, runs=pods.FEW)
    pods.wait_for(tmp_path, 2, run)
    began = time.monotonic()
    os.kill(run.processes[2].pid, signal.SIGKILL)
    codes, said = run.codes(), run.said()
    assert time.monotonic() - began < 4 * pods.LOST
    assert codes == [1, 1, -signal.SIGKILL, 1], said
    for index in (0, 1, 3):
        assert run.outputs()[index][1] == (
            "error: process 2 is lost, so all stop. What is finished is recorded; the same "
            "command resumes the job, with any number of processes.\n"
        )
    assert run.left_at_the_end == []
    before = pods.written(tmp_path)
    assert 2 <= before < total
    again = evaluations.together(tmp_path, 3, runs=pods.FEW)
    assert again.codes() == [0] * 3, again.said()
    assert f"{before} of {total} items were finished" in again.said()[0]
    pods.assert_same(tmp_path, alone, pods.FEW)


@pods_only
@pytest.mark.parametrize(("mesh", "which"), [({}, 0), (TOGETHER, 1)], ids=["shares", "together"])
def test_terminating_one_process_stops_all_of_them(evaluations, alone, tmp_path, mesh, which):
    total = pods.LIMIT * len(pods.FEW)
    run = evaluations.together(tmp_path, 2, runs=pods.FEW, **mesh)
    pods.wait_for(tmp_path, 2, run)
    run.processes[which].send_signal(signal.SIGTERM)
    assert run.codes() == [0, 0], run.said()
    count = pods.written(tmp_path)
    assert 2 <= count < total
    sentence = f"Stopped with {count} of {total} items finished; the same command resumes it."
    assert sentence in run.said()[0]
    # One process alone can do the rest.
    out = evaluations.alone(tmp_path, runs=pods.FEW)
    assert f"{count} of {total} items were finished" in out
    pods.assert_same(tmp_path, alone, pods.FEW)


@pods_only
def test_processes_that_never_start_are_named(evaluations, tmp_path):
    run = evaluations.together(tmp_path, 4, "--join_seconds=30", start=[0, 2])
    assert run.codes() == [1, 1], run.said()
    assert run.said()[0] == (
        "error: processes 1 and 3 are missing: not started, or unable to reach the coordinator.\n"
    )
    assert run.said()[1].startswith("error: ") and run.said()[1].count("\n") == 1
    assert not list(tmp_path.iterdir())


@pods_only
def test_without_process_0_the_others_give_up(evaluations, tmp_path):
    run = evaluations.together(tmp_path, 2, "--join_seconds=1", start=[1])
    assert run.codes() == [1], run.said()
    assert run.said()[0].startswith("error: ") and run.said()[0].count("\n") == 1
    assert "process 0" in run.said()[0]


@pods_only
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"alpha": -1.0}, "alpha"),
        ({"model": "/no/such/model"}, "/no/such/model"),
        ({"max_new_tokens": 1000}, "the prompt of problem"),
        ({"mesh.scope": "global", "mesh.model": 3}, "divisor of the number of devices, 2"),
    ],
    ids=["value", "model", "too-long", "mesh"],
)
def test_bad_input_is_one_sentence_for_each_and_nobody_hangs(
    evaluations, tmp_path, fields, message
):
    run = evaluations.together(tmp_path, 2, **fields)
    assert run.codes() == [2, 2], run.said()
    for _, err in run.outputs():
        assert err.startswith("error: ") and err.count("\n") == 1 and message in err
    assert run.left_at_the_end == []


@slow
@pytest.mark.parametrize("mesh", [{}, TOGETHER], ids=["shares", "together"])
def test_processes_that_were_started_in_different_ways_refuse_by_name(evaluations, tmp_path, mesh):
    odd = {"alpha": 2.0, "limit": 3}
    run = evaluations.together(tmp_path / "new", 2, runs=pods.FEW, odd=odd, **mesh)
    assert run.codes() == [2, 2], run.said()
    sentence = (
        "error: the processes of this run do not agree: process 1 has config.alpha 2.0 "
        f"(process 0: 4.0), config.limit 3 (process 0: {pods.LIMIT})"
    )
    for _, err in run.outputs():
        assert err.startswith(sentence) and err.count("\n") == 1
    assert not (tmp_path / "new").exists() and run.left_at_the_end == []


@pods_only
def test_processes_that_find_another_model_at_the_same_path_refuse_by_name(evaluations, tmp_path):
    # As on hosts with disks of their own: each process finds its model in its own directory.
    commands, port = [], pods.free_port()
    for index in range(2):
        (tmp_path / str(index)).mkdir()
        model = shutil.copytree(evaluations.model, tmp_path / str(index) / "model")
        if index:
            (model / "generation_config.json").write_text('{"eos_token_id": 8}')
        flags = f"--coordinator=localhost:{port}", "--num_processes=2", f"--process_id={index}"
        workdir = tmp_path / "new"
        command = evaluations.command(workdir, *flags, runs=pods.FEW, model="model")
        program = (
            f"import os, runpy, sys; os.chdir({str(tmp_path / str(index))!r}); "
            f"sys.path.insert(0, {str(ROOT)!r}); "
            "runpy.run_module('launch.evaluate', run_name='__main__')"
        )
        commands.append([command[0], "-c", program, *command[3:]])
    run = pods.Running(commands)
    assert run.codes() == [2, 2], run.said()
    for _, err in run.outputs():
        assert "process 1 has model.files.generation_config.json" in err
    assert not (tmp_path / "new/config.json").exists()


@slow
def test_of_two_starts_on_a_fresh_workdir_one_is_refused(evaluations, alone, tmp_path):
    workdir = tmp_path / "new"
    commands = [evaluations.command(workdir, runs=pods.FEW, alpha=alpha) for alpha in (4.0, 2.0)]
    run = pods.Running(commands)
    codes, outputs = run.codes(), run.outputs()
    assert sorted(codes) == [0, 2], run.said()
    loser = codes.index(2)
    # Whether the other one was at work or had just ended.
    assert "another job is writing to" in outputs[loser][1] or "alpha is" in outputs[loser][1]
    assert len(pods.read(workdir)) == pods.LIMIT * len(pods.FEW)
    if loser:
        pods.assert_same(workdir, alone, pods.FEW)


@pods_only
def test_a_workdir_of_another_config_is_refused_by_all(evaluations, alone):
    before = pods.read(alone)
    run = evaluations.together(alone, 2, alpha=2.0)
    assert run.codes() == [2, 2], run.said()
    assert all("alpha is 2.0, there it is 4.0" in err for _, err in run.outputs())
    assert pods.read(alone) == before


@pods_only
def test_one_that_fails_alone_ends_the_others_too(evaluations, tmp_path):
    # Process 0 alone refuses it, while the other one waits.
    (tmp_path / "records.jsonl").touch()
    began = time.monotonic()
    run = evaluations.together(tmp_path, 2, runs=pods.FEW)
    assert run.codes() == [2, 1], run.said()
    assert time.monotonic() - began < 6 * pods.LOST
    (_, first), (_, second) = run.outputs()
    assert "and no config.json" in first and first.count("\n") == 1
    assert second.startswith("error: process 0 was lost, so all stop.")
    assert second.count("\n") == 1
    assert run.left_at_the_end == []


@pods_only
@pytest.mark.parametrize(("which", "word"), [(0, "was"), (1, "is")])
def test_a_process_killed_while_all_decode_together_is_named(evaluations, tmp_path, which, word):
    run = evaluations.together(tmp_path, 2, runs=pods.FEW, **TOGETHER)
    pods.wait_for(tmp_path, 2, run)
    os.kill(run.processes[which].pid, signal.SIGKILL)
    assert sorted(run.codes()) == [-signal.SIGKILL, 1], run.said()
    _, err = run.outputs()[1 - which]
    assert err.startswith(f"error: process {which} {word} lost, so all stop."), err
    assert err.count("\n") == 1


@pods_only
def test_one_that_has_done_its_share_still_passes_on_that_all_are_to_stop(evaluations, tmp_path):
    # Process 1 has nothing to do at all, and process 0 begins with very many moves.
    moves = {"samplers.mh.moves_per_block": 5000}
    run = evaluations.together(tmp_path, 2, limit=1, **moves)
    while not (tmp_path / "records-00001.jsonl").exists():
        assert run.processes[1].poll() is None
        time.sleep(0.1)
    time.sleep(3)
    run.processes[1].send_signal(signal.SIGTERM)
    assert run.codes() == [0, 0], run.said()
    assert " of 4 items finished; the same command resumes it." in run.said()[0]


@pods_only
def test_a_workdir_that_is_not_shared_is_refused(evaluations, tmp_path):
    port = pods.free_port()
    commands = []
    for index in range(2):
        (tmp_path / str(index)).mkdir()
        flags = f"--coordinator=localhost:{port}", "--num_processes=2", f"--process_id={index}"
        commands.append(evaluations.command(tmp_path / str(index), *flags, runs=("smc",)))
    run = pods.Running(commands)
    assert run.codes() == [1, 2], run.said()
    assert "all processes must see the same directory" in run.outputs()[1][1]
    assert run.outputs()[0][1].startswith("error: process 1 is lost, so all stop.")
