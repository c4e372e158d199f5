"""Parallel coordinates: an upright axis for each setting that differs and one for the figure, a line for each run."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from engine.plots import FAINT, HEAT, INK, RULE, Picture, as_svg, labels, style
from engine.results import figure as written

MOST_AXES = 7
MOST_NAMES = 12
DECADES = 30  # largest over smallest value from which an axis counts in powers of ten


@dataclass
class Axis:
    """One upright axis: where each run crosses it (0 to 1), and its marks as (place, text)."""

    name: str
    places: list[float | None]
    marks: list[tuple[float, str]]


def axis_of(name: str, values: Sequence[str | None]) -> Axis:
    """An axis of numbers, in powers of ten where they span many, or of names, evenly spaced in order of appearance."""
    present = list(dict.fromkeys(value for value in values if value is not None))
    try:
        known = {value: float(value) for value in present}
    except ValueError:
        known = {}
    if not known or not all(map(math.isfinite, known.values())):
        return _named(name, values, present)
    low, high = min(known.values()), max(known.values())
    if low > 0 and high / low >= DECADES:
        known = {value: math.log10(number) for value, number in known.items()}
        low, high = math.log10(low), math.log10(high)
    scale = {value: (number - low) / (high - low) if high > low else 0.5 for value, number in known.items()}
    shown = sorted(present, key=scale.__getitem__)
    if len(shown) > MOST_NAMES:
        shown = [shown[0], shown[-1]]
    marks = [(scale[value], _short(value)) for value in shown]
    return Axis(name, [None if value is None else scale[value] for value in values], marks)


def parallel(settings: Sequence[Axis], metric: str, values: Sequence[float], smaller_is_better: bool) -> Picture:
    """The picture: the better a run's figure, the stronger its line; the best one is drawn in the page's accent.

    Args:
        settings: At most `MOST_AXES` axes, on which the runs cross in the order of `values`.
        metric: The last axis' name.
        values: Each run's figure, finite.
        smaller_is_better: Whether the smallest figure is the best.
    """
    low, high = min(values), max(values)
    heights = [(value - low) / (high - low) if high > low else 0.5 for value in values]
    last = Axis(metric, list(heights), [(0.0, written(low)), (1.0, written(high))] if high > low else [])
    axes = [*settings[:MOST_AXES], last]
    goodness = [1 - height if smaller_is_better else height for height in heights]
    names, legend = labels([axis.name for axis in axes])
    with style():
        figure = Figure(figsize=(max(4.5, 1.5 * len(axes)), 3.0), layout="constrained")
        canvas = figure.subplots()
        for i in sorted(range(len(values)), key=goodness.__getitem__):
            best = goodness[i] == max(goodness)
            x, y = _line(axes, i)
            colour, alpha = (HEAT, 1.0) if best else (FAINT, 0.15 + 0.6 * goodness[i])
            canvas.plot(x, y, color=colour, alpha=alpha, linewidth=1.8 if best else 0.9, zorder=3 if best else 2)
        _dress(canvas, axes, names)
        svg = as_svg(figure, fit=True)
    told = ", ".join(axis.name for axis in axes)
    return Picture(svg, f"Parallel coordinates of {len(values)} runs over {told}", legend)


def _named(name: str, values: Sequence[str | None], present: Sequence[str]) -> Axis:
    step = 1 / max(1, len(present) - 1)
    place = {value: i * step if len(present) > 1 else 0.5 for i, value in enumerate(present)}
    drawn, _ = labels(present)
    marks = list(zip(place.values(), drawn, strict=True))
    return Axis(name, [None if value is None else place[value] for value in values], marks[:: 1 + len(marks) // 40])


def _line(axes: Sequence[Axis], run: int) -> tuple[list[float], list[float]]:
    """The points of a run; an axis that it has no value on is passed over."""
    points = [(float(x), place) for x, axis in enumerate(axes) if (place := axis.places[run]) is not None]
    return [x for x, _ in points], [y for _, y in points]


def _dress(canvas: Axes, axes: Sequence[Axis], names: Sequence[str]) -> None:
    for x, axis in enumerate(axes):
        canvas.axvline(x, color=RULE, linewidth=1.0, zorder=1)
        for y, text in axis.marks:
            canvas.text(x + 0.04, y, text, fontsize=7.5, color=INK, va="center", zorder=4, parse_math=False)
    canvas.set_xticks(range(len(axes)), list(names), parse_math=False)
    canvas.set_yticks([])
    canvas.set_xlim(-0.1, len(axes) - 0.6)
    canvas.set_ylim(-0.06, 1.06)
    canvas.spines[:].set_visible(False)
    canvas.tick_params(length=0)


def _short(value: str) -> str:
    """A number with at most four digits that count, as people type it."""
    try:
        return f"{float(value):.4g}" if len(value) > 6 else value
    except ValueError:
        return value
