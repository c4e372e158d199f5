"""Uses runs: `python use.py COMMAND RUN ...`. Each file of engine/commands is a command; `--help` lists them."""

import argparse
import sys
from importlib import import_module
from pathlib import Path

COMMANDS = Path(__file__).resolve().parent / "engine" / "commands"


def make_parser() -> argparse.ArgumentParser:
    """A parser with a sub-command for each file of engine/commands."""
    parser = argparse.ArgumentParser(prog="use.py", description="Use a finished run.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for path in sorted(COMMANDS.glob("[!_]*.py")):
        command = import_module(f"engine.commands.{path.stem}")
        first_line = (command.__doc__ or "").splitlines()[0]
        sub = commands.add_parser(path.stem, help=first_line, description=command.__doc__)
        command.add_arguments(sub)
        sub.set_defaults(call=command.run)
    return parser


def command_line(argv: list[str] | None = None) -> int:
    """Run one command; what goes wrong is one sentence. Returns the exit code."""
    args = make_parser().parse_args(argv)
    try:
        return int(args.call(args))
    except Exception as error:
        from engine.suggest import explain

        print(f"error: {explain(error)}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(command_line())
