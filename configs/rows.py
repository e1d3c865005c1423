"""What a model row for each distinct prefix costs: throughput, latency, counts, PyTorch, memory."""

import os
import pathlib

import ml_collections

# Data that the project does not ship, such as small models; tests look in the same place.
TEST_DATA = os.environ.get("PSMC_TEST_DATA", pathlib.Path(__file__).resolve().parents[2] / "shared")


def get_config() -> ml_collections.ConfigDict:
    """Every value can be overridden: --config.sections="('latency',)" --config.repeats=5.

    PyTorch is compared with if installed: pip install -e '.[torch]'. What is compiled is cached, so
    a second run is shorter than the first.
    """
    config = ml_collections.ConfigDict()
    config.benchmark = "rows"
    config.sections = ("throughput", "latency", "stories", "flat", "torch", "fit")
    config.alpha = 4.0
    # Rounds that count; each has a key of its own.
    config.repeats = 3
    # A checkout of commit afd20fd, the last engine with a row for each particle; "" for none.
    config.baseline = ""
    # A model with problems, and one of stories, which is left out if it is absent.
    config.reasoner = "tiny-reasoner"
    config.stories_model = str(pathlib.Path(TEST_DATA, "models", "stories260K"))
    # The 32 beginnings that the model of stories continues.
    config.texts = tuple(
        f"{beginning} {subject}"
        for beginning in ("Once upon a time, there was", "One day,", "In the park,", "Tom and")
        for subject in (
            *("a little girl", "a big bear", "a dog", "the sun"),
            *("a small bird", "his mom", "a red car", "the cat"),
        )
    )
    # Random weights in these shapes, as in config.json of a Llama; those of configs/benchmark.py.
    config.models = ml_collections.ConfigDict(
        {
            "5M": _shape(hidden=256, layers=4, heads=8, kv_heads=8, mlp=688, vocab=8192),
            "50M": _shape(hidden=768, layers=6, heads=12, kv_heads=4, mlp=2304, vocab=8192),
        }
    )
    config.throughput = ml_collections.ConfigDict(
        {
            # At once if there are as many slots; else a stream.
            "prompts": (32, 96),
            "slots": 32,
            "max_new_tokens": 512,
            "smc": (16, 64, 256),
            "swor": (16, 64),
            "mass_floors": (0.0, 1e-4, 1e-3),
            # N of Power-SMC in the baseline, which takes long; plain decoding always runs there.
            "baseline_smc": (16,),
        }
    )
    config.latency = ml_collections.ConfigDict(
        {
            "prompts": 8,
            "num_particles": 64,
            "steps": 128,
            "answer_tokens": 512,
            "sharpened": ("50M",),
        }
    )
    config.stories = ml_collections.ConfigDict(
        {"particles": (64, 1024), "keys": 4, "slots": 32, "max_new_tokens": 128}
    )
    config.flat = ml_collections.ConfigDict(
        {
            "models": ("5M", "50M"),
            "particles": (16, 64),
            "rows": (64, 256),
            "prompt_tokens": (32, 512),
            "max_new_tokens": 128,
            # Rounds are long, and their times vary little.
            "repeats": 1,
            "warmup_tokens": 24,
        }
    )
    config.torch = ml_collections.ConfigDict(
        {
            "num_particles": 64,
            "prompts": 32,
            "peer_prompts": 4,
            "max_new_tokens": 512,
            "sharpened": ("5M",),
        }
    )
    config.fit = ml_collections.ConfigDict(
        {
            "num_particles": 64,
            "prompts": 8,
            "max_new_tokens": 2048,
            "sharpened": ("5M",),
            # Qwen2.5-7B in bfloat16, and bytes of the device.
            "shape": _shape(
                hidden=3584, layers=28, heads=28, kv_heads=4, mlp=18_944, vocab=152_064
            ),
            "prompt_tokens": 512,
            "memory": 80 * 10**9,
        }
    )
    return config


def _shape(
    *, hidden: int, layers: int, heads: int, kv_heads: int, mlp: int, vocab: int
) -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "hidden_size": hidden,
            "num_layers": layers,
            "num_heads": heads,
            "num_kv_heads": kv_heads,
            "head_dim": hidden // heads,
            "mlp_size": mlp,
            "vocab_size": vocab,
        }
    )
