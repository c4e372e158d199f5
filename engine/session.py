"""One run from config to report: compose, check, open its folder, run its stages one after the other."""

import json
import logging
import signal
import sys
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from shutil import copy2
from typing import Any

from hydra.conf import HydraConf
from hydra.types import RunMode
from hydra.utils import get_class
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Column, Table

from engine.check import check_stage, check_targets
from engine.cluster import meet
from engine.compose import Plan, make_plan
from engine.console import log_to
from engine.devices import settle_trainer, world_size
from engine.each import expand, item_seed, look_up, spread
from engine.members import outside, refuse_gaps
from engine.outcome import print_items, print_stage
from engine.record import read_json
from engine.runs import (
    changes,
    environment,
    find_folder,
    locked,
    new_folder,
    read_plan,
    stage_key,
    typed_command,
    write_json,
    write_plan,
)
from engine.suggest import explain, flatten

log = logging.getLogger("nunchi")


def start(cfg: DictConfig, hydra: HydraConf) -> float | None:
    """Run a composed config; returns the judged metric of the last stage, which a sweeper optimises.

    Raises:
        ValueError: The config, the data or the machine does not allow the run: one sentence.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    experiment = hydra.runtime.choices.get("experiment") or "run"
    overrides = list(hydra.overrides.task)
    if cfg.folder and cfg.resume:
        raise ValueError(f"folder={cfg.folder} goes on with what lies there by itself: leave out resume={cfg.resume}")
    if cfg.folder and hydra.mode == RunMode.MULTIRUN:
        raise ValueError(f"folder={cfg.folder} is for one run; the jobs of a multirun have a folder each")
    for key in ("resume", "start_from"):
        if cfg[key] and not (key == "resume" and hydra.mode == RunMode.MULTIRUN):
            find_folder(cfg[key], cfg.out_dir, experiment, key)
    draft = make_plan(cfg, overrides, experiment, Path("OUT"))
    settle(draft)
    items = look_up(draft)
    expand(draft, items)
    if cfg.check:
        from engine.preflight import preflight

        sys.exit(preflight(draft))
    out = _folder(cfg, hydra, experiment)
    plan = make_plan(cfg, overrides, experiment, out)
    settle(plan)
    expand(plan, items)
    meet(plan)
    return (_Session if plan["cluster"]["node"] == 0 else _Follower)(plan, out, hydra).run()


def settle(plan: Plan) -> None:
    """Hold every target of a plan against its signature, and decide what depends on this machine."""
    for name, stage in plan["stages"].items():
        for part in ("module", "data", "callbacks"):
            check_targets(stage[part], f"stages.{name}.{part}")
        technique = get_class(stage["module"]["_target_"])
        stage["trainer"] = settle_trainer(stage["trainer"], technique.strategy)  # type: ignore[attr-defined]
        check_targets(stage["trainer"], "trainer", filled=True)
        technique.check_trainer(stage["trainer"])  # type: ignore[attr-defined]
        if stage["each"]:
            spread(name, stage)
        check_stage(name, stage)
    if plan["logger"]:
        check_targets(plan["logger"], "logger")


def _folder(cfg: DictConfig, hydra: HydraConf, experiment: str) -> Path:
    if hydra.mode == RunMode.MULTIRUN:  # `resume` named the sweep's folder, in which each job finds its own
        return (Path(hydra.sweep.dir) / hydra.sweep.subdir).resolve()
    if cfg.folder:
        return Path(cfg.folder).resolve()
    if cfg.resume:
        return find_folder(cfg.resume, cfg.out_dir, experiment).resolve()
    return new_folder(cfg.out_dir, experiment).resolve()


class _Session:
    """A plan and the folder that it fills."""

    def __init__(self, plan: Plan, out: Path, hydra: HydraConf) -> None:
        self.plan, self.out = plan, out
        # A sweep's job that lies there already was begun by the same sweep: a queue took its machine away.
        self.goes_on = bool(plan["resume"] or plan["folder"] or hydra.mode == RunMode.MULTIRUN)
        logger = plan["logger"] or {}
        if "group" in logger and hydra.mode == RunMode.MULTIRUN:
            logger["group"] = logger["group"] or Path(hydra.sweep.dir).name
        if "tags" in logger:  # by these a dashboard finds the runs of a technique
            of = (plan["experiment"], hydra.runtime.choices.get("sweep"), "sample" if plan["sample"] else None)
            logger["tags"] = list(dict.fromkeys([*filter(None, of), *logger["tags"]]))

    def run(self) -> float | None:
        with ExitStack() as locks:
            self._open(locks)
            try:
                for names in self._batches():
                    self._run_stages(names)
            except BaseException as error:
                self._record_failure(error)
                raise
        return self._close()

    def _chosen(self) -> list[str]:
        return [name for name in self.plan["stages"] if name in (self.plan["only"] or self.plan["stages"])]

    def _open(self, locks: ExitStack) -> None:
        """Take the folder: locks, compare with what was there, record config and machine."""
        for name in self._chosen():
            locks.enter_context(locked(self.out / name))
        if (self.out / "config.yaml").is_file():
            self._compare()
        if self.plan["start_from"]:
            self._take_over(
                find_folder(self.plan["start_from"], self.plan["out_dir"], self.plan["experiment"], "start_from")
            )
        log_to(self.out / "run.log")
        write_plan(self.out, self.plan)
        trainer = next(iter(self.plan["stages"].values()))["trainer"]
        device = f"{trainer['accelerator']} ({trainer['precision']})"
        write_json(self.out / "environment.json", environment(self.plan, world_size(trainer), device, typed_command()))
        (self.out / "failure.json").unlink(missing_ok=True)
        self._introduce()

    def _introduce(self) -> None:
        where = "on DRAWN SAMPLES, not on photos" if self.plan["sample"] else f"on {self.plan['data_dir']}"
        log.info("%s %s, in %s", self.plan["experiment"], where, self.out)

    def _compare(self) -> None:
        """Show what changed since the run was started; refuse what changes its meaning."""
        rows = changes(read_plan(self.out), self.plan)
        shown = [row for row in rows if row[0].split(".")[0] not in ("resume", "force", "out", "check")]
        if not shown:
            return
        columns = [Column(name, overflow="fold") for name in ("key", "was", "is now", "")]
        table = Table(*columns, title="changed since this run was started")
        for key, was, now, safe in shown:
            table.add_row(key, str(was), str(now), "" if safe else "changes the meaning")
        Console().print(table)
        unsafe = [key for key, *_, safe in shown if not safe]
        if unsafe and not self.plan["force"]:
            more = f" (and {len(unsafe) - 1} more)" if unsafe[1:] else ""
            raise ValueError(
                f"{unsafe[0]} differs from the run in {self.out}{more}: start a new run without resume, "
                "or say force=true to go on all the same"
            )

    def _take_over(self, source: Path) -> None:
        """Copy the files of the stages before the chosen ones from another run, so that this folder stands alone."""
        for name in self.plan["stages"]:
            if name in self._chosen() or (self.out / f"{name}.json").is_file():
                continue
            for file in (f"{name}.ckpt", f"{name}.json"):
                if (source / file).is_file():
                    (self.out / file).parent.mkdir(parents=True, exist_ok=True)
                    copy2(source / file, self.out / file)
            for table in (source / name).glob("*.csv"):  # such as kept.csv, which a person may have edited
                (self.out / name).mkdir(parents=True, exist_ok=True)
                copy2(table, self.out / name / table.name)

    def _batches(self) -> list[list[str]]:
        """The chosen stages in order; those that the data made of one stage together, for they need not wait."""
        groups = groupby(self._chosen(), lambda name: (name.split("/")[0], "item" in self.plan["stages"][name]))
        return [batch for (_, made), names in groups for batch in ([list(names)] if made else [[n] for n in names])]

    def _run_stages(self, names: list[str]) -> None:
        from engine.lanes import run_side_by_side
        from engine.launch import launch

        specs = [spec for name in names if (spec := self._spec(name))]
        devices = self.plan["stages"][names[0]].get("lanes", [0])
        if len(specs) > 1 and len(devices) > 1:
            run_side_by_side(specs, devices)
            return
        for spec in specs:
            launch(spec)

    def _spec(self, name: str) -> dict[str, Any] | None:
        """What a stage needs to run; nothing for one that finished before."""
        stage = self.plan["stages"][name]
        self._refuse_missing_files(name, stage)
        refuse_gaps(name, self.plan["stages"])
        known = ("experiment", "variant", "sample", "checkpoint_every", "features_gb", "logger")
        spec = {key: self.plan[key] for key in known}
        spec |= {"do": "fit", "name": name, "out": str(self.out), "stage": stage, "resume": self.goes_on}
        spec["cluster"] = self.plan["cluster"]
        spec["seed"] = item_seed(self.plan["seed"], stage)
        spec["key"] = stage_key(stage, name, self.plan["seed"], self.out, outside(stage["joins"], self.out))
        done = self.out / f"{name}.json"
        if before := read_json(done, {}, []):
            if before["key"] == spec["key"] and stage["trainer"]["max_epochs"] <= before["epochs"]:
                log.info("%s: finished before, skipped", name)
                return None
            if before["key"] != spec["key"]:
                log.info("%s: finished before with another config or other inputs, made anew", name)
                spec["resume"] = False
            done.unlink(missing_ok=True)
        if self.plan["sample"] and self.plan["cluster"]["node"] == 0:
            from engine.stage import draw_sample

            draw_sample(stage["data"])
        return spec

    def _refuse_missing_files(self, name: str, stage: dict[str, Any]) -> None:
        """A file of this run that a stage reads must be there before anything is built."""
        for key, value in flatten(stage).items():
            if isinstance(value, str) and value.startswith(f"{self.out}/") and not Path(value).exists():
                raise ValueError(
                    f"stages.{name}.{key}: {Path(value).name} is not in {self.out}; run the stage that writes it "
                    "first, or name a run that has it with start_from="
                )

    def _record_failure(self, error: BaseException) -> None:
        from engine.report import write_report

        log.debug("the run ended with an error", exc_info=True)
        stage = next((n for n in self._chosen() if not (self.out / f"{n}.json").is_file()), None)
        stopped = isinstance(error, (SystemExit, KeyboardInterrupt))
        sentence = "stopped by a signal; resume=latest goes on" if stopped else explain(error)
        write_json(self.out / "failure.json", {"stage": stage, "error": sentence, "where": str(self.out / "run.log")})
        try:
            write_report(self.out)
        except Exception:  # the page must not hide the error that it would tell of
            log.debug("no report", exc_info=True)

    def _close(self) -> float | None:
        from engine.report import write_report

        results = {name: self._result(name) for name in self._chosen()}
        for names in self._batches():
            if len(names) > 1:
                print_items({name: results[name] for name in names})
            else:
                print_stage(names[0], results[names[0]], self._theirs(names[0]))
        log.info("report: %s", write_report(self.out))
        result = list(results.values())[-1]
        value = result["metrics"].get(result["judged_by"])
        return float(value) if value is not None else None

    def _result(self, name: str) -> dict[str, Any]:
        result: dict[str, Any] = json.loads((self.out / f"{name}.json").read_text(encoding="utf-8"))
        return result

    def _theirs(self, name: str) -> dict[str, float]:
        """The source's figures for a stage's test; those of the last stage bear no stage's name."""
        figures = (self.plan["theirs"] or {}).get("figures", {})
        stage = "" if name == list(self.plan["stages"])[-1] else f"{name}: "
        return {k.removeprefix(stage): v for k, v in figures.items() if k.startswith(f"{stage}test/")}


class _Follower(_Session):
    """The same run on another machine than the first: it takes part in every stage; the first machine writes."""

    def _open(self, locks: ExitStack) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        log_to(self.out / f"node{self.plan['cluster']['node']}.log")
        self._introduce()

    def _record_failure(self, error: BaseException) -> None:
        log.debug("this machine ended with an error", exc_info=True)

    def _close(self) -> None:
        """Nothing to print: the first machine has the results."""
