"""Build W&B workspaces and reports, one of each a technique, from conf/dashboard.

Without --push it shows what it would create and needs neither a network nor a key. Runs are found by their tags, which
are the names of their experiments.
"""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.dashboard import Dashboard


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("names", nargs="*", metavar="NAME", help="techniques (default: all of conf/dashboard)")
    parser.add_argument("--push", action="store_true", help="create them on W&B")
    parser.add_argument("--project", default="nunchi", help="W&B's project (default %(default)s)")
    parser.add_argument("--entity", default="", help="W&B's team or user (default: the account's own)")


def run(args: argparse.Namespace) -> int:
    """Show, or create and print the addresses."""
    from importlib.util import find_spec

    from engine.dashboard import read_dashboards, report_of, workspace_of

    boards = read_dashboards(args.names)
    _show(boards, args.project)
    if not args.push:
        print("nothing was created; --push creates them")
        return 0
    if find_spec("wandb_workspaces") is None:
        raise ValueError("dashboards need wandb-workspaces: pip install 'nunchi[dashboard]'")
    entity = args.entity or _own_entity()
    for board in boards:
        for made in (workspace_of(board, entity, args.project), report_of(board, entity, args.project)):
            made.save()
            print(made.url)
    return 0


def _own_entity() -> str:
    """The account's own entity.

    Raises:
        ValueError: There is no key here.
    """
    import wandb

    from engine.commands.sync import has_key

    if not has_key():
        raise ValueError("there is no W&B key here: run `wandb login` once, then this command again")
    return str(wandb.Api().default_entity)


def _show(boards: "Sequence[Dashboard]", project: str) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console.width = 160
    for board in boards:
        table = Table("section", "panel", "keys", title=f"{project}/{board.name}: {', '.join(board.experiments)}")
        for title, panels in board.sections.items():
            for number, panel in enumerate(panels):
                ((kind, keys),) = panel.items()
                table.add_row("" if number else title, kind, keys if isinstance(keys, str) else ", ".join(keys))
        console.print(table)
