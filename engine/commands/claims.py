"""Hold the claims of conf/claims against runs: held, did not hold, or not enough runs, with a paired test over seeds.

Any run below --runs counts whose config means what the claim asks for. --run makes those that are missing, one after
the other, and goes on with the ones that were stopped; Ctrl-C stops it, and the same command goes on. --set lays
overrides over every side, for a smaller check of the same claim.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.claims import Assessment, Claim, Known

RUN = Path(__file__).resolve().parents[2] / "run.py"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("names", nargs="*", metavar="NAME", help="claims, by their file's name (default: all)")
    parser.add_argument("--runs", type=Path, default=Path("outputs"), metavar="FOLDER", help="(outputs)")
    parser.add_argument("--run", action="store_true", help="make the runs that are missing")
    parser.add_argument(
        "--sample", action="store_true", help="on drawn samples: shows that it works, not that it holds"
    )
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="overrides for every side")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="instead of those of the claims")
    parser.add_argument("--html", type=Path, metavar="FILE", help="the page (default: claims.html in the runs' folder)")


def run(args: argparse.Namespace) -> int:
    """Assess each claim, print, write the page; 1 where a run that was to be made failed."""
    from engine.claims import read_claims
    from engine.schema import register

    register()
    more = [*args.set, *(["sample=true"] if args.sample else [])]
    claims = [replace(claim, seeds=args.seeds or claim.seeds) for claim in read_claims(args.names)]
    failed = sum(_make_missing(claim, more, args.runs) for claim in claims) if args.run else 0
    known = _known(args.runs)
    assessments = [assessment for claim in claims for assessment in _assess(claim, more, known)]
    _print(assessments)
    if assessments:
        _write_page(args.html or args.runs / "claims.html", assessments, more)
    return int(failed > 0)


def _known(folder: Path) -> "Known":
    from engine.claims import by_meaning
    from engine.commands.runs import find_runs
    from engine.summary import collect

    return by_meaning(collect(find_runs(folder)) if folder.is_dir() else [])


def _jobs(claim: "Claim", more: Sequence[str]) -> Iterator[tuple[str, int, list[str]]]:
    """Side, seed and command line of each run, seed by seed, so that whatever is there is in pairs."""
    for seed in claim.seeds:
        for side, overrides in claim.sides.items():
            yield side, seed, [*overrides, *more, f"seed={seed}"]


def _assess(claim: "Claim", more: Sequence[str], known: "Known") -> "Iterator[Assessment]":
    """A claim's assessment; none, with a line that says why, where a side does not compose."""
    from engine.claims import assess, find, plan_of
    from engine.suggest import explain

    try:
        found = {(side, seed): find(plan_of(overrides), known) for side, seed, overrides in _jobs(claim, more)}
    except Exception as error:
        print(f"{claim.name}: not assessed: {explain(error, more)}", file=sys.stderr)
        return
    yield assess(claim, found)


def _make_missing(claim: "Claim", more: Sequence[str], folder: Path) -> int:
    """Make, or go on with, each run that has not finished; how many failed, one for a side that does not compose."""
    from engine.claims import find, plan_of

    failed, known = 0, _known(folder)
    for side, seed, overrides in _jobs(claim, more):
        try:
            there = find(plan_of(overrides), known)
        except Exception:  # `_assess` says why; other claims may have what they need
            return failed + 1
        if any(row.state == "finished" for row in there):
            continue
        begun = next((row.run.folder for row in there if row.run), None)
        go_on = [f"resume={begun}"] if begun else []
        print(f"{claim.name}: {side}, seed {seed}" + (f", going on with {begun}" if begun else ""), flush=True)
        failed += _call([sys.executable, str(RUN), *overrides, f"out_dir={folder}", *go_on]) != 0
        known = _known(folder)
    return failed


def _call(command: Sequence[str]) -> int:
    """Run a command; Ctrl-C reaches it as well, and is waited for, because it writes a checkpoint first."""
    process = subprocess.Popen(command)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise SystemExit(130) from None


def _print(assessments: "Sequence[Assessment]") -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 160
    colours = {"held": "green", "did not hold": "red", "not enough runs": "yellow"}
    for found in assessments:
        claim = found.claim
        drawn = " (on DRAWN SAMPLES)" if found.sample else ""
        console.print(
            f"[bold {colours[found.verdict]}]{found.verdict}[/]  {escape(claim.name)}{drawn}: {escape(claim.claim)}"
        )
        table = Table("metric", "first", "second", "means", "difference", "p", "verdict")
        for line in (row(finding) for finding in found.findings):
            table.add_row(*map(escape, line))
        console.print(table)
        for side, reason in dict.fromkeys((side, reason) for side, _, reason in found.missing):
            seeds = [str(seed) for name, seed, why in found.missing if (name, why) == (side, reason)]
            console.print(f"  [dim]missing: {escape(side)}, seed {', '.join(seeds)}: {escape(reason)}[/]")


def row(finding: Any) -> list[str]:
    """A finding as the cells of a table."""
    from engine.results import figure

    test, pairs = finding.test, list(finding.pairs.values())
    means = " : ".join(figure(sum(side) / len(pairs)) for side in zip(*pairs, strict=True)) if pairs else "–"
    spread = f" ± {figure(test.spread)}" if test.spread is not None else ""
    difference = f"{test.mean:+.4f}{spread}" if pairs else "–"
    verdict = f"{finding.verdict} ({finding.remark})" if finding.remark else finding.verdict
    p = "–" if test.p is None else f"{test.p:.3f}" if test.p >= 0.001 else "< 0.001"
    return [finding.metric, finding.first, finding.second, means, difference, p, verdict]


def _write_page(path: Path, assessments: "Sequence[Assessment]", more: Sequence[str]) -> None:
    from engine.report import write_page

    path.parent.mkdir(parents=True, exist_ok=True)
    shown = [{"found": found, "rows": [row(finding) for finding in found.findings]} for found in assessments]
    counts = {
        verdict: sum(found.verdict == verdict for found in assessments)
        for verdict in ("held", "did not hold", "not enough runs")
    }
    write_page(path, "claims.html.j2", shown=shown, counts=counts, more=list(more))
    print(path)
