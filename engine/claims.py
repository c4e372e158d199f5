"""Claims as data, held against runs: `conf/claims/*.yaml` says who should beat whom, by what, over which seeds.

A run counts for a claim if its config means the same as what the claim asks for, wherever it lies and whatever made it.
So a claim needs no folder of its own, and a sweep that was made for something else counts as well.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from engine.compose import Plan, make_plan
from engine.each import expand, look_up
from engine.paired import EXPECTED, Paired, paired_test
from engine.runs import is_safe
from engine.suggest import CONF, composed, files_named, nearest
from engine.summary import Row
from engine.variation import Settings, settings_in

LIKELY = 0.05  # the largest p with which a claim is taken to have held
HELD, FELL, OPEN = "held", "did not hold", "not enough runs"
# Safe to change between two starts of one run, but not between runs that are to be the same.
TELLING = ("max_epochs", "max_steps", "max_time", "limit_test_batches")

Known = dict[frozenset[tuple[str, str]], list[Row]]


@dataclass(frozen=True)
class Claim:
    """One checkable sentence.

    Args:
        claim: The sentence.
        source: Whose it is, with their figures.
        sides: Name of each way to do it, and its overrides; the first is held against each of the others.
        metrics: The figures to compare; with a single side what each is held against, another metric or a number.
        expected: Of the first side's figure: `higher`, `lower` or `same`.
        margin: A difference up to which nothing is claimed; for `same` the one up to which figures count as equal.
        seeds: One run of each side for each.
    """

    name: str
    claim: str
    source: str
    sides: dict[str, list[str]]
    metrics: dict[str, str | float | None]
    expected: str
    seeds: list[int]
    margin: float = 0.0


@dataclass
class Finding:
    """One comparison: each seed's two figures, the test, and what it comes to."""

    metric: str
    first: str
    second: str
    pairs: dict[int, tuple[float, float]]
    test: Paired
    verdict: str
    remark: str = ""


@dataclass
class Assessment:
    """A claim with its findings, and the runs that are missing as (side, seed, reason)."""

    claim: Claim
    findings: list[Finding]
    missing: list[tuple[str, int, str]] = field(default_factory=list)
    sample: bool = False

    @property
    def verdict(self) -> str:
        """A claim holds if every comparison of it does; none is corrected for the others, for all must hold."""
        verdicts = {finding.verdict for finding in self.findings}
        return OPEN if OPEN in verdicts or not verdicts else FELL if FELL in verdicts else HELD


def read_claims(names: Sequence[str], folder: Path = CONF / "claims") -> list[Claim]:
    """The claims of these names, or all of them.

    Raises:
        ValueError: There is none of that name, or its file says something that no claim has.
    """
    return [read_claim(path) for path in files_named(names, folder, "claim")]


def read_claim(path: Path) -> Claim:
    """One claim from its file.

    Raises:
        ValueError: A key is missing or unknown, or a value is none that a claim can have: the file is named.
    """
    content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    known = [f.name for f in fields(Claim) if f.name != "name"]
    for key in content:
        if key not in known:
            raise ValueError(f"{path}: nothing reads the key {key!r}{nearest(key, known)}")
    for key in known:
        if key not in content and key != "margin":
            raise ValueError(f"{path}: a claim needs {key!r}")
    metrics, several = content["metrics"], len(content["sides"]) > 1
    if isinstance(metrics, dict) == several:
        wanted = "a list" if several else "a mapping from each to another metric or a number"
        raise ValueError(f"{path}: with {len(content['sides'])} side(s) metrics must be {wanted}")
    if content["expected"] not in EXPECTED:
        raise ValueError(f"{path}: expected={content['expected']!r}; a claim knows {', '.join(EXPECTED)}")
    if content["expected"] == "same" and not content.get("margin", 0) > 0:
        raise ValueError(f"{path}: expected=same needs a margin above 0, up to which figures count as equal")
    metrics = metrics if isinstance(metrics, dict) else dict.fromkeys(metrics)
    return Claim(**(content | {"name": path.stem, "metrics": metrics}))


