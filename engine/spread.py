"""Settings side by side: each run's figure as a dot, the mean with its spread, and the source's figure beside them."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from engine.plots import FAINT, HEAT, LINES, Picture, as_svg, labels, style
from engine.results import figure as written

ROW = 0.27  # height of a setting, in inches


@dataclass
class Setting:
    """One row of the picture.

    Args:
        name: What the runs have in common.
        values: The figure of each run, finite, at least one.
        mean: Of the values.
        spread: Half the length of the bar; None of a single run.
        theirs: The figure that the source claims for this setting, on its own data.
    """

    name: str
    values: Sequence[float]
    mean: float
    spread: float | None
    theirs: float | None = None


def side_by_side(settings: Sequence[Setting], metric: str) -> Picture:
    """The picture: a row for each setting, in the order given, the first one at the top."""
    names, legend = labels([setting.name for setting in settings])
    with style():
        figure = Figure(figsize=(4.5, 0.6 + ROW * len(settings)), layout="constrained")
        axes = figure.subplots()
        for row, setting in enumerate(settings):
            _draw(axes, row, setting)
        _dress(axes, names, metric)
        svg = as_svg(figure, fit=True)
    told = "; ".join(_told(setting) for setting in settings)
    return Picture(svg, f"{metric} of {len(settings)} settings: {told}", legend)


def _draw(axes: Axes, row: int, setting: Setting) -> None:
    below = [row + 0.24] * len(setting.values)  # beside the mean they would be hidden by it
    axes.plot(setting.values, below, "o", color=FAINT, markersize=2.6, zorder=2)
    if setting.spread is not None:
        ends = [setting.mean - setting.spread, setting.mean + setting.spread]
        axes.plot(ends, [row, row], "-|", color=HEAT, linewidth=1.4, markersize=7, zorder=3)
    axes.plot([setting.mean], [row], "o", color=HEAT, markersize=6, zorder=4)
    if setting.theirs is not None:
        axes.plot([setting.theirs], [row], "D", color=LINES[1], markerfacecolor="none", markersize=5.5, zorder=4)


def _dress(axes: Axes, names: Sequence[str], metric: str) -> None:
    axes.set_yticks(range(len(names)), list(names), parse_math=False)
    axes.set_ylim(len(names) - 0.3, -0.6)
    axes.set_xlabel(metric, loc="right", parse_math=False)
    axes.grid(axis="x", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def _told(setting: Setting) -> str:
    spread = "" if setting.spread is None else f" ± {written(setting.spread)}"
    source = "" if setting.theirs is None else f" (source {written(setting.theirs)})"
    return f"{setting.name} {written(setting.mean)}{spread}{source}"
