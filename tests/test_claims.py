"""Claims: the paired test against SciPy's, what counts as a run, the three verdicts, and the machinery on samples."""

import math
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy import stats

from engine import claims
from engine.claims import Claim, assess, by_meaning, find, meaning, plan_of, read_claim, read_claims
from engine.commands.runs import find_runs
from engine.paired import paired_test, two_sided
from engine.summary import Row, collect
from tests.conftest import ROOT, TINY
from use import command_line

CLAIMS = sorted((ROOT / "conf/claims").glob("*.yaml"))


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 8, 29])
@pytest.mark.parametrize("t", [0.0, 0.3, 2.92, 40.0])
def test_students_distribution(freedom: int, t: float) -> None:
    assert two_sided(t, freedom) == pytest.approx(1 - 2 * stats.t.sf(t, freedom), abs=1e-12)


@pytest.mark.parametrize(("expected", "scipys"), [("higher", "greater"), ("lower", "less")])
@pytest.mark.parametrize("margin", [0.0, 0.05])
def test_the_paired_test(expected: str, scipys: str, margin: float) -> None:
    rng = np.random.default_rng(3)
    first, second = rng.normal(0.6, 0.1, 5), rng.normal(0.5, 0.1, 5)
    bound = margin if expected == "higher" else -margin
    reference = stats.ttest_rel(first - bound, second, alternative=scipys)
    ours = paired_test(list(first - second), expected, margin)
    assert ours.p == pytest.approx(reference.pvalue)
    assert (ours.n, ours.mean) == (5, pytest.approx(np.mean(first - second)))


def test_equality_within_a_margin_is_both_one_sided_tests() -> None:
    differences = [0.01, -0.004, 0.002, 0.006]
    above = stats.ttest_1samp(differences, -0.02, alternative="greater").pvalue
    below = stats.ttest_1samp(differences, 0.02, alternative="less").pvalue
    assert paired_test(differences, "same", 0.02).p == pytest.approx(max(above, below))
    assert paired_test([0.5, 0.5], "same", 0.02).p == 1.0


def test_differences_without_spread_and_single_pairs() -> None:
    assert paired_test([-3.0, -3.0], "lower", 0).p == 0.0
    assert paired_test([0.0, 0.0], "higher", 0).p == 1.0
    assert paired_test([1.0], "higher", 0).p is None
    assert math.isnan(paired_test([], "higher", 0).mean)


def row(state: str = "finished", **metrics: float) -> Row:
    return Row("0", state, "" if state == "finished" else "no memory", {}, metrics, "top1", "max", {}, False)


def claim(**changes: object) -> Claim:
    usual = {"sides": {"a": [], "b": []}, "metrics": {"top1": None}, "expected": "higher", "seeds": [0, 1, 2]}
    return Claim(**({"name": "n", "claim": "c", "source": "s"} | usual | changes))  # type: ignore[arg-type]


def found(first: list[float], second: list[float]) -> dict[tuple[str, int], list[Row]]:
    sides = {"a": first, "b": second}
    return {(side, seed): [row(top1=value)] for side, values in sides.items() for seed, value in enumerate(values)}


@pytest.mark.parametrize(
    ("first", "second", "verdict", "said"),
    [
        ([0.8, 0.81, 0.83], [0.7, 0.72, 0.72], "held", ""),
        ([0.8, 0.6, 0.9], [0.7, 0.72, 0.72], "did not hold", "points the claimed way"),
        ([0.6, 0.61, 0.6], [0.7, 0.72, 0.72], "did not hold", "does not point that way"),
        ([0.8, 0.81, math.nan], [0.7, 0.72, 0.72], "not enough runs", "seed 2 has no finite top1"),
    ],
)
def test_verdicts(first: list[float], second: list[float], verdict: str, said: str) -> None:
    (finding,) = assess(claim(), found(first, second)).findings
    assert finding.verdict == verdict
    assert said in finding.remark


def test_a_missing_or_failed_run_leaves_a_claim_open() -> None:
    runs = found([0.8, 0.81, 0.83], [0.7, 0.72, 0.72])
    runs["b", 1], runs["a", 2] = [row("failed")], []
    told = assess(claim(), runs)
    assert told.verdict == "not enough runs"
    assert sorted(told.missing) == [("a", 2, "not run yet"), ("b", 1, "no memory")]
    assert told.findings[0].pairs == {0: (0.8, 0.7)}


def test_all_comparisons_must_hold() -> None:
    three = claim(sides={"a": [], "b": [], "c": []})
    runs = found([0.8, 0.81, 0.83], [0.7, 0.72, 0.72]) | {("c", seed): [row(top1=0.9)] for seed in range(3)}
    told = assess(three, runs)
    assert [finding.verdict for finding in told.findings] == ["held", "did not hold"]
    assert told.verdict == "did not hold"


