"""What all plots share: a style for every run, text that is drawn literally, and the PNG."""

import dataclasses
import functools
import io
import itertools
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import jinja2
import numpy as np
from matplotlib import font_manager, ticker
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import ScaledTranslation
from PIL import Image

from jax_power_smc.report.load import ReportData

# Inches; at DPI dots per inch a plot is 1000 pixels wide on the page, and stored at twice that.
WIDTH = 10.0
DPI = 100
SCALE = 2
COLOURS_STORED = 128
# Points.
FONT, SMALL = 10.0, 9.0
GREY, FAINT = "#8a8a8a", "#d9d9d9"
INK = "#303030"
# Distinguishable with all common kinds of colour blindness and dark enough on white (Okabe and
# Ito's, without yellow and black, and some of Tol's); runs of the same colour differ in the marker.
COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9"),
    *("#e69f00", "#882255", "#999933", "#332288", "#7a5230"),
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "<", ">", "h", "d", "8")
LINES = ("-", "--", "-.", ":", (0, (4, 1, 1, 1, 1, 1)), (0, (2, 1)), (0, (1, 2)))
TIMES = "\N{MULTIPLICATION SIGN}"
# Characters of a label in a plot.
LABEL = 40
# Leading digits of the ticks of a logarithmic axis, and the most ticks.
_FACTORS = ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,))
_MOST_TICKS = 9
_FAMILY = "DejaVu Sans"  # comes with matplotlib
_SIZE_OF_N = {"ancestral": "num_samples", "mh": "num_chains"}


@dataclasses.dataclass(frozen=True)
class Plot:
    """One plot of the report; ``name`` is the stem of its file, the caption says how to read it."""

    name: str
    title: str
    caption: str
    figure: Figure


@dataclasses.dataclass(frozen=True)
class RunStyle:
    """How a run is drawn, the same in every plot; colour, marker and line as matplotlib's."""

    label: str
    colour: str
    marker: str
    line: Any


def run_styles(data: ReportData) -> dict[str, RunStyle]:
    """Run -> its style, in the order of the tables."""
    looks = zip(*map(itertools.cycle, (COLOURS, MARKERS, LINES)), strict=True)
    return {
        run: RunStyle(printable(label), *look)
        for (run, label), look in zip(data.labels.items(), looks, strict=False)
    }


def run_config(data: ReportData, run: str) -> dict[str, Any]:
    """The entry of the config for a run."""
    return data.about["config"]["samplers"][run]


def num_particles(data: ReportData, run: str) -> int:
    """N."""
    entry = run_config(data, run)
    return entry.get(_SIZE_OF_N.get(entry["kind"], "num_particles"), 1)


def is_weighted(data: ReportData, run: str) -> bool:
    """Whether its particles are weighted and share ancestors."""
    return run_config(data, run)["kind"] in ("smc", "swor")


