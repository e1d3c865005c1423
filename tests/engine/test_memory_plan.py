"""What the engine's memory plan counts, and what it advises when nothing fits."""

import dataclasses
import re
import time

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import jax_power_smc as psmc
from jax_power_smc.engine import memory_plan
from jax_power_smc.models.transformer.config import TransformerConfig
from jax_power_smc.models.transformer.transformer import TransformerLM

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


def of_7b(qwen, num=64, prompt=512, capacity=2048, wanted=16, group=4, **options):
    return memory_plan.plan(
        *qwen, num, prompt, capacity, wanted, group, **{"device": GPU, **options}
    )


def of_table(table, num=8, prompt=16, capacity=64, wanted=32, group=4, **options):
    return memory_plan.plan(*table, num, prompt, capacity, wanted, group, **options)


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
        plan = of_7b(qwen)
        assert KV_BYTES_PER_TOKEN == 57_344
        assert plan.params == 2 * 7_615_616_512  # as the model card counts
        assert plan.context == 512 * KV_BYTES_PER_TOKEN + 4  # and the length
        assert plan.cache == 64 * 2048 * KV_BYTES_PER_TOKEN
        logits, tokens = 5 * 4 * 152_064, 16 * 2048
        assert plan.working == 64 * (logits + tokens + 3 * 4 * 28 * (512 + 2048))
        # Per token the MLP's middle, 18,944, is wider than the scores, 28 x 512.
        assert plan.prefill == 4 * (plan.context + 3 * 4 * 512 * 18_944)
        assert plan.limit == int(0.9 * 78 * GIB)
        assert plan.total == (
            plan.params + plan.slots * (plan.context + plan.cache + plan.working) + plan.prefill
        )
        assert (plan.slots, plan.fits) == (7, True)

    def test_long_prompts_are_bounded_by_their_scores(self, qwen):
        plan = of_7b(qwen, prompt=4096, group=1)
        assert plan.prefill == plan.context + 3 * 4 * 28 * 4096 * 4096

    def test_any_language_model(self, table):
        plan = of_table(table)
        assert plan.params == 51**2 * 50 * 4
        assert plan.context == 2 * 4
        assert plan.cache == 8 * 64 * 4
        # On a CPU a step also holds the context once more.
        assert plan.working == 8 * (5 * 4 * 50 + 16 * 64) + plan.context
        assert plan.prefill == 4 * plan.context
        assert plan.slots == 32
        assert plan.device == str(jax.devices()[0])

    def test_shapes_count_as_the_arrays_they_stand_for(self, table):
        model, params = table
        assert of_table((model, jax.eval_shape(lambda: params))) == of_table(table)

    def test_16_bits_on_a_cpu(self, qwen):
        gpu, cpu = of_7b(qwen, wanted=1), of_7b(qwen, wanted=1, device=None, limit=10**12)
        embedding_and_head = 2 * 152_064 * 3584 * 2
        assert cpu.params == gpu.params + 3 * embedding_and_head
        assert cpu.working == gpu.working + 2 * gpu.cache + gpu.context
        assert (cpu.cache, cpu.context) == (gpu.cache, gpu.context)

    def test_one_particle_and_one_head_have_no_axes_but_the_same_bytes(self):
        config = dataclasses.replace(QWEN_7B, num_layers=1, num_heads=4, num_kv_heads=1)
        model = TransformerLM(config, jnp.bfloat16)
        plan = of_7b((model, nnx.state(model.abstract_module())), num=1)
        assert plan.cache == 2048 * 2 * 128 * 2


class TestSlots:
    @pytest.mark.parametrize("slots", [1, 2, 5, 31])
    def test_the_most_that_fit(self, table, slots):
        needs = dataclasses.replace(
            of_table(table), slots=slots, prefill=min(4, slots) * of_table(table).context
        ).total
        assert of_table(table, limit=needs).slots == slots
        if slots > 1:
            assert of_table(table, limit=needs - 1).slots == slots - 1

    def test_more_of_anything_never_gives_more_slots(self, qwen):
        for name, values in {
            "num": (1, 2, 8, 64, 128),
            "prompt": (64, 512, 2048),
            "capacity": (64, 1000, 2048, 8192),
        }.items():
            plans = [of_7b(qwen, wanted=1000, **{name: value}) for value in values]
            slots = [plan.slots for plan in plans]
            assert slots == sorted(slots, reverse=True) and slots[0] > slots[-1] >= 1
            assert all(plan.fits for plan in plans)

    def test_a_larger_limit_never_gives_fewer(self, qwen):
        slots = [of_7b(qwen, wanted=1000, limit=limit * GIB).slots for limit in (24, 30, 80, 800)]
        assert slots == sorted(slots) and slots[0] < slots[-1]

    def test_never_more_than_wanted(self, qwen):
        assert of_7b(qwen, wanted=3, limit=10**13).slots == 3

    def test_the_sentence(self, qwen):
        assert str(of_7b(qwen)) == (
            "7 slots of 64 particles (prompt 512, up to 2,048 new tokens): weights 14.2 GiB, "
            "prompts 196.0 MiB, caches 49.0 GiB, working 1.6 GiB, prefill 556.0 MiB, total "
            "65.6 GiB of 70.2 GiB on cuda:0"
        )

    def test_one_of_each(self, table):
        text = str(of_table(table, num=1, capacity=1, wanted=1))
        assert text.startswith("1 slot of 1 particle (prompt 16, up to 1 new token): weights 508.0")

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
            "num_particles=64 with prompt 512 and 2,048 new tokens needs 7.4 GiB besides 14.2 "
            "GiB of weights, but the engine may use 16.0 GiB of cuda:0; lower num_particles to at "
            "most 14 or max_new_tokens to at most 424."
        )

    @pytest.mark.parametrize("chunk", [1, 32])
    def test_what_is_advised_fits_and_one_more_does_not(self, qwen, chunk):
        options = {"limit": 16 * GIB, "chunk": chunk}
        text = self.refusal(qwen, **options)
        num, capacity = (self.advised(text, x) for x in ("num_particles", "max_new_tokens"))
        assert capacity % chunk == 0
        assert of_7b(qwen, num=num, **options).slots >= 1
        assert of_7b(qwen, capacity=capacity, **options).slots >= 1
        self.refusal(qwen, num=num + 1, **options)
        self.refusal(qwen, capacity=capacity + chunk, **options)

    def test_advice_that_would_not_help_is_left_out(self, shallow):
        # A single token of so many particles does not fit, few particles of so many tokens do.
        text = self.refusal(shallow, num=4096, limit=7 * GIB)
        assert "max_new_tokens" not in text
        assert self.advised(text, "num_particles") >= 1
        text = self.refusal(shallow, num=2, capacity=10**6, limit=7 * GIB)
        assert "num_particles to" not in text
        assert self.advised(text, "max_new_tokens") > 1

    def test_both_have_to_be_lowered(self, shallow):
        text = self.refusal(shallow, num=4096, capacity=10**6, limit=7 * GIB)
        assert "lower num_particles to 1 and max_new_tokens to at most" in text
        capacity = self.advised(text, "max_new_tokens")
        assert of_7b(shallow, num=1, capacity=capacity, limit=7 * GIB).slots >= 1
        self.refusal(shallow, num=1, capacity=capacity + 1, limit=7 * GIB)

    def test_nothing_helps(self, qwen):
        limit = 2 * 7_615_616_512 + 10**6
        assert "no smaller num_particles or max_new_tokens would fit" in self.refusal(
            qwen, limit=limit
        )
        assert "no smaller" in self.refusal(qwen, num=1, capacity=1, limit=limit)

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
