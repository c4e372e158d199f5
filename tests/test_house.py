"""The house rules that a reader relies on: arrows between the rooms, documented names, sizes, what configs say."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

ROOMS = ("engine", "lightning_modules", "datamodules", "callbacks")
SOURCES = [ROOT / "run.py", ROOT / "use.py", *sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))]
ISLANDS = {"lightning_modules", "datamodules", "callbacks"}
CONFIGS = {"hydra", "omegaconf"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> set[str]:
    """Dotted names of the modules that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def tops(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_arrows(path: Path) -> None:
    room, used = path.relative_to(ROOT).parts[0], tops(imports(path))
    if room in ISLANDS:
        assert not used & (ISLANDS - {room}), "the islands do not import each other"
        assert not used & (CONFIGS | {"engine"}), "only run.py, use.py and engine/ know Hydra and the engine"
    else:
        assert not used & ISLANDS, "the engine knows the islands through YAML only"


def test_nn_is_pure_torch_and_no_technique_imports_another() -> None:
    techniques = {p.stem for p in (ROOT / "lightning_modules").glob("*.py")} - {"__init__", "base", "optimisers"}
    for path in (ROOT / "lightning_modules").rglob("*.py"):
        if path.parent.name == "nn":
            assert not tops(imports(path)) & {"lightning", "hydra"}, name_of(path)
        others = {name.partition(".")[2] for name in imports(path) if name.startswith("lightning_modules.")}
        assert not others & (techniques - {path.stem}), name_of(path)


def functions(path: Path) -> Iterator[Function]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, Function):
            yield node


def body_lines(node: Function) -> int:
    first = node.body[1:] if ast.get_docstring(node) else node.body
    return node.end_lineno - first[0].lineno + 1 if first and node.end_lineno else 0


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_sizes(path: Path) -> None:
    long = [f"{node.name}: {body_lines(node)}" for node in functions(path) if body_lines(node) > 30]
    assert not long, "a function's body has at most 30 lines"
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 330


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_public_names_are_documented(path: Path) -> None:
    """Module, classes and functions; a method that overrides a hook of Lightning or torch is documented there."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if path.name == "__init__.py":
        assert not tree.body, "no export lists"
        return
    assert ast.get_docstring(tree)
    for node in tree.body:
        if isinstance(node, ast.ClassDef | Function) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"


@pytest.mark.parametrize("path", sorted((ROOT / "conf").rglob("*.yaml")), ids=name_of)
def test_configs_are_short_and_say_what_they_are(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= (45 if path.name == "run.yaml" else 32)
    if path.parent.name == "experiment":
        assert lines[0] == "# @package _global_", "a comment above it would empty the file"
        assert lines[1].startswith("# ")
        assert re.match(r"#\s+python run\.py .*experiment=" + path.stem, lines[2]), "the command that runs it"


def test_no_path_of_a_machine_and_no_note_to_self() -> None:
    words = re.compile(r"/home/|/Users/|\bTO" + r"DO\b|\bFIX" + r"ME\b|\bXX" + r"X\b")
    texts = [p for pattern in ("*.md", "docs/*.md", "*.toml", "Makefile", "*.txt") for p in ROOT.glob(pattern)]
    for path in [*SOURCES, *texts, *(ROOT / "conf").rglob("*.yaml"), *(ROOT / "benchmarks").glob("*.py")]:
        assert not words.search(path.read_text(encoding="utf-8")), name_of(path)
