"""The report's pictures, as SVG that follows the page into light and dark.

matplotlib draws with placeholder colours, which are then replaced by CSS variables that the SVG itself sets for both
schemes. Class names come in any script: a name that no font at hand can draw is drawn as its number, and the picture
carries the legend that tells number and name, for the page to print as text.
"""

import io
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate
from typing import Any

import matplotlib
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

# Widespread fonts with Hangul, the ones with the calmer Latin first; the files by which a stale font cache misses them.
HANGUL = (
    "Noto Sans CJK KR", "Noto Sans KR", "Source Han Sans KR", "Pretendard", "NanumGothic", "NanumBarunGothic",
    "Malgun Gothic", "Apple SD Gothic Neo", "AppleGothic", "Noto Sans CJK JP", "UnDotum", "Baekmuk Gulim",
)  # fmt: skip
HANGUL_FILES = ("NotoSansCJK", "NotoSansKR", "NanumGothic", "malgun", "AppleSDGothicNeo", "AppleGothic")
FALLBACK = "DejaVu Sans"  # comes with matplotlib

INK, FAINT, RULE, PAPER, HEAT = "#23272e", "#7b828c", "#dcdfe3", "#fdfdfb", "#2b5f8a"
LINES = ("#2b5f8b", "#b4552d", "#3d7a50", "#7a4f93", "#9a7b1e", "#3a8088", "#a8476a", "#6b6f76")
DARK = ("#dfe3e8", "#98a0aa", "#3a4048", "#15181c", "#6fb0e4")
DARK_LINES = ("#74b3e6", "#e5936b", "#7fc394", "#bd97d6", "#d9bb62", "#79c5cd", "#e48aab", "#a9aeb6")

MOST_CLASSES = 30
MOST_WITH_COUNTS = 14
MOST_POINTS = 600
LONGEST_NAME = 24


@dataclass
class Picture:
    """An SVG, what it shows in words, and the names that it could only draw as numbers."""

    svg: str
    alt: str
    legend: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class Curve:
    """A line to draw; `faint` values are drawn thin behind it (the raw values of a smoothed one)."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    faint: Sequence[float] | None = None
    strong: bool = False


@cache
def hangul_font() -> str | None:
    """The name of a font with Hangul, or None. Looks at the font files too, where matplotlib's own cache is older."""
    known = {font.name for font in font_manager.fontManager.ttflist}
    if not known.intersection(HANGUL):
        for path in font_manager.findSystemFonts():
            if any(name in path for name in HANGUL_FILES):
                font_manager.fontManager.addfont(path)
        known = {font.name for font in font_manager.fontManager.ttflist}
    return next((name for name in HANGUL if name in known), None)


@cache
def _characters(family: str) -> frozenset[int]:
    path = font_manager.findfont(font_manager.FontProperties(family=family), fallback_to_default=True)
    return frozenset(font_manager.get_font(path).get_charmap())


def families() -> list[str]:
    """The fonts to draw with; matplotlib takes each character from the first that has it."""
    font = hangul_font()
    return [font, FALLBACK] if font else [FALLBACK]


def drawable(text: str) -> bool:
    """True if every character is in one of the fonts, so that none comes out as an empty box."""
    return all(any(ord(c) in _characters(family) for family in families()) for c in text)


def labels(names: Sequence[str], numbered: bool = False) -> tuple[list[str], list[tuple[str, str]]]:
    """The names as they can be drawn, and the legend of those that cannot.

    Args:
        names: Class or task names.
        numbered: Put the number before each name, for axes that show the number alone elsewhere.
    """
    drawn, legend = [], []
    for number, name in enumerate(names):
        # One line, composed: file systems hand out Hangul decomposed into letters, which fonts do not join.
        line = " ".join(unicodedata.normalize("NFC", str(name)).split())
        short = line if len(line) <= LONGEST_NAME else line[: LONGEST_NAME - 1] + "…"
        if not drawable(short):
            legend.append((str(number), line))
            drawn.append(str(number))
        else:
            drawn.append(f"{number}  {short}" if numbered else short)
    return drawn, legend


