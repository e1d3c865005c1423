"""What the engine's memory plan counts, and what it advises when nothing fits."""

import dataclasses
import re
import time

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import jax_power_smc as psmc
from jax_power_smc.engine import executables, memory_plan, programs, table_size
from jax_power_smc.models.transformer.config import TransformerConfig
from jax_power_smc.models.transformer.transformer import TransformerLM
from tests.models.small import assert_one_sentence

GIB = 2**30
QWEN_7B = TransformerConfig(
    vocab_size=152_064,
    hidden_size=3584,
    num_layers=28,
    num_heads=28,
    num_kv_heads=4,
    head_dim=128,
    mlp_size=18_944,
    tied_embeddings=False,
    max_positions=32_768,
    family="qwen2",
)
# Of Qwen2.5-7B: 28 layers of keys and values, 4 heads of 128 numbers, 2 bytes each.
KV_BYTES_PER_TOKEN = 28 * 2 * 4 * 128 * 2


class Accelerator:
    """A device with as much memory as its allocator says."""

    platform = "cuda"

    def __init__(self, stats):
        self.stats = stats

    def memory_stats(self):
        return self.stats

    def __str__(self):
        return "cuda:0"


GPU = Accelerator({"bytes_limit": 78 * GIB})


@pytest.fixture(scope="module")
def qwen():
    """Model and parameter shapes of Qwen2.5-7B; nothing is allocated."""
    model = TransformerLM(QWEN_7B, jnp.bfloat16)
    return model, nnx.state(model.abstract_module())


@pytest.fixture(scope="module")
def table():
    model = psmc.TableLM(vocab_size=50, order=2)
    return model, model.init(jax.random.key(0))


@pytest.fixture(scope="module")
def shallow():
    """The same with one layer, which is quicker to search: 3.4 GiB of weights in float32."""
    model = TransformerLM(dataclasses.replace(QWEN_7B, num_layers=1))
    return model, nnx.state(model.abstract_module())


def of_7b(qwen, num=64, prompt=512, capacity=2560, slots=16, group=4, **options):
    """At least 8 rows for every prompt and N in all; at most N for each one."""
    sizes = {"capacity": capacity, "bucket": prompt, "slots": slots, "chunk": 32}
    sizes["group"] = lambda slots: min(group, slots)
    rows = {"rows": lambda count: (max(num, min(8, num) * count), num * count)}
    return memory_plan.plan(*qwen, num, **{**sizes, **rows, "device": GPU, **options})


def of_table(table, num=8, prompt=16, capacity=64, slots=32, group=4, **options):
    sizes = {"capacity": capacity, "bucket": prompt, "slots": slots, "chunk": 8}
    sizes["group"] = lambda slots: min(group, slots)
    rows = {"rows": lambda count: (max(num, 2 * count), num * count)}
    return memory_plan.plan(*table, num, **{**sizes, **rows, **options})


class TestTreeBytes:
    def test_arrays_shapes_and_keys(self):
        tree = {
            "array": jnp.zeros((3, 5), jnp.bfloat16),
            "shape": jax.ShapeDtypeStruct((7,), jnp.int32),
            "scalar": jnp.zeros((), bool),
            "keys": jax.random.split(jax.random.key(0), 4),
            "shape of keys": jax.eval_shape(jax.random.key, 0),
            "none": None,
        }
        assert memory_plan.tree_bytes(tree) == 30 + 28 + 1 + 4 * 8 + 8


