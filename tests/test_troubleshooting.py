"""The messages that docs/troubleshooting.md quotes are those of the program: their words stand in its source."""

import ast
import re
from functools import cache

import pytest

from tests.conftest import ROOT

PAGE = ROOT / "docs/troubleshooting.md"
ROOMS = ("engine", "lightning_modules", "datamodules", "callbacks", "hydra_plugins")
PLAIN = re.compile(r"[A-Za-z][a-z']*")
# Plain words that are values in the messages quoted, where the source has a {...}.
VALUES = {"train", "val", "test", "photo", "Valid", "colour", "sleeve", "red", "green", "nan", "experiment"}
VALUES |= {"onnx", "onnxruntime", "onnxscript"}
SIZES = (3, 2)  # words on end that must stand in the source as they do on the page; two in the shortest messages


def messages() -> list[str]:
    """Every line of the page's ```text blocks."""
    blocks = re.findall(r"```text\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    return [line.removeprefix("error: ") for block in blocks for line in block.splitlines()]


def windows(text: str, size: int) -> set[tuple[str, ...]]:
    """All plain words, `size` of them, that follow each other without a value, a colon or a bracket between them."""
    found, line = set(), list[str]()
    for token in text.split():
        word = token.strip("(),;:.")
        line = [] if token.startswith("(") else line
        line = [*line, word] if PLAIN.fullmatch(word) and word not in VALUES else []
        found |= {tuple(line[-size:])} if len(line) >= size else set()
        line = [] if token.endswith((":", ";", ")")) else line
    return found


def quoted(message: str) -> set[tuple[str, ...]]:
    """What of a message can be found again."""
    return next((found for size in SIZES if (found := windows(message, size))), set())


@cache
def spoken() -> set[tuple[str, ...]]:
    """The windows of all strings in the source; an f-string is cut at its values."""
    files = [ROOT / "run.py", ROOT / "use.py", *(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))]
    nodes = [node for path in files for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    texts = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return {window for text in texts for size in SIZES for window in windows(re.sub("%[sd]", "0", text), size)}


def test_messages_are_found() -> None:
    assert len(messages()) >= 20


@pytest.mark.parametrize("message", messages(), ids=lambda message: message[:60])
def test_the_program_says_so(message: str) -> None:
    said = quoted(message)
    assert said, "too few words to be found again: quote more of it"
    assert said <= spoken(), f"nothing in the source says {' '.join(next(iter(said - spoken())))!r}"


@pytest.mark.parametrize("message", messages(), ids=lambda message: message[:60])
def test_a_message_that_is_put_in_other_words_is_noticed(message: str) -> None:
    first, second, *_ = next(iter(quoted(message)))
    other = re.sub(rf"\b{first}\b(\W+){second}\b", rf"{first} somehow\1{second}", message)
    assert not quoted(other) <= spoken()
