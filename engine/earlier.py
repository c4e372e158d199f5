"""What a config may take from an earlier run: `${encoder_of:RUN}` and `${checkpoint_of:RUN}`."""

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf


def checkpoint_of(run: str | None) -> str:
    """The checkpoint of a run's last finished stage, or the file itself that was named.

    Raises:
        ValueError: No run was named, there is none of that name, or nothing of it has finished.
    """
    from engine.checkpoints import find_checkpoint

    if run is None:
        raise ValueError("encoder_from is not set: name a finished run or a stage's .ckpt, encoder_from=outputs/...")
    return str(find_checkpoint(Path(run)))


def encoder_of(run: str | None) -> dict[str, Any]:
    """The config of the encoder in a run's checkpoint, so that nobody writes it down a second time.

    Its weights are not those that it was once started from: they are in the checkpoint, for `warm_start` to take.

    Raises:
        ValueError: The checkpoint is not a stage's, or its technique has no encoder.
    """
    from engine.checkpoints import read_checkpoint

    path = checkpoint_of(run)
    node = read_checkpoint(Path(path))["stage"]["module"].get("encoder")
    if not isinstance(node, dict):
        raise ValueError(f"{path} holds no encoder; name a run whose technique has one")
    return node | {"weights": "none"}


def register() -> None:
    """Make both known to OmegaConf; a checkpoint is read once, however often a config is looked at."""
    for resolver in (encoder_of, checkpoint_of):
        OmegaConf.register_new_resolver(resolver.__name__, resolver, use_cache=True, replace=True)