class TestCounts:
    def test_7b(self, qwen):
        model, _ = qwen
        plan = of_7b(qwen)
        assert KV_BYTES_PER_TOKEN == 57_344
        assert plan.params == 2 * 7_615_616_512  # as the model card counts
        assert plan.row == 2560 * KV_BYTES_PER_TOKEN
        assert plan.working == 11 * 4 * 152_064 + model.temporaries(1, 1, 2560)
        # All prompts of a group, with what they may have generated before they resume; read in
        # blocks of the longest prompt.
        cache, block = 4 * 2560 * KV_BYTES_PER_TOKEN, model.temporaries(4, 512, 2560)
        assert plan.prefill == cache + block
        # A particle's state, and its records in two chunks.
        assert plan.slot == 64 * (128 + 2 * 32 * 32)
        assert plan.limit == int(0.9 * 78 * GIB)
        tables = plan.rows * (plan.row + plan.working) + plan.slots * plan.slot
        assert plan.total == plan.params + tables + plan.prefill
        assert (plan.slots, plan.fits) == (16, True)
        # As many rows as there is room for.
        assert plan.limit - plan.total < plan.row + plan.working
        assert 8 * 16 <= plan.rows < 64 * 16

    def test_long_prompts_are_bounded_by_what_the_model_says(self, qwen):
        plan = of_7b(qwen, prompt=4096, capacity=8192, slots=1)
        model, _ = qwen
        # Nobody takes the rows of a prompt alone.
        assert plan.prefill == 4096 * KV_BYTES_PER_TOKEN + model.temporaries(1, 4096, 4096)

    def test_chains_are_prefilled_into_their_caches(self, qwen):
        plan = of_7b(qwen, num=1, slots=3, group=9, prefills_whole=True)
        model, _ = qwen
        assert plan.rows == plan.slots == 3
        cache, block = 3 * 2560 * KV_BYTES_PER_TOKEN, model.temporaries(3, 512, 2560)
        assert plan.prefill == cache + block

    def test_any_language_model(self, table):
        plan = of_table(table)
        assert plan.params == 51**2 * 50 * 4
        assert plan.row == 64 * 4
        assert plan.working == 11 * 4 * 50
        assert plan.prefill == 4 * 16 * 4
        assert (plan.slots, plan.rows) == (32, 256)
        assert plan.device == str(jax.devices()[0])

    def test_a_cpu_has_two_caches_while_a_table_is_resized(self, table):
        wide = of_table(table, capacity=4096)
        assert wide.working == wide.row == 4096 * 4
        assert of_table(table, capacity=4096, resizes=False).working == 11 * 4 * 50
        assert of_table(table, capacity=4096, device=GPU).working == 11 * 4 * 50

    def test_models_that_do_not_say_what_they_need(self):
        class Silent:
            vocab_size = 50
            config = dataclasses.replace(QWEN_7B, num_heads=8, mlp_size=100)

            def init_cache(self, params, num_rows, capacity):
                return jnp.zeros((num_rows, capacity), jnp.int32)

        plan = of_table((Silent(), {}), device=GPU)
        # Of a layer: its scores, or the middle of its MLP if that is wider.
        assert plan.working == 11 * 4 * 50 + 3 * 4 * 8 * 64
        assert plan.prefill == 4 * (16 * 4 + 3 * 4 * 16 * max(8 * 16, 100))

    def test_shapes_count_as_the_arrays_they_stand_for(self, table):
        model, params = table
        assert of_table((model, jax.eval_shape(lambda: params))) == of_table(table)

    def test_16_bits_on_a_cpu(self, qwen):
        gpu, cpu = of_7b(qwen, slots=1), of_7b(qwen, slots=1, device=None, limit=10**12)
        embedding_and_head = 2 * 152_064 * 3584 * 2
        assert cpu.params == gpu.params + 3 * embedding_and_head
        # The loop carries keys and values in float32, before and after a step.
        assert cpu.working == gpu.working + 2 * gpu.row
        assert cpu.row == gpu.row


