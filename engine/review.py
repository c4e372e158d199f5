"""The report's part on suspicious labels: how many each class has, and the worst with the curves of their margins."""

from collections.abc import Sequence

from engine.record import Record, Stage
from engine.sections import data_uri, embedded

WIDTH, HEIGHT, EDGE = 150, 44, 3  # of a curve, in pixels


def suspects(stage: Stage) -> list[Record]:
    """The most suspicious labels: picture, what it is labelled, what the network says, AUM, and the curve."""
    return [
        {
            **{key: entry.get(key, "") for key in ("name", "task", "label", "guess")},
            **{key: entry.get(key) for key in ("aum", "threshold")},
            "uri": embedded(stage.folder, str(entry.get("image", ""))),
            "curve": curve(entry.get("margins") or [], float(entry.get("threshold") or 0)),
        }
        for entry in stage.review
    ]


def judgements(stage: Stage) -> list[Record]:
    """One table a task: labels judged and suspicious of each class, the most suspicious share first."""
    tables = []
    for task, found in stage.margins.items():
        rows = [{"name": name, **counts} for name, counts in (found.get("classes") or {}).items()]
        for row in rows:
            row["share"] = row.get("suspicious", 0) / max(1, row.get("judged", 0))
        rows.sort(key=lambda row: -row["share"])
        known = {key: found.get(key) for key in ("judged", "suspicious", "threshold", "planted", "precision", "recall")}
        tables.append({"task": task, "rows": rows, **known})
    return tables


def curve(margins: Sequence[float], threshold: float) -> str:
    """A label's margin over the epochs as a small picture; dashed the threshold, below which its mean lies."""
    low, high = min([*margins, threshold, 0.0]), max([*margins, threshold, 0.0])
    span = (high - low) or 1.0
    step = (WIDTH - 2 * EDGE) / max(1, len(margins) - 1)

    def down(value: float) -> float:
        return EDGE + (HEIGHT - 2 * EDGE) * (high - value) / span

    points = " ".join(f"{EDGE + at * step:.1f},{down(value):.1f}" for at, value in enumerate(margins))
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}">'
        f'<path d="M0 {down(0.0):.1f}H{WIDTH}" stroke="#9aa0a6" stroke-width="1"/>'
        f'<path d="M0 {down(threshold):.1f}H{WIDTH}" stroke="#c0392b" stroke-width="1" stroke-dasharray="4 3"/>'
        f'<polyline points="{points}" fill="none" stroke="#2f6fb2" stroke-width="2"/></svg>'
    )
    return data_uri(svg, "image/svg+xml")
