"""Which of the tasks that the data have labels for is meant, for techniques that learn one."""

import difflib
from collections.abc import Mapping, Sequence


def one_task(classes: Mapping[str, Sequence[str]] | None, task: str | None) -> tuple[str, list[str]]:
    """A task's name and the names of its classes.

    Args:
        classes: {task: names of its classes}, as the data give them.
        task: the one that is meant; None is the first, which most data have no other beside.

    Raises:
        ValueError: no tasks, none of that name, or one of fewer than two classes.
    """
    if not classes:
        raise ValueError("classes is empty: give {task: [class names]}, or leave it null for the data to fill in.")
    name = next(iter(classes)) if task is None else task
    if name not in classes:
        nearest = difflib.get_close_matches(name, classes, n=1) or list(classes)
        raise ValueError(f"task={name!r}: the data have no such task; did you mean {', '.join(nearest)}?")
    names = [str(each) for each in classes[name]]
    if len(names) < 2:
        raise ValueError(f"classes.{name}={names}: a task needs two classes or more to be learned.")
    return name, names