def plan_of(overrides: Sequence[str]) -> Plan:
    """What `python run.py` would run for these overrides.

    Raises:
        ValueError: They do not compose, or name no experiment.
    """
    experiment = next((o.partition("=")[2] for o in overrides if o.startswith("experiment=")), "")
    plan = make_plan(composed(overrides), overrides, experiment, Path("/a/run/of/a/claim"))
    expand(plan, look_up(plan))
    return plan


def meaning(config: Mapping[str, Any]) -> Settings:
    """What makes two runs the same: their settings, less those that change where or how fast one is made."""
    settings = settings_in(config)
    return {key: value for key, value in settings.items() if not _of_no_consequence(key)}


def _of_no_consequence(key: str) -> bool:
    """The run's own trainer lies over each stage's, where it is looked at; precision is what the machine can do."""
    leaf = key.rpartition(".")[2]
    if key.startswith("trainer.") or key == "features_gb" or leaf in ("features", "precision"):
        return True
    return is_safe(key) and leaf not in TELLING


def by_meaning(rows: Iterable[Row]) -> Known:
    """Runs by what they mean, the newest first. A config is looked at once, however many claims ask for it."""
    known: Known = {}
    for row in sorted(rows, key=lambda row: str(row.run and row.run.environment.get("created")), reverse=True):
        if row.run:
            known.setdefault(frozenset(meaning(row.run.config).items()), []).append(row)
    return known


def find(plan: Plan, known: Known) -> list[Row]:
    """The runs that mean the same as a plan, the newest first."""
    return known.get(frozenset(meaning(plan).items()), [])


def assess(claim: Claim, found: Mapping[tuple[str, int], Sequence[Row]]) -> Assessment:
    """Hold a claim against what was found for each side and seed."""
    chosen = {key: next((row for row in rows if row.state == "finished"), None) for key, rows in found.items()}
    missing = []
    for key, row in chosen.items():
        if row is None:
            missing.append((*key, "; ".join(dict.fromkeys(r.reason for r in found[key])) or "not run yet"))
    first, *others = claim.sides
    against: list[str | None] = [*others] or [None]
    findings = [_compare(claim, metric, first, other, chosen) for metric in claim.metrics for other in against]
    return Assessment(claim, findings, missing, any(row.sample for row in chosen.values() if row))


def _compare(
    claim: Claim, metric: str, first: str, other: str | None, chosen: Mapping[tuple[str, int], Row | None]
) -> Finding:
    """One metric of the first side against another side's, or against another figure of the same runs."""
    opponent = claim.metrics[metric]
    pairs: dict[int, tuple[float, float]] = {}
    absent = ""
    for seed in claim.seeds:
        one, two = chosen.get((first, seed)), chosen.get((other or first, seed))
        if one is None or two is None:
            continue
        name = metric if other else opponent
        values = (_figure(one, metric), float(name) if isinstance(name, int | float) else _figure(two, str(name)))
        if not all(value is not None and math.isfinite(value) for value in values):
            absent = f"seed {seed} has no finite {metric if other else f'{metric} or {name}'}"
        else:
            pairs[seed] = (values[0] or 0.0, values[1] or 0.0)
    test = paired_test([a - b for a, b in pairs.values()], claim.expected, claim.margin)
    verdict, remark = _judge(claim, test, len(pairs))
    return Finding(metric, first, other or str(opponent), pairs, test, verdict, absent or remark)


def _figure(row: Row, metric: str) -> float | None:
    """A metric of the run; also `seconds`, the time it took, and `parameters`, how many its last stage has."""
    if metric == "seconds":
        return row.seconds
    if metric == "parameters" and row.run:
        return float(sum(int(part.get("parameters") or 0) for part in row.run.asked[-1].parameters)) or None
    return row.metrics.get(metric)


def _judge(claim: Claim, test: Paired, pairs: int) -> tuple[str, str]:
    if pairs < max(2, len(claim.seeds)) or test.p is None:
        return OPEN, f"{pairs} of {max(2, len(claim.seeds))} seeds"
    if test.p <= LIKELY:
        return HELD, ""
    way = {"higher": test.mean > claim.margin, "lower": test.mean < -claim.margin}.get(
        claim.expected, abs(test.mean) < claim.margin
    )
    return FELL, f"points the claimed way, but {pairs} seeds do not settle it" if way else "does not point that way"