def curves(lines: Sequence[Curve], xlabel: str, title: str, mark: float | None = None) -> Picture:
    """Lines over steps or epochs, each named at its end; `mark` is the epoch whose weights were kept."""
    names, legend = labels([line.name for line in lines])
    with style():
        figure = Figure(figsize=(4.5, 2.6), layout="constrained")
        axes = figure.subplots()
        for number, (line, colour) in enumerate(zip(lines, _cycle(len(lines)), strict=True)):
            _draw(axes, line, colour, number)
        _dress(axes, xlabel, title, whole=xlabel == "epoch")
        if mark is not None:
            axes.axvline(mark, color=FAINT, linewidth=0.8, linestyle=(0, (2, 2)), zorder=0)
        _name_at_end(axes, lines, names)
        svg = as_svg(figure, fit=False)  # the same size for all: they stand side by side
    return Picture(svg, f"{title} over {xlabel}: {', '.join(line.name for line in lines)}", legend)


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Mean over the window centred on each value (shorter at the ends), so that the curve neither lags nor starts at 0.

    Args:
        values: Any numbers; those that are not finite are passed over.
        window: Number of values in a mean.
    """
    finite = [value if math.isfinite(value) else 0.0 for value in values]
    sums = list(accumulate(finite, initial=0.0))
    counts = list(accumulate((math.isfinite(value) for value in values), initial=0))
    half, result = window // 2, []
    for i in range(len(values)):
        low, high = max(0, i - half), min(len(values), i + half + 1)
        count = counts[high] - counts[low]
        result.append((sums[high] - sums[low]) / count if count else math.nan)
    return result


def thin(values: Sequence[float], most: int = MOST_POINTS) -> list[float]:
    """At most about `most` of the values, evenly taken, the last one among them."""
    stride = max(1, math.ceil(len(values) / most))
    return list(values[::-1][::stride][::-1])


def confusion(matrix: Sequence[Sequence[int]], classes: Sequence[str], title: str) -> Picture:
    """Shares of each true class (row) given to each answer (column), as shades; counts in the cells while few.

    Above 30 classes those with the most errors are shown and the others counted together.
    """
    matrix, shown = reduced(matrix, classes)
    names, legend = labels(shown, numbered=True)
    with style():
        size = len(shown)
        side = 0.32 * size if size <= MOST_WITH_COUNTS else 0.17 * size
        figure = Figure(figsize=(side, side))
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        for row, counts in enumerate(matrix):
            _shade(axes, row, counts, with_counts=size <= MOST_WITH_COUNTS)
        _frame(axes, names)
        svg = as_svg(figure, fit=True)
    return Picture(svg, f"Confusion matrix of {title}: {size} true classes by answers", legend)


def reduced(matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> tuple[list[list[int]], list[str]]:
    """The matrix as it is, or with all but the classes of the most errors counted together as `others`."""
    size = len(matrix)
    names = [str(classes[i]) if i < len(classes) else str(i) for i in range(size)]
    if size <= MOST_CLASSES:
        return [list(row) for row in matrix], names
    errors = [sum(matrix[i]) + sum(row[i] for row in matrix) - 2 * matrix[i][i] for i in range(size)]
    kept = sorted(sorted(range(size), key=lambda i: -errors[i])[: MOST_CLASSES - 1])
    place = {old: new for new, old in enumerate(kept)}
    small = [[0] * MOST_CLASSES for _ in range(MOST_CLASSES)]
    for i, row in enumerate(matrix):
        for j, count in enumerate(row):
            small[place.get(i, MOST_CLASSES - 1)][place.get(j, MOST_CLASSES - 1)] += count
    return small, [names[i] for i in kept] + [f"others ({size - len(kept)})"]


def style() -> Any:
    """Settings for one picture, put back afterwards."""
    text = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), INK)
    marks = {"axes.edgecolor": RULE, "xtick.color": RULE, "ytick.color": RULE, "grid.color": RULE}
    sizes = {"font.size": 8.5, "axes.titlesize": 9, "xtick.labelsize": 8, "ytick.labelsize": 8}
    fonts = {"font.family": families(), "svg.fonttype": "path", "svg.hashsalt": "nunchi", "axes.unicode_minus": False}
    settings: dict[Any, Any] = {**text, **marks, **sizes, **fonts}
    return matplotlib.rc_context(settings)


def _cycle(count: int) -> list[str]:
    return [LINES[i % len(LINES)] for i in range(count)]


def _draw(axes: Axes, line: Curve, colour: str, number: int) -> None:
    if line.faint is not None:
        axes.plot(thin(line.x), thin(line.faint), color=colour, alpha=0.28, linewidth=0.7)
    dots: dict[str, Any] = {"marker": "o", "markersize": 2.6} if len(line.x) <= 40 and line.faint is None else {}
    width = 1.9 if line.strong else 1.2
    axes.plot(thin(line.x), thin(line.y), color=colour, linewidth=width, zorder=3 + number / 100, **dots)


def _dress(axes: Axes, xlabel: str, title: str, whole: bool) -> None:
    axes.set_title(title, loc="left", pad=8, parse_math=False)
    axes.set_xlabel(xlabel, loc="right")
    axes.grid(axis="y", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1 if whole else 2))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))


def _name_at_end(axes: Axes, lines: Sequence[Curve], names: Sequence[str]) -> None:
    """Writes each name at the right end of its line, pushed apart where two ends lie close."""
    low, high = axes.get_ylim()
    gap = (high - low) / 15
    ends = [[y for y in line.y if math.isfinite(y)] for line in lines]
    places = sorted((end[-1], i) for i, end in enumerate(ends) if end)
    heights: list[float] = []
    for y, _ in places:
        heights.append(max(y, heights[-1] + gap) if heights else y)
    sink = max(0.0, heights[-1] - high) if heights else 0.0
    for height, (_, i) in zip(heights, places, strict=True):
        colour = LINES[i % len(LINES)]
        where = (1.015, (height - sink - low) / (high - low))
        axes.text(*where, names[i], transform=axes.transAxes, color=colour, va="center", parse_math=False)


def _shade(axes: Axes, row: int, counts: Sequence[int], with_counts: bool) -> None:
    """One true class: a cell for each answer, as dark as its share of the row."""
    total = sum(counts)
    for column, count in enumerate(counts):
        share = count / total if total else 0.0
        if share:
            axes.add_patch(Rectangle((column, row), 1, 1, facecolor=HEAT, alpha=0.06 + 0.94 * share, linewidth=0))
        if with_counts and count:
            # A dark cell takes the paper's colour for its text, in either scheme.
            colour = PAPER if share > 0.55 else INK
            text = f"{count}" if count < 10_000 else f"{count / 1000:.0f}k"
            axes.text(column + 0.5, row + 0.5, text, color=colour, ha="center", va="center_baseline", fontsize=7.5)


def _frame(axes: Axes, names: Sequence[str]) -> None:
    size = len(names)
    places = [i + 0.5 for i in range(size)]
    axes.set_xlim(0, size)
    axes.set_ylim(size, 0)
    axes.set_yticks(places, list(names), parse_math=False)
    axes.set_xticks(places, [str(i) for i in range(size)], fontsize=8 if size <= MOST_WITH_COUNTS else 6.5)
    axes.tick_params(length=0, pad=3)
    axes.set_xlabel("answer", loc="left")
    axes.xaxis.set_label_position("top")
    axes.xaxis.tick_top()
    for i in range(size + 1):
        axes.axhline(i, color=RULE, linewidth=0.5, zorder=0)
        axes.axvline(i, color=RULE, linewidth=0.5, zorder=0)
    axes.spines[:].set_visible(False)


def as_svg(figure: Figure, fit: bool) -> str:
    """The figure as SVG whose colours are variables, set for light and for dark; `fit` cuts it to its content."""
    file = io.StringIO()
    plain = {"Date": None, "Creator": None}  # the same figures give the same bytes
    box: dict[str, Any] = {"bbox_inches": "tight", "pad_inches": 0.04} if fit else {}
    figure.savefig(file, format="svg", transparent=True, metadata=plain, **box)
    svg = file.getvalue()
    light, dark = (INK, FAINT, RULE, PAPER, HEAT, *LINES), (*DARK, *DARK_LINES)
    for number, colour in enumerate(light):
        svg = svg.replace(colour, f"var(--c{number},{colour})")
    schemes = [";".join(f"--c{n}:{colour}" for n, colour in enumerate(scheme)) for scheme in (light, dark)]
    css = f":root{{{schemes[0]}}}@media(prefers-color-scheme:dark){{:root{{{schemes[1]}}}}}"
    head, _, body = svg[svg.index("<svg") :].partition(">")
    return f"{head}><style>{css}</style>{body}"
