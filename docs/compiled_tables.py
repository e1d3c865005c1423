"""The tables of docs/benchmarks.md about programs compiled for devices that were not there."""

from table_tools import markdown, only, percent, read, where

_TARGETS = {"v5e": "v5e", "v6e": "v6e", "h200": "H200"}


def compiled_steps() -> str:
    """What a step of Qwen2.5-7B moves, and its share of the roofline."""
    records = where(read("compiled"), program="decode_chunk")
    rows = []
    for target, title in _TARGETS.items():
        for count in (16, 64):
            own = where(records, target=target, rows=count)

            def get(metric: str, age: str | None, own: list = own) -> float:
                return float(only(own, metric=metric, age=age)["value"])

            mesh = own[0]["mesh"]
            cells = [
                f"{get('least', 'full') / 1e9:.2f}, {get('moved', 'full') / 1e9:.2f}",
                f"{percent(get('share', 'full'), 0)} %",
                f"{percent(get('share', 'mixed'), 0)} %",
                f"{get('least_of_a_move', 'full') / 1e6:.0f}, "
                f"{get('moved_by_a_move', 'full') / 1e6:.0f}",
                f"{get('temporaries', None) / 1e6:.0f}",
                f"{get('kernels', None):.0f}",
                f"{get('collectives', None):.0f}",
            ]
            rows.append([title if mesh == "1x1" else f"{title}, {mesh}", str(count), *cells])
    header = (
        *("target", "rows", "least, moved, GB", "share of roofline", "rows of mixed ages"),
        *("least, moved by a moved row, MB", "temporaries, MB", "kernels", "exchanges"),
    )
    return markdown(header, rows)


def compiled_programs() -> str:
    """How long programs took to compile, and what the memory plan says."""
    records = read("compiled")
    rows = []
    for target, title in _TARGETS.items():
        for count in (16, 64):
            own = where(records, target=target, rows=count)
            timed = {r["program"]: r["value"] for r in where(own, metric="compile_seconds")}
            seconds = [
                f"{timed[name]:.0f}" if name in timed else ""
                for name in ("decode_chunk", "prefill")
            ]
            planned, needed = (
                only(own, metric=name)["value"] / 1e9 for name in ("planned", "needed")
            )
            rows.append([title, str(count), *seconds, f"{planned:.2f}", f"{needed:.2f}"])
    header = (
        *("target", "rows", "compile the chunk, s", "a prefill, s"),
        *("planned, GB per device", "needed"),
    )
    return markdown(header, rows)