class TestSlots:
    @pytest.mark.parametrize("slots", [1, 2, 5, 31])
    def test_the_most_that_fit(self, table, slots):
        whole = of_table(table)
        needs = dataclasses.replace(
            whole,
            slots=slots,
            rows=max(8, 2 * slots),
            # What resumes may be as long as a row.
            prefill=4 * (16 if slots == 1 else min(4, slots) * 64),
        ).total
        plan = of_table(table, limit=needs)
        assert (plan.slots, plan.rows) == (slots, max(8, 2 * slots))
        if slots > 1:
            assert of_table(table, limit=needs - 1).slots == slots - 1

    def test_rows_beyond_the_useful_are_not_planned(self, table):
        plan = of_table(table, limit=10**12, rows=lambda slots: (8, 9))
        assert plan.rows == 9
        assert of_table(table, limit=10**12, rows=lambda slots: (7, 7)).rows == 7

    def test_more_of_anything_never_gives_more_slots(self, qwen):
        for name, values in {
            "num": (1, 2, 8, 64, 128),
            "prompt": (64, 512, 2048),
            "capacity": (2048, 3000, 8192),
        }.items():
            plans = [of_7b(qwen, slots=1000, **{name: value}) for value in values]
            slots = [plan.slots for plan in plans]
            assert slots == sorted(slots, reverse=True) and slots[0] > slots[-1] >= 1
            assert all(plan.fits for plan in plans)

    def test_a_larger_limit_never_gives_fewer(self, qwen):
        plans = [of_7b(qwen, slots=1000, limit=limit * GIB) for limit in (26, 30, 80, 800)]
        slots = [plan.slots for plan in plans]
        assert slots == sorted(slots) and slots[0] < slots[-1]

    def test_never_more_than_wanted(self, qwen):
        plan = of_7b(qwen, slots=3, limit=10**13)
        assert (plan.slots, plan.rows) == (3, 3 * 64)

    def test_the_sentence(self, qwen):
        assert str(of_7b(qwen)) == (
            "16 prompts of 64 particles at a time in up to 379 rows of 2,560 tokens: weights 14.2 "
            "GiB, rows 51.8 GiB, working 2.9 GiB, prefill 1.3 GiB, total 70.1 GiB of 70.2 GiB "
            "on cuda:0"
        )

    def test_one_of_each(self, table):
        text = str(of_table(table, num=1, capacity=1, slots=1, rows=lambda slots: (1, 1)))
        assert text.startswith(
            "1 prompt of 1 particle at a time in up to 1 row of 1 token: weights"
        )

    def test_is_quick_once_the_sizes_were_seen(self, qwen):
        of_7b(qwen)
        seconds = []
        for _ in range(5):
            began = time.perf_counter()
            of_7b(qwen)
            seconds.append(time.perf_counter() - began)
        # Measured 19 ms; the rest is room for a loaded machine.
        assert min(seconds) < 0.25


class TestRefusals:
    def refusal(self, *args, **options):
        with pytest.raises(ValueError) as caught:
            of_7b(*args, **options)
        return str(caught.value)

    def advised(self, text, name):
        (found,) = re.findall(rf"{name} to at most ([\d,]+)", text)
        return int(found.replace(",", ""))

    def test_the_sentence(self, qwen):
        assert self.refusal(qwen, limit=16 * GIB) == (
            "64 rows of 2,560 tokens for num_particles=64 need 9.5 GiB besides 14.2 GiB of "
            "weights, but the engine may use 16.0 GiB of cuda:0; lower num_particles to at most 11 "
            "or prompt and new tokens together to at most 352."
        )

    @pytest.mark.parametrize("chunk", [1, 32])
    def test_what_is_advised_fits_and_one_more_does_not(self, qwen, chunk):
        options = {"limit": 16 * GIB, "chunk": chunk}
        text = self.refusal(qwen, **options)
        num = self.advised(text, "num_particles")
        capacity = self.advised(text, "prompt and new tokens together")
        assert capacity % chunk == 0
        assert of_7b(qwen, num=num, **options).slots >= 1
        assert of_7b(qwen, capacity=capacity, **options).slots >= 1
        self.refusal(qwen, num=num + 1, **options)
        self.refusal(qwen, capacity=capacity + chunk, **options)

    def test_advice_that_would_not_help_is_left_out(self, shallow):
        # A single token of so many particles does not fit, few particles of so many tokens do.
        text = self.refusal(shallow, num=4096, limit=7 * GIB)
        assert "new tokens together to" not in text
        assert self.advised(text, "num_particles") >= 1
        text = self.refusal(shallow, num=2, capacity=10**6, limit=7 * GIB)
        assert "num_particles to" not in text
        assert self.advised(text, "prompt and new tokens together") > 1

    def test_nothing_helps(self, qwen):
        limit = 2 * 7_615_616_512 + 10**6
        for options in ({}, {"num": 1, "capacity": 1}):
            text = self.refusal(qwen, limit=limit, **options)
            assert text.endswith("; use a smaller model or dtype.")

    def test_not_even_the_weights(self, qwen):
        assert self.refusal(qwen, limit=8 * GIB) == (
            "the weights alone need 14.2 GiB, but the engine may use 8.0 GiB of cuda:0; use a "
            "smaller model or dtype."
        )

    @pytest.mark.parametrize("limit", [0, -1, True, "8 GiB", float("nan")])
    def test_a_limit_that_is_none(self, qwen, limit):
        assert self.refusal(qwen, limit=limit).startswith(f"memory_limit is {limit!r}; it must be")

    def test_limits_are_not_bounded_by_32_bits(self, table):
        assert of_table(table, limit=10**12).limit == 10**12


