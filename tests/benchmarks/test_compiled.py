"""Programs compiled for devices that are not there.

Those marked ``compiled`` do it for TPUs and GPUs, which needs what ``make compiled`` installs. The
others compile the same for this machine's CPU.
"""

import os
import runpy
import sys

import jax
import pytest

from jax_power_smc.benchmarks import compiled
from jax_power_smc.benchmarks.lowering import Programs
from jax_power_smc.benchmarks.step_account import Cost
from jax_power_smc.core.mesh import make_mesh
from jax_power_smc.models.transformer.config import TransformerConfig
from jax_power_smc.models.transformer.transformer import TransformerLM
from jax_power_smc.samplers import PowerSMC
from tests.paths import ROOT

SMALL = {
    "family": "qwen2",
    "vocab_size": 320,
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "mlp_size": 32,
    "tied_embeddings": False,
    "max_positions": 256,
}
QWEN_7B = runpy.run_path(str(ROOT / "configs" / "compiled.py"))["QWEN_7B"]


def job(**changes):
    given = {
        **{"target": "h200", "model": SMALL, "num_particles": 4, "prompts": 2, "rows": 8},
        **{"capacity": 128, "prompt_tokens": 16, "steps": 3, "mesh": (1, 1)},
    }
    return compiled.Job(**{**given, **changes})


def programs(made, devices):
    model = TransformerLM(TransformerConfig(**made.model), made.dtype, layout="flat")
    mesh = make_mesh(made.mesh[1], devices)
    return Programs(model, mesh, PowerSMC(made.num_particles), made.sizes)


# --- on this machine ---


def test_ages():
    found = compiled.ages(4, 100)
    assert found == {"full": [99] * 4, "mixed": [12, 37, 62, 87]}


@pytest.mark.parametrize(("tied", "size"), [(False, 1), (True, 1), (False, 2)])
def test_least_bytes(tied, size):
    made = job(model={**SMALL, "tied_embeddings": tied}, mesh=(1, size))
    found = compiled.least_bytes(programs(made, jax.devices()[:size]), [4] * 8)
    # Two bytes each: queries and output, keys and values, the three of the MLP, and biases.
    layer = (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 32 + (32 + 2 * 16)) // size + 2 * 32
    # The head; of an embedding apart, one vector per row.
    rest = 320 * 32 // size + 32 + (0 if tied else 8 * 32)
    assert found == {
        "weights": 2 * (2 * layer + rest),
        "cache": 2 * 2 * 2 * 16 // size * 8 * 5,
        "new_entries": 2 * 2 * 2 * 16 // size * 8,
        "logits": 4 * 8 * 320 // size,
    }


def test_what_attention_reads():
    leaf = jax.ShapeDtypeStruct((2, 512, 128), jax.numpy.bfloat16)
    # Whole blocks of 512 and a tile of 16; or what is filled.
    assert compiled.attention_bytes("tpu", leaf, 64, [3, 511]) == 2 * 256 * 2 * (512 + 16)
    assert compiled.attention_bytes("cuda", leaf, 64, [3, 511]) == 2 * 256 * (4 + 512)


def test_roofline():
    target = compiled.Target("tpu", "", (1, 1), bandwidth=100.0, clock=10.0)
    bytes_ = {"least": 300.0, "moved": 400.0}
    # 50 of 60 cycles are computation: 5 seconds; attention 1; more than the bytes' 4.
    rest = Cost(cycles=60, exchange_cycles=10)
    found = compiled.roofline(target, rest, 100.0, bytes_)
    assert found == {"seconds": 6.0, "share": 0.5, "share_of_bytes": 0.75}
    found = compiled.roofline(target, Cost(cycles=1), 100.0, bytes_)
    assert (found["seconds"], found["share"]) == (4.0, 0.75)
    gpu = compiled.Target("cuda", "", (1, 1), bandwidth=100.0)
    assert compiled.roofline(gpu, rest, 100.0, bytes_)["seconds"] == 4.0


@pytest.mark.usefixtures("full_optimization")
def test_all_programs_of_a_job(monkeypatch, tmp_path):
    monkeypatch.setattr(compiled, "devices", lambda target: jax.devices())
    monkeypatch.setattr(compiled, "_versions", lambda platform: {"versions": "none"})
    found = {
        x["program"]: x for x in compiled.compile_programs(job(mesh=(1, 2), keep=str(tmp_path)))
    }
    assert set(found) == {"decode_chunk", "prefill", "insert", "compact", "resize", "all"}
    chunk = found["decode_chunk"]
    assert chunk["cache"] == 2 * 2 * 2 * 8 * 128 * 8
    assert chunk["heads"] == 1 and chunk["sorts"] == 0
    assert chunk["groups"] == [(0, 1)] and chunk["collectives"] > 4
    for age in ("full", "mixed"):
        assert 0 < chunk[age]["least"] < chunk[age]["moved"]
    assert chunk["full"]["least"] > chunk["mixed"]["least"]
    # Keys and values of a whole row, in blocks; read and written, in float32 on a CPU.
    assert chunk["full"]["moved_by_a_move"] >= 2 * chunk["cache"] / 8
    assert found["all"]["planned"] >= found["all"]["needed"]
    assert (tmp_path / "h200_1x2_decode_chunk_L2_R8.hlo").read_text().startswith("HloModule")


