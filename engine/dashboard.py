"""A W&B workspace and a report for each technique, built from `conf/dashboard/*.yaml`."""

import warnings
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from engine.suggest import CONF, files_named

KINDS = ("line", "bar", "media", "table", "coordinates", "importance")
SPLITS = ("train/", "val/", "test/")


@dataclass(frozen=True)
class Dashboard:
    """What is shown of a technique: sections of panels, each panel one kind with its keys."""

    name: str
    about: str
    experiments: list[str]
    sections: dict[str, list[dict[str, Any]]]


def read_dashboards(names: list[str], folder: Path = CONF / "dashboard") -> list[Dashboard]:
    """The dashboards of these techniques, or of all.

    Raises:
        ValueError: There is none of that name, or a panel of its file is of no known kind.
    """
    return [read_dashboard(path) for path in files_named(names, folder, "dashboard")]


def read_dashboard(path: Path) -> Dashboard:
    """One dashboard from its file.

    Raises:
        ValueError: A panel is of no known kind.
    """
    text = path.read_text(encoding="utf-8")
    content = yaml.safe_load(text)
    for title, panels in content["sections"].items():
        for panel in panels:
            if len(panel) != 1 or next(iter(panel)) not in KINDS:
                raise ValueError(
                    f"{path}, section {title!r}: {panel} is no panel; a panel is one of {', '.join(KINDS)}"
                )
    about = text.splitlines()[0].lstrip("# ")
    return Dashboard(path.stem, about, content["experiments"], content["sections"])


def _quietly(name: str) -> Any:
    """A module of wandb-workspaces, which is written for an older Pydantic than it runs with and warns of itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return import_module(f"wandb_workspaces.{name}")


def panel_of(panel: dict[str, Any], across: int = 3) -> Any:
    """W&B's form of a panel; curves over the steps of training, runs of a group as mean and spread."""
    wr: Any = _quietly("reports.v2")

    ((kind, keys),) = panel.items()
    layout = wr.Layout(w=24 // across, h=6)
    if kind == "line":
        return wr.LinePlot(x="trainer/global_step", y=keys, layout=layout, groupby_rangefunc="stddev")
    if kind == "bar":
        return wr.BarPlot(metrics=keys, layout=layout)
    if kind == "media":
        return wr.MediaBrowser(media_keys=keys, layout=layout)
    if kind == "table":
        return wr.WeavePanelSummaryTable(table_name=keys, layout=layout)
    if kind == "importance":
        return wr.ParameterImportancePlot(with_respect_to=keys, layout=layout)
    columns = [wr.SummaryMetric(key) if key.startswith(SPLITS) else wr.Config(key) for key in keys]
    return wr.ParallelCoordinatesPlot(columns=[wr.ParallelCoordinatesPlotColumn(c) for c in columns], layout=layout)


def workspace_of(board: Dashboard, entity: str, project: str) -> Any:
    """A workspace that shows the runs of the technique, by their tag."""
    ws: Any = _quietly("workspaces")

    sections = [
        ws.Section(name=title, panels=[panel_of(panel) for panel in panels], is_open=True)
        for title, panels in board.sections.items()
    ]
    shown = ws.RunsetSettings(filters=ws.And(ws.Tags().isin(board.experiments)))
    return ws.Workspace(entity=entity, project=project, name=board.name, sections=sections, runset_settings=shown)


def report_of(board: Dashboard, entity: str, project: str) -> Any:
    """A report with the same panels, to be written around."""
    wr: Any = _quietly("reports.v2")

    ws: Any = _quietly("workspaces")
    tagged = ws.And(ws.Tags().isin(board.experiments))
    runs = wr.Runset(entity=entity, project=project, name=board.name, filters=tagged)
    blocks: list[Any] = [wr.P(board.about)]
    for title, panels in board.sections.items():
        blocks += [wr.H2(title), wr.PanelGrid(runsets=[runs], panels=[panel_of(panel) for panel in panels])]
    return wr.Report(entity=entity, project=project, title=board.name, description=board.about, blocks=blocks)
