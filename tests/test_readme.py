"""Every command that our pages and config files show is one that the program accepts."""

import re
import shlex
from pathlib import Path

import pytest

from engine.compose import make_plan
from engine.session import settle
from engine.suggest import composed
from tests.conftest import ROOT
from use import make_parser

PROSE = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "conf/README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [*PROSE, *sorted((ROOT / "conf").rglob("*.yaml"))]


def commands() -> list[tuple[str, str]]:
    """(page, command) for every `python run.py` and `python use.py` in a code block, in backticks or in a comment."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        lines = [line.lstrip("# ").strip() for line in text.splitlines()]
        shown = [line for line in lines if line.startswith("python ")] + re.findall(r"`(python [^`]+)`", text)
        found += [(page.relative_to(ROOT).as_posix(), re.split(r"\s+#", line)[0].strip()) for line in shown]
    return [
        (page, command) for page, command in found if "NAME" not in command and re.search(r"(run|use)\.py", command)
    ]


def test_commands_are_found() -> None:
    assert len(commands()) >= 12


@pytest.mark.parametrize(("page", "command"), commands())
def test_the_program_accepts_it(page: str, command: str, run: Path) -> None:
    command = re.sub(r"encoder_from=\S+", f"encoder_from={run}", command)  # whose files must be there
    command = command.replace("<run>", "run")
    words = shlex.split(command)[1:]
    script, arguments = words[0], words[1:]
    if script == "use.py":
        make_parser().parse_args(arguments)
        return
    overrides = [word for word in arguments if not word.startswith("-")]
    if not overrides:
        return  # the bare list of experiments, which test_config.py looks at
    if "-m" in arguments:
        proposed = re.compile(r"=(interval|tag|int|range|choice)\(")  # by a search, from ranges
        overrides = [word for word in overrides if not proposed.search(word)]
        overrides = [re.sub(r"=([^\[{]*?),.*", r"=\1", word) for word in overrides]  # the first job of the sweep
    plan = make_plan(composed(overrides), overrides, "readme", Path("OUT"))
    settle(plan)


def test_make_targets_that_are_named_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    for page in PROSE:
        for name in re.findall(r"`?\bmake ([a-z-]+)`", page.read_text(encoding="utf-8")):
            assert name in targets, f"{page.name}: make {name}"


@pytest.mark.parametrize("page", PROSE, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
