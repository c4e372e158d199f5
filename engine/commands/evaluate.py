"""Test a finished stage again: on other data, or on several devices.

The metrics do not depend on the number of processes. They are printed, and written to
<run>/<stage>/evaluation.json; the run's own result stays as it is.
"""

import argparse
import json
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder, or one of its stage checkpoints")
    parser.add_argument("--stage", help="which stage (default: the last)")
    parser.add_argument("--root", type=Path, help="another data set in the same layout (default: the run's own)")
    parser.add_argument("--devices", type=int, default=1, help="processes (default %(default)s)")
    parser.add_argument("--accelerator", default="auto", help="auto, cpu or gpu (default %(default)s)")
    parser.add_argument("--precision", default="32-true", help="as trainer.precision (default %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Test, print the metrics as JSON."""
    from engine.checkpoints import find_checkpoint
    from engine.console import log_to
    from engine.devices import settle_trainer
    from engine.launch import launch

    checkpoint = find_checkpoint(args.run, args.stage)
    log_to(None)
    trainer = {
        "_target_": "lightning.Trainer", "accelerator": args.accelerator, "devices": args.devices, "num_nodes": 1,
        "strategy": "auto", "precision": args.precision, "max_epochs": 1,
    }  # fmt: skip
    spec = {
        "do": "evaluate", "name": checkpoint.stem, "out": str(checkpoint.parent.resolve()),
        "checkpoint": str(checkpoint.resolve()), "root": str(args.root.resolve()) if args.root else None,
        "stage": {"trainer": settle_trainer(trainer, "ddp")},
    }  # fmt: skip
    launch(spec)
    result = checkpoint.parent / checkpoint.stem / "evaluation.json"
    print(json.dumps(json.loads(result.read_text(encoding="utf-8")), indent=1))
    return 0