def test_one_side_against_its_own_other_figure_and_against_a_number() -> None:
    alone = claim(sides={"a": []}, metrics={"top1": "before", "shift": 0.5}, expected="higher")
    runs = {("a", seed): [row(top1=0.8 + seed / 100, before=0.5, shift=0.2)] for seed in range(3)}
    top1, shift = assess(alone, runs).findings
    assert (top1.verdict, top1.second) == ("held", "before")
    assert (shift.verdict, shift.second) == ("did not hold", "0.5")


@pytest.mark.parametrize("path", CLAIMS, ids=lambda path: path.stem)
def test_every_claim_composes(path: Path, data_dir: Path) -> None:
    """On samples, since the data decide how many stages some experiments have."""
    told = read_claim(path)
    assert len(told.seeds) >= 3
    for overrides in told.sides.values():
        assert plan_of([*overrides, "seed=0", "sample=true", f"data_dir={data_dir}"])["stages"]
    for metric in told.metrics:
        assert metric in ("parameters", "seconds") or metric.split(": ")[-1].startswith("test/"), "judged on test data"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"expecte": "higher"}, "'expecte'; did you mean 'expected'"),
        ({"expected": "better"}, "higher, lower, same"),
        ({"expected": "same"}, "needs a margin above 0"),
        ({"metrics": {"test/top1": 1}}, "metrics must be a list"),
        ({"sides": {"a": []}}, "metrics must be a mapping"),
        ({"seeds": None}, "a claim needs 'seeds'"),
    ],
)
def test_bad_claims_are_refused(change: dict[str, object], said: str, tmp_path: Path) -> None:
    content = yaml.safe_load((ROOT / "conf/claims/fashion_aum.yaml").read_text(encoding="utf-8")) | change
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
    with pytest.raises(ValueError, match=r"c\.yaml") as refused:
        read_claim(file)
    assert said in str(refused.value)


def test_an_unknown_claim_is_named_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'spu_partial_update'"):
        read_claims(["spu_partial_updat"])


def test_a_run_counts_by_what_it_means(run: Path) -> None:
    asked = [*TINY, "seed=0", f"data_dir={run.parent / 'data'}"]
    rows = collect([run])
    known = by_meaning(rows)
    assert find(plan_of(asked), known) == rows
    assert find(plan_of([*asked, "trainer.log_every_n_steps=7", "logger=tensorboard", "out_dir=x"]), known) == rows
    for other in ("seed=1", "trainer.max_epochs=3", "stages.fit.module.dropout=0.5"):
        assert find(plan_of([*asked, other]), known) == [], other
    assert "seed" in meaning(plan_of(asked))


def test_the_newest_run_of_a_meaning_stands_first_and_a_config_is_looked_at_once(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older, newer = collect([run, run])
    assert older.run
    assert newer.run
    older.run.environment, newer.run.environment = {"created": "2026-01-01"}, {"created": "2026-01-02"}
    looked = []
    monkeypatch.setattr(claims, "meaning", lambda config: looked.append(config) or meaning(config))
    known = by_meaning([older, newer])
    assert len(looked) == 2
    assert find(dict(newer.run.config), known) == [newer, older]
    assert len(looked) == 3, "the plan's alone"


def test_a_claim_that_does_not_compose_leaves_the_others(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Where the data of one are not there, `--run` says so and goes on with the next."""
    nothing = ["--set", f"data_dir={tmp_path / 'none'}"]
    assert command_line(["claims", "brand_split", "--runs", str(tmp_path), "--run", "--seeds", "0", *nothing]) == 1
    said = capfd.readouterr().err
    assert said.startswith("brand_split: not assessed: ")
    assert said.count("\n") == 1


def test_the_machinery_runs_what_is_missing(tmp_path: Path, data_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tiny = [word for word in TINY if not word.startswith(("experiment", "sample"))]
    tiny += ["trainer.max_epochs=1", "trainer.limit_train_batches=2", f"data_dir={data_dir}"]
    command = [
        "claims",
        "fashion_shared_cost",
        "--runs",
        str(tmp_path),
        "--sample",
        "--seeds",
        "0",
        "1",
        "--set",
        *tiny,
    ]
    assert command_line(command) == 0
    assert "missing: separate, seed 0, 1: not run yet" in capfd.readouterr().out
    assert command_line([*command, "--run"]) == 0
    printed = capfd.readouterr().out
    assert "held  fashion_shared_cost (on DRAWN SAMPLES)" in printed
    assert len(list(find_runs(tmp_path))) == 4
    page = (tmp_path / "claims.html").read_text(encoding="utf-8")
    assert "DRAWN SAMPLES" in page
    assert "One shared network has fewer parameters" in page
    assert command_line([*command, "--run"]) == 0
    assert len(list(find_runs(tmp_path))) == 4, "nothing was missing any more"