def test_a_process_that_fails_is_reported_with_its_words(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'no such plugin' >&2\nexit 3\n")
    python.chmod(0o755)
    with pytest.raises(RuntimeError, match=r"for h200 failed.*make compiled.*no such plugin"):
        list(compiled.run(job(), str(python)))
    with pytest.raises(RuntimeError, match="the interpreter of h200 cannot be started"):
        list(compiled.run(job(), str(tmp_path / "absent")))


def test_a_process_has_the_environment_that_it_needs(monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    script = tmp_path / "said.py"
    script.write_text(
        "import json, os, sys, jax_power_smc\n"
        "print('a line of a library')\n"
        "print(json.dumps({'env': dict(os.environ), 'job': json.loads(sys.argv[-1])}))\n"
    )
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {script} "$@"\n')
    python.chmod(0o755)
    (found,) = compiled.run(job(), str(python))
    assert found["job"]["target"] == "h200" and found["job"]["mesh"] == [1, 1]
    assert found["env"]["JAX_PLATFORMS"] == "cpu"
    assert found["env"]["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "0"


# --- for devices that are not there ---

PYTHON = {"tpu": os.environ.get("PSMC_COMPILED_TPU"), "cuda": os.environ.get("PSMC_COMPILED_CUDA")}
TARGETS = os.environ.get("PSMC_COMPILED_TARGETS", "v5e h200").split()
LAYERS = int(os.environ.get("PSMC_COMPILED_LAYERS", "2"))
# Where a program may use both axes, it must not use the wrong one.
MESHES = {"v5e": (2, 2)}
BYTES_OF_LOGITS = 6 * 4


@pytest.fixture(scope="module", params=TARGETS)
def found(request):
    """Everything about a target's programs, by program."""
    target = compiled.TARGETS[request.param]
    python = PYTHON[target.platform]
    if python is None:
        pytest.skip("make compiled has not installed what this needs")
    data, size = MESHES.get(request.param, target.mesh)
    asked = compiled.Job(
        request.param,
        {**QWEN_7B, "num_layers": LAYERS},
        num_particles=16,
        prompts=1,
        rows=16,
        capacity=2560,
        prompt_tokens=512,
        steps=16,
        mesh=(data, size),
    )
    records = {record["program"]: record for record in compiled.run(asked, python)}
    return {**records, "model": size, "data": data, "platform": target.platform}


@pytest.mark.compiled
class TestPrograms:
    def test_nothing_copies_the_cache(self, found):
        for name in ("decode_chunk", "insert", "compact"):
            program = found[name]
            assert program["copies"] == [], name
            assert (program["relayouts"], program["conditionals_with_cache"]) == (0, 0), name
            assert program["aliased"] >= program["cache"], name

    def test_temporaries_are_a_small_part_of_the_cache(self, found):
        chunk = found["decode_chunk"]
        logits = BYTES_OF_LOGITS * 16 * QWEN_7B["vocab_size"] / found["model"]
        assert chunk["temporaries"] - logits < 0.1 * chunk["cache"]
        for name in ("insert", "compact", "resize"):
            assert found[name]["temporaries"] < 0.1 * chunk["cache"], name

    def test_attention_is_a_kernel_in_every_layer(self, found):
        chunk = found["decode_chunk"]
        name = {"tpu": "tpu_custom_call", "cuda": "__cudnn$fmhaSoftmax"}[found["platform"]]
        assert (chunk["attention_kernels"], chunk["attentions"]) == ([name], LAYERS)

    def test_one_head_and_no_sort_of_the_vocabulary(self, found):
        assert (found["decode_chunk"]["heads"], found["decode_chunk"]["sorts"]) == (1, 0)
        assert found["prefill"]["heads"] == 0  # nobody reads the logits

    def test_a_step_moves_little_more_than_it_must(self, found):
        for age in ("full", "mixed"):
            step = found["decode_chunk"][age]
            # A TPU keeps the logits in fast memory.
            least = step["least"] - step["least_logits"]
            assert least <= step["moved"] < step["least"] / 0.85, age

    def test_a_moved_row_is_read_and_written_once(self, found):
        # When nothing moves, these loops make no turn.
        full = found["decode_chunk"]["full"]
        # On a GPU the piece itself lies in memory between reading and writing.
        most = {"tpu": 1.1, "cuda": 2.1}[found["platform"]] * full["least_of_a_move"]
        assert full["least_of_a_move"] / 2 <= full["moved_by_a_move"] <= most

    def test_exchanges(self, found):
        chunk, size = found["decode_chunk"], found["model"]
        groups = [list(range(i * size, (i + 1) * size)) for i in range(found["data"])]
        if size == 1:
            assert chunk["collectives"] == 0
            return
        # Among the devices of "model" alone: streams of attention, of the MLP and of the embedding.
        assert chunk["groups"] == groups
        streams = [x for x in chunk["collective_kinds"] if "bf16[16,3584]" in x]
        assert streams == ["all-reduce bf16[16,3584]"]
        assert 2 * LAYERS + 1 < chunk["collectives"] <= 2 * LAYERS + 1 + 6
        for name in ("insert", "compact", "resize"):
            assert found[name]["collectives"] == 0, name

    def test_the_memory_plan(self, found):
        planned, needed = found["all"]["planned"], found["all"]["needed"]
        assert needed <= planned <= max(1.1 * needed, needed + 64 * 2**20)
