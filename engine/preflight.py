"""`check=true`: looks at data, disk, devices and W&B, prints what it finds, and trains nothing."""

import shutil
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from rich.console import Console
from rich.table import Column, Table

from engine.check import check_targets
from engine.compose import Plan
from engine.devices import world_size
from engine.features import gigabytes, obstacle
from engine.stage import build_data, draw_sample, fill
from engine.suggest import explain, flatten

Row = tuple[str, str, str]  # what, finding, "" | "note" | "problem"


def preflight(plan: Plan) -> int:
    """Print a table for a plan; 0 when it could run, 1 when something stands in its way."""
    rows: list[Row] = [("config", "every key and argument is known", "")]
    if plan["sample"]:
        rows.append(("data", "DRAWN SAMPLES, not photos", "note"))
    for name, stage in plan["stages"].items():
        rows += _look(name, stage, plan)
    rows += _machine(plan)
    table = Table("", Column("found", overflow="fold"), "", title=f"check of {plan['experiment']}")
    colours = {"": "", "note": "yellow", "problem": "bold red"}
    for what, finding, verdict in rows:
        table.add_row(what, finding, verdict, style=colours[verdict])
    Console().print(table)
    return int(any(verdict == "problem" for *_, verdict in rows))


def _look(name: str, stage: dict[str, Any], plan: Plan) -> list[Row]:
    """One stage: counts, classes, every photo decoded, the module built (weights and heads), kept features."""
    files = [value for value in flatten(stage["data"]).values() if str(value).startswith(f"{plan['out']}/")]
    if awaited := [Path(file).relative_to(plan["out"]) for file in files if not Path(file).exists()]:
        return [(f"{name}: data", f"not looked at: {awaited[0]} is what an earlier stage will write", "note")]
    if plan["sample"]:
        draw_sample(stage["data"])
    try:
        data = build_data(stage["data"])
        survey = data.survey(deep=True)
        filled = fill(stage["module"], data.facts)
        check_targets(filled, f"stages.{name}.module", filled=True)
        module = None if stage["joins"] else instantiate(filled, _convert_="all")
    except (ValueError, OSError, InstantiationException) as error:
        return [(f"{name}: data and module", explain(error), "problem")]
    rows: list[Row] = [(f"{name}: data", survey["root"], "")]
    rows += [(f"{name}: {split}", f"{count:,} photos", "") for split, count in survey["counts"].items()]
    for split, tasks in survey["classes"].items():
        for task, counts in tasks.items():
            shown = ", ".join(f"{label} {count}" for label, count in counts.items())
            rows.append((f"{name}: {split} {task}", shown, ""))
    if module is None:
        rows.append((f"{name}: module", "not built: it is made of stages that are to be finished first", "note"))
    else:
        rows.append((f"{name}: features", *_features(stage | {"features_gb": plan["features_gb"]}, module, data)))
    return rows + [(name, note, "note") for note in survey["notes"]]


def _features(stage: dict[str, Any], module: Any, data: Any) -> tuple[str, str]:
    """Whether the stage's trunk will be run once, and what that takes."""
    if stage["features"] == "off":
        return "computed anew in each epoch (features=off)", ""
    if why := obstacle(stage, module, data):
        return f"computed anew in each epoch: {why}", "problem" if stage["features"] == "on" else ""
    return f"computed once and kept, {gigabytes(stage, module, data):.2f} GB in float32", ""


def _machine(plan: Plan) -> list[Row]:
    out = Path(plan["out_dir"])
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free / 2**30
    rows: list[Row] = [("disk", f"{free:.1f} GiB free for {out}", "problem" if free < 1 else "")]
    for name, stage in plan["stages"].items():
        trainer = stage["trainer"]
        processes = world_size(trainer)
        shown = (
            f"{processes} process{'es' if processes > 1 else ''} on {trainer['accelerator']}, {trainer['precision']}"
        )
        rows.append((f"{name}: devices", shown, ""))
    logger = plan["logger"] or {}
    rows.append(("logger", f"{logger.get('_target_', 'none').rpartition('.')[2]} {logger.get('mode', '')}".strip(), ""))
    return rows