class Bunch(psmc.TableLM):
    """A table that keeps the tokens of all rows in columns."""

    def init_cache(self, params, num_rows, capacity):
        return super().init_cache(params, num_rows, capacity).T


class Careful(Bunch):
    """The same, which knows how to copy them."""

    def move(self, cache, source, destination, length, count):
        raise NotImplementedError

    insert = resize = move


class TestModels:
    def test_rows_that_cannot_be_copied_are_refused(self, table):
        _, params = table
        with pytest.raises(ValueError) as error:
            of_table((Bunch(50, 2), params))
        assert_one_sentence(error, "rows of a Bunch cannot be copied", "(64, 3)", "move, insert")

    def test_a_model_that_copies_them_itself_will_do(self, table):
        _, params = table
        assert of_table((Careful(50, 2), params)).slots == 32


class TestDeviceMemory:
    def test_of_an_accelerator(self):
        assert (
            memory_plan.device_memory(Accelerator({"bytes_limit": 1000, "bytes_in_use": 7})) == 900
        )

    @pytest.mark.parametrize("stats", [None, {}, {"bytes_in_use": 7}])
    def test_of_one_that_does_not_say(self, table, stats):
        device = Accelerator(stats)
        with pytest.raises(ValueError, match=r"cuda:0 does not say .* pass memory_limit= bytes\."):
            memory_plan.device_memory(device)
        assert of_table(table, device=device, limit=10**9).slots == 32

    def test_of_this_machine(self):
        assert (
            2**28 < memory_plan.device_memory() == memory_plan.device_memory(jax.devices("cpu")[0])
        )

    @pytest.mark.parametrize(
        "lines, files, least",
        [
            ("0::/", {"memory.max": "5000000\n"}, 5_000_000),
            ("0::/", {"memory.max": "max\n"}, None),
            ("0::/a/b", {"a/b/memory.max": "max", "a/memory.max": "4000000"}, 4_000_000),
            ("0::/a/b", {"a/b/memory.max": "3000000", "a/memory.max": "4000000"}, 3_000_000),
            ("0::/of/the/host", {"memory.max": "2000000"}, 2_000_000),
            ("3:cpu:/\n4:memory:/a", {"memory/a/memory.limit_in_bytes": "1000000\n"}, 1_000_000),
            ("4:hugetlb,memory:/x", {"memory/memory.limit_in_bytes": "1000000"}, 1_000_000),
            ("4:memory:/", {"memory/memory.limit_in_bytes": "9223372036854771712"}, None),
            ("3:cpu:/a", {"memory/a/memory.limit_in_bytes": "1000000"}, None),
            ("0::/", {}, None),
        ],
    )
    def test_of_a_control_group(self, monkeypatch, tmp_path, lines, files, least):
        monkeypatch.setattr(memory_plan, "CGROUP_ROOT", tmp_path / "nowhere")
        monkeypatch.setattr(memory_plan, "OWN_CGROUPS", tmp_path / "absent")
        physical = memory_plan.device_memory()
        monkeypatch.setattr(memory_plan, "CGROUP_ROOT", tmp_path / "cgroup")
        monkeypatch.setattr(memory_plan, "OWN_CGROUPS", tmp_path / "own")
        (tmp_path / "own").write_text(lines + "\n")
        (tmp_path / "memory.max").write_text("1")  # above the root: not ours
        for name, text in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        expected = physical if least is None else int(0.7 * least)
        assert memory_plan.device_memory() == expected


