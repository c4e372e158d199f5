"""The command line as people type it, before Hydra reads it."""

import re
from collections.abc import Sequence
from dataclasses import fields

from engine.schema import Run

TASKS = re.compile(r"(stages\.[^.=]+\.data\.classes)=\{")
GROUPS = {"experiment", "sweep", "launcher"}


def meant(arguments: Sequence[str]) -> list[str]:
    """The arguments as Hydra takes them: flags in front, and the tasks of one's own data in place of those there.

    Raises:
        ValueError: A setting was written as a flag.
    """
    settings = {field.name for field in fields(Run)} | GROUPS
    for word in arguments:
        name, _, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and name.partition(".")[0] in settings:
            raise ValueError(f"{word}: settings have no hyphens before them: {name}={value or '...'}")
    # argparse takes the overrides as one list: those that stand behind `-m` would be "unrecognized arguments".
    return sorted(replacing(arguments), key=lambda word: word not in ("-m", "--multirun"))


def replacing(overrides: Sequence[str]) -> list[str]:
    """`stages.fit.data.classes={colour: 3}` takes the place of the data set's own tasks.

    Hydra merges a mapping into the one that is there, and refuses a key that this does not have: with photos of one's
    own, whose tasks have other names, that is never meant.
    """
    found: list[str] = []
    for word in overrides:
        tasks = TASKS.match(word)
        found += [f"~{tasks[1]}", f"+{word}"] if tasks else [word]
    return found