def printable(text: object, most: int = LABEL) -> str:
    """Any text as one short line that can be drawn.

    White space becomes single spaces; characters that the font lacks, or that would move or hide
    their neighbours, are written as their code, such as \\u202e. What is longer than ``most`` is
    cut in the middle.
    """
    signs = [_sign(c) for c in " ".join(unicodedata.normalize("NFC", str(text)).split())]
    if sum(map(len, signs)) <= most:
        return "".join(signs)
    head, tail = _until(signs, most * 2 // 3), _until(signs[::-1], most - most * 2 // 3 - 1)
    return "".join([*head, "…", *tail[::-1]])


def new_figure(height: float) -> Figure:
    """An empty figure of the report's width, on its own canvas."""
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def new_axes(height: float, labels: Sequence[str], grid: str = "both") -> tuple[Figure, Any]:
    """A figure with one plot of this height, and room below it for the legend."""
    figure = new_figure(height + legend_height(labels))
    axes = figure.add_subplot()
    style_axes(axes, grid)
    return figure, axes


def style_axes(axes: Any, grid: str = "both") -> None:
    """A thin frame, a faint grid, and text of the report's size."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(labelsize=SMALL, color=GREY, labelcolor=INK)
    axes.grid(axis=grid, color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(fontsize=FONT, color=INK)


def size_axis(axes: Any, sizes: Iterable[int], name: str) -> None:
    """An x axis of powers of two, with a tick at every size."""
    ticks = sorted(set(sizes))
    axes.set_xscale("log", base=2)
    axes.set_xlim(ticks[0] / 2**0.5, ticks[-1] * 2**0.5)
    # Labels of sizes that are close to each other would overlap.
    apart = (ticks[-1] / ticks[0]) ** (1 / 24)
    written = ticks[:1] + [b for a, b in itertools.pairwise(ticks) if b / a > apart]
    axes.set_xticks(written, [f"{tick}" for tick in written])
    axes.minorticks_off()
    axes.set_xlabel(name)


def log_ticks(axis: Any, low: float, high: float, form: str = "{:g}") -> None:
    """A few ticks between the limits of a logarithmic axis, as plain numbers."""
    powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    ticks: list[float] = []
    for factors in _FACTORS:
        ticks = [f * 10.0**p for p in powers for f in factors if low <= f * 10.0**p <= high]
        if len(ticks) <= _MOST_TICKS:
            break
    if len(ticks) < 2:  # the limits are closer than these numbers
        ticks = np.geomspace(low, high, 5)[1:-1].tolist()
    axis.set_major_locator(ticker.FixedLocator(ticks))
    axis.set_major_formatter(ticker.FuncFormatter(lambda x, _: form.format(float(f"{x:.3g}"))))
    axis.set_minor_locator(ticker.NullLocator())


def integer_ticks(axis: Any, most: int = 10) -> None:
    """At most this many intervals between round integers."""
    locator = ticker.MaxNLocator(most, integer=True, steps=[1, 2, 5, 10], prune="upper")
    axis.set_major_locator(locator)


def beside(axes: Any, points: float) -> Any:
    """The transform of the data, shifted to the right by some points."""
    return axes.transData + ScaledTranslation(points / 72, 0, axes.figure.dpi_scale_trans)


def mark(look: RunStyle, **values: Any) -> dict[str, Any]:
    """Keyword arguments for a mark of a run, without a line."""
    return {"color": look.colour, "marker": look.marker, "linestyle": "none", **values}


def note(axes: Any, text: str, point: tuple[float, float], **values: Any) -> None:
    """Text to the right of a point."""
    axes.annotate(
        text,
        point,
        (9, 0),
        textcoords="offset points",
        va="center_baseline",
        fontsize=SMALL,
        color=INK,
        **values,
    )


def small_multiples(titles: Sequence[str], row: float, name: str) -> tuple[Figure, list[Any]]:
    """A grid of panels with shared axes, ``row`` inches per row, and integers on the x axes."""
    # As few empty panels as possible.
    columns = min((4, 3), key=lambda number: -len(titles) % number)
    columns = min(columns, len(titles))
    room = min(LABEL, 112 // columns)
    rows = -(-len(titles) // columns)
    figure = new_figure(0.9 + row * rows)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for number, axes in enumerate(grid):
        if number >= len(titles):
            axes.set_visible(False)
            continue
        style_axes(axes)
        axes.set_title(printable(titles[number], room), fontsize=FONT, color=INK)
        integer_ticks(axes.xaxis, 5)
        if number + columns >= len(titles):
            axes.tick_params(labelbottom=True)
        if number + columns >= len(grid):
            axes.set_xlabel(name)
    return figure, list(grid[: len(titles)])


def legend_columns(labels: Sequence[str]) -> int:
    """Entries that fit side by side."""
    return int(max(1, min(4, len(labels), WIDTH // (0.65 + 0.075 * max(map(len, labels))))))


def legend_height(labels: Sequence[str]) -> float:
    """Inches that ``legend_below`` takes up."""
    return 0.2 * -(-len(labels) // legend_columns(labels)) + 0.1


def legend_below(figure: Figure, handles: list[Any], labels: list[str]) -> None:
    """One legend for the whole figure, below it."""
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=legend_columns(labels),
        fontsize=SMALL,
        frameon=False,
        handlelength=3.2,
    )


def disable_math(figure: Figure) -> None:
    """Draws all text of a figure literally: "$" does not start a formula."""
    for text in figure.findobj(Text):
        text.set(parse_math=False, fontfamily=_FAMILY)


def caption(plot: str, **facts: object) -> str:
    """How to read a plot, from the macro of that name in captions.j2."""
    return " ".join(getattr(_captions(), plot)(**facts).split())


def finish(name: str, title: str, caption: str, figure: Figure) -> Plot:
    """The plot of a complete figure."""
    disable_math(figure)
    return Plot(name, title, caption, figure)


def to_png(figure: Figure) -> bytes:
    """The PNG of a figure, 2000 pixels wide: twice its size on the page, for sharp screens.

    A palette, which is enough but for smooth edges, makes it a third as large.
    """
    disable_math(figure)
    file = io.BytesIO()
    figure.savefig(file, format="rgba", dpi=DPI * SCALE)
    width, height = (round(inches * DPI * SCALE) for inches in figure.get_size_inches())
    picture = Image.frombytes("RGBA", (width, height), file.getvalue()).convert("RGB")
    small = io.BytesIO()
    picture.quantize(COLOURS_STORED, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return small.getvalue()


def _until(signs: list[str], room: int) -> list[str]:
    ends = itertools.accumulate(map(len, signs))
    return [sign for sign, end in zip(signs, ends, strict=True) if end <= room]


@functools.lru_cache(maxsize=4096)
def _sign(character: str) -> str:
    code, category = ord(character), unicodedata.category(character)
    is_visible = category[0] in "LNPSZ" and category not in ("Zl", "Zp")
    if character == " " or (is_visible and _font().get_char_index(code)):
        return character
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


@functools.cache
def _captions() -> Any:
    loader = jinja2.PackageLoader("jax_power_smc.report", ".")
    environment = jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined)
    return environment.get_template("captions.j2").module


@functools.cache
def _font() -> Any:
    return font_manager.get_font(font_manager.findfont(_FAMILY))