# --- What the compiled programs need ---

SMALL = {"num_layers": 2, "num_heads": 8, "num_kv_heads": 4, "head_dim": 32}
MODELS = {
    "wide vocabulary": TransformerLM(
        TransformerConfig(vocab_size=8000, hidden_size=64, mlp_size=256, **SMALL)
    ),
    "wide layers": TransformerLM(
        TransformerConfig(vocab_size=512, hidden_size=128, mlp_size=1024, **SMALL), jnp.bfloat16
    ),
    "table": psmc.TableLM(300, 1),
}
TARGETS = {
    "plain": psmc.PowerTarget(2.0, (1,)),
    "restricted": psmc.PowerTarget(
        *(2.0, (1,), "forced_eos"),
        min_new_tokens=2,
        top_k=7,
        top_p=0.9,
        stop=psmc.StopString("aab"),
    ),
}


@pytest.fixture
def compiled(monkeypatch):
    """Memory of the programs that ran: by name, the last one's."""
    original, found = executables.executable, {}

    def noted(function, *args):
        program = original(function, *args)
        found[function.__name__] = program.memory_analysis()
        return program

    monkeypatch.setattr(executables, "executable", noted)
    return found


def new(memory):
    """What a program holds besides its arguments: results in their place do not count."""
    return memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes


@pytest.mark.usefixtures("full_optimization")
@pytest.mark.parametrize(
    ("name", "target", "sampler"),
    [
        ("wide vocabulary", "restricted", psmc.WithoutReplacement(16)),
        ("wide layers", "plain", psmc.WithoutReplacement(16)),
        ("table", "restricted", psmc.PowerSMC(16)),
    ],
)
def test_a_plan_is_never_less_than_the_programs_need_and_little_more(
    compiled, name, target, sampler
):
    model = MODELS[name]
    engine = psmc.Engine(
        model,
        model.init(jax.random.key(0)),
        sampler=sampler,
        **{"max_prompt_tokens": 256, "max_new_tokens": 256, "slots": 4, "rows": 64},
        capacity=512,
        tokenizer=[b"a"] * model.vocab_size,
    )
    asked = [psmc.StreamRequest([1] * 200, TARGETS[target], 9)]
    (done,) = engine.stream(asked, key=jax.random.key(0))
    assert done.error is None
    chunk, prefill, insert = (compiled[x] for x in ("decode_chunk", "prefill", "insert"))
    # The records of the chunk before are still on their way.
    records = chunk.output_size_in_bytes - chunk.alias_size_in_bytes
    needed = chunk.argument_size_in_bytes + new(chunk) + records + new(prefill)
    assert needed <= engine.plan.total <= max(1.1 * needed, needed + 64 * 2**20)
    assert insert.argument_size_in_bytes + new(insert) <= engine.plan.total


@pytest.mark.usefixtures("full_optimization")
@pytest.mark.parametrize(
    ("before", "after"),
    [((48, 512), (64, 512)), ((64, 256), (64, 512)), ((64, 512), (48, 512))],
)
def test_a_table_is_resized_with_nothing_but_two_caches(before, after):
    model = MODELS["wide vocabulary"]
    params, sampler = model.init(jax.random.key(0)), psmc.PowerSMC(16).traced()

    def start():
        sizes = {"num_rows": before[0], "capacity": before[1]}
        return programs.start(params, sampler, model=model, num_slots=4, dtype=jnp.float32, **sizes)

    state = jax.eval_shape(start)
    sizes = {"num_rows": after[0], "capacity": after[1], "model": model}
    memory = executables.executable(table_size.resize, sizes, (params, state)).memory_analysis()
    cache = memory_plan.tree_bytes(state.rows.cache)
    assert new(memory) < max(after[0] * after[1] / (before[0] * before[1]), 1) * cache + 2**20
    if after[0] < before[0]:
        sizes = {"num_rows": after[0], "model": model}
        compact = executables.executable(table_size.compact, sizes, (state,)).memory_analysis()
        assert compact.alias_size_in_bytes >= cache and new(compact) < 0.02 * cache
