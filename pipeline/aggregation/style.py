"""How figures look, and how they become SVG that is the same byte for byte wherever it is drawn.

The colors were chosen by search: the first four are at least 15 apart (OKLab x 100) in normal vision and in simulated
protanopia, deuteranopia and tritanopia (Machado 2009), with contrast of 3 to the page; every method has a marker of
its own besides. In the report the colors become CSS variables, so that figures follow the theme.
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from pipeline.aggregation.comparison import Comparison

INK, MUTED, GRID, PAPER = "#1f2328", "#59636e", "#dde1e6", "#fffffe"
SERIES = ("#2f86ea", "#d9660a", "#0b4a2b", "#96508a", "#7a6410", "#3a2a78")
MARKERS = ("o", "s", "^", "D", "v", "P")
VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid", PAPER: "--paper"} | {
    color: f"--series-{k}" for k, color in enumerate(SERIES)
}
RC: dict[Any, Any] = {
    "svg.hashsalt": "pipeline", "svg.fonttype": "none", "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"], "font.size": 9, "axes.titlesize": 9.5, "axes.labelsize": 9,
    "axes.titlelocation": "left", "axes.titleweight": "bold", "axes.spines.top": False, "axes.spines.right": False,
    "axes.edgecolor": MUTED, "axes.labelcolor": INK, "axes.titlecolor": INK, "text.color": INK, "xtick.color": MUTED,
    "ytick.color": MUTED, "axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.8, "axes.axisbelow": True,
    "figure.facecolor": PAPER, "axes.facecolor": PAPER, "legend.frameon": False, "legend.fontsize": 8.5,
    "lines.linewidth": 1.6, "lines.markersize": 6, "figure.constrained_layout.use": True, "axes.unicode_minus": True,
}  # fmt: skip


@contextmanager
def drawing() -> Iterator[None]:
    """Draw by these settings and no file's: a user's matplotlibrc must not change a byte."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(RC)
        yield


def looks(comparison: Comparison) -> dict[str, tuple[str, str]]:
    """Return color and marker of each method: the same in every figure."""
    adapters = dict.fromkeys(line.adapter for line in comparison.lines if line.adapter)
    return {
        adapter: (SERIES[k % len(SERIES)], MARKERS[(k + k // 6) % len(MARKERS)]) for k, adapter in enumerate(adapters)
    }


def panels(count: int, *, width: float = 3.3, height: float = 3.1, columns: int = 2) -> tuple[Figure, list[Axes]]:
    """Return a figure of `count` panels side by side, in rows of `columns`, with shared axes."""
    across = min(count, columns)
    down = -(-count // across)
    figure = Figure(figsize=(max(5.6, width * across), height * down))
    axes = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).ravel().tolist()
    for unused in axes[count:]:
        unused.set_visible(False)
    return figure, axes[:count]


def legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """Put one legend above the panels, where it covers nothing."""
    found = {
        label: handle
        for ax in axes
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
    }  # fmt: skip
    if found:
        figure.legend(found.values(), found.keys(), loc="outside upper center", ncols=min(6, len(found)))


def counts(ax: Axes) -> None:
    """Make the x axis logarithmic, with ticks that read as counts: 500, 2k, 1M."""
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.xaxis.set_minor_formatter(NullFormatter())


def losses(ax: Axes) -> None:
    """Make the y axis logarithmic, with plain numbers."""
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter(NullFormatter())


def nothing(reason: str) -> Figure:
    """Return an empty figure that says why there is nothing to draw."""
    figure = Figure(figsize=(5.6, 1.2))
    figure.text(0.5, 0.5, reason, ha="center", va="center", color=MUTED)
    return figure


def svg(figure: Figure, title: str) -> bytes:
    """Return the figure as SVG: no date, no version, ids by content, text as text."""
    out = io.BytesIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Title": title})
    return out.getvalue()


def inline(drawn: bytes, name: str) -> str:
    """Return an SVG file as an element of a page: ids of its own, colors by the page's variables."""
    text = drawn.decode()
    text = text[text.index("<svg") :]
    for before in ('id="', 'href="#', "url(#"):
        text = text.replace(before, f"{before}{name}-")
    for color, variable in VARIABLES.items():
        text = text.replace(color, f"var({variable})")
    return text.replace("<svg ", f'<svg role="img" aria-label="{name}" ', 1)
