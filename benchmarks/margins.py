"""What recording margins costs: a training step of three tasks, alone and with the callback after it.

ResNet-18 at 64 px, batch 32, three heads; the table is that of 10,000 photos. The goal is a ratio of at most 1.02. The
recording alone is also timed, many times over, since its share is too small to be seen between two whole steps of a
busy machine. One thread, processor time, the sides in turn in one process, median of the rounds' ratios and range.

    python benchmarks/margins.py [--quick]
"""

import argparse
import statistics
from types import SimpleNamespace

import torch
from rounds import in_turn, show, timed

from callbacks.margins import Margins
from lightning_modules.fashion_mtl import FashionMTL
from lightning_modules.nn.backbones import Encoder
from lightning_modules.optimisers import Optimiser

TASKS = {"Daily": 7, "Gender": 6, "Embellishment": 3}
CLASSES = {task: [str(number) for number in range(count)] for task, count in TASKS.items()}
PHOTOS = 10_000
RECORDINGS = 50


class Sides:
    """A step, and what the callback does after it."""

    def __init__(self, name: str, batch: int) -> None:
        rates = {"name": "sgd", "lr": 1e-3, "weight_decay": 0.0, "encoder_lr_scale": 1.0, "schedule": "constant"}
        optimiser = Optimiser(**rates, warmup_epochs=0, decay=0.1, decay_epochs=1, momentum=0.9)
        encoder = Encoder(name, "none")
        self.module = FashionMTL(encoder, CLASSES, True, None, 0.0, 0.0, optimiser)
        self.optimizer = optimiser.build(self.module.named_parameters())
        image = torch.randint(0, 256, (batch, 64, 64, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
        labels = {task: torch.randint(0, count, (batch,)) for task, count in TASKS.items()}
        self.batch = {"image": image, "labels": labels, "index": torch.randperm(PHOTOS)[:batch]}
        self.recorder = Margins("logits", "zero", 99, 1.0, None, None, 0)
        self.recorder.tasks, self.recorder.limit = list(TASKS), 1
        data = SimpleNamespace(splits={"train": range(PHOTOS)})
        self.trainer = SimpleNamespace(current_epoch=0, datamodule=data)
        self.recorder.on_train_start(self.trainer, self.module)  # type: ignore[arg-type]
        self.outputs = self.step()

    def step(self) -> dict[str, object]:
        """One optimiser's step."""
        outputs = self.module.step(self.batch, "train")
        self.optimizer.zero_grad()
        outputs["loss"].backward()
        self.optimizer.step()
        return outputs

    def record(self) -> None:
        """What the callback does with a step's outputs."""
        self.recorder.on_train_batch_end(self.trainer, self.module, self.outputs, None, 0)  # type: ignore[arg-type]

    def both(self) -> None:
        """A step and its recording."""
        self.outputs = self.step()
        self.record()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny network and few rounds: shows that it runs")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    sides = Sides("test_resnet" if quick else "resnet18", 8 if quick else 32)
    jobs = {
        "step": lambda: timed(sides.step, 3),
        "step and recording": lambda: timed(sides.both, 3),
        "recording": lambda: timed(sides.record, RECORDINGS),
    }
    taken = in_turn(jobs, 2 if quick else 9)
    show(taken, "step and recording", "step")
    share = statistics.median(r / s for r, s in zip(taken["recording"], taken["step"], strict=True))
    print(f"  recording alone: {share:.2%} of the step   goal 2 %")


if __name__ == "__main__":
    main()
