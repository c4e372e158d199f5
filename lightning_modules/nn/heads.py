"""What sits on a trunk, one for each task."""

from collections.abc import ItemsView, Mapping

from torch import nn


class TaskDict(nn.ModuleDict):
    """One module a task, reached by the task's own name, whatever that is.

    A task is a column of somebody's table. `nn.ModuleDict` takes neither a dot in a name nor one that is an attribute
    of every module, such as `type`; inside, such a task is kept under a name that it does take.

    Args:
        modules: {task: module}.

    Raises:
        ValueError: two tasks whose names differ by a dot alone.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self.tasks = tuple(modules)
        super().__init__({slot(task): module for task, module in modules.items()})
        if len(self) < len(modules):
            raise ValueError(f"tasks {', '.join(modules)}: two of these names differ by no more than a dot.")

    def __getitem__(self, task: str) -> nn.Module:
        return super().__getitem__(slot(task))

    def items(self) -> ItemsView[str, nn.Module]:
        """(task, module) pairs, under the tasks' own names."""
        return dict(zip(self.tasks, self.values(), strict=True)).items()


def slot(task: str) -> str:
    """The name under which a task's module is kept."""
    name = task.replace(".", "_")
    return f"{name}_" if hasattr(nn.ModuleDict(), name) else name
