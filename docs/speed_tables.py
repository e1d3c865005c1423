"""The tables of docs/benchmarks.md about speed."""

from table_tools import grid, markdown, percent, read, titled, where

_SAMPLERS = {"smc": "`PowerSMC`", "swor": "`WithoutReplacement`"}


def speed_steps() -> str:
    """Step time as a multiple of decoding one sequence."""
    rows = {
        (model, str(cap), title): {"model": model, "max_new_tokens": cap, "sampler": sampler}
        for model in ("5M", "50M")
        for cap in (128, 512)
        for sampler, title in _SAMPLERS.items()
    }
    columns = {f"N = {n}": ("{:.1f}", {"num_particles": n}) for n in (4, 8, 16, 32, 64)}
    records = where(read("speed_cpu"), metric="step_multiple", prompt_tokens=32)
    return grid(records, ("model", "T", "sampler"), rows, columns)


def speed_parts() -> str:
    """Where a step's time goes."""
    records = where(read("speed_cpu"), metric="part_share", num_particles=64)
    rows = {
        (f"{model}, {title}",): {"model": model, "sampler": sampler}
        for model in ("5M", "50M")
        for sampler, title in _SAMPLERS.items()
    }
    parts = ("model", "cache moves", "selection", "sampling")
    return grid(records, ("N = 64",), rows, {part: ("{:.1%}", {"part": part}) for part in parts})


def speed_resampling() -> str:
    """Step time against how often the population is resampled."""
    records = where(read("speed_cpu"), metric="resampling_ratio")
    titles = {"never": "never", "every 8th step": "every 8", "every step": "every 1"}
    return grid(
        records,
        ("",),
        {(f"N = {r['num_particles']}",): {"num_particles": r["num_particles"]} for r in records},
        {title: ("{:.2f}", {"resampled": when}) for title, when in titles.items()},
    )


def speed_forks() -> str:
    """WithoutReplacement over PowerSMC against the share of rows that fork."""
    records = where(read("speed_cpu"), metric="swor_over_smc")
    rows = [
        [model, f"{percent(r['swor_fork_share'], 0)} %", f"{r['value']:.2f}"]
        for model in ("5M", "50M")
        for r in sorted(where(records, model=model), key=lambda r: -r["swor_fork_share"])
    ]
    return markdown(("model", "rows that fork in a step", "time over `PowerSMC`'s"), rows)


def speed_throughput() -> str:
    """Ragged prompts through slots that are refilled, and in batches."""
    titles = {
        "slots, refilled as prompts finish": ["slots"],
        "the same, without a chunk of lookahead": ["slots, looking at once"],
        "batches that wait for their last prompt": ["batches"],
    }
    columns = {
        "tokens per second": ("{:,.0f}", {"metric": "throughput"}),
        "over batches": ("{:.2f}", {"metric": "throughput_ratio"}),
    }
    return grid(read("speed_cpu"), ("method",), titled(titles, "method"), columns)


def speed_torch() -> str:
    """How many times as fast as PyTorch."""
    records = where(read("speed_cpu"), metric="speedup")
    library, loop = "transformers generate", "Power-SMC in a Python loop"
    columns = {
        "`generate`, batch 1": (library, 1),
        "batch 8": (library, 8),
        "batch 64": (library, 64),
        "Power-SMC in a Python loop, N = 8": (loop, 8),
        "N = 64": (loop, 64),
    }
    rows = {
        (model, str(prompt)): {"model": model, "prompt_tokens": prompt}
        for model in ("5M", "23M", "50M", "98M")
        for prompt in (32, 512)
        if where(records, model=model, prompt_tokens=prompt)
    }
    shown = {
        title: ("{:.1f}", {"peer": peer, "num_particles": n})
        for title, (peer, n) in columns.items()
    }
    return grid(records, ("model", "prompt"), rows, shown, gaps=True)


def cache_moves() -> str:
    """Milliseconds of a cache move by its form."""
    records = where(read("speed_cpu"), metric="move_time", capacity=1024)
    records = [{**r, "value": 1e3 * r["value"]} for r in records]
    forms = {
        "`jnp.take`": "take",
        "gather and scatter": "gathered",
        "row by row": "rows",
        "blocks of time": "blocks",
    }
    keys = ("num_particles", "moved_rows")
    rows = {tuple(str(r[key]) for key in keys): {key: r[key] for key in keys} for r in records}
    columns = {title: ("{:.2f}", {"form": form}) for title, form in forms.items()}
    return grid(records, ("N", "rows moved"), rows, columns)
