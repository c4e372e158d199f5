"""A finished stage as an ONNX file that needs none of our code: pixels in, probabilities or an embedding out."""

import logging
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.runs import write_json

TOLERANCE = 1e-3  # of a probability, or of an embedding's component over its length
GEOMETRY = ("crop", "fit", "margin")  # of the data's settings, those that change what evaluation sees


class Deployed(nn.Module):
    """What is exported: normalisation, network, softmax.

    Args:
        module: A technique in eval mode, with `predict_step` where it has classes and `embed` where it has none.
        tasks: Its tasks, in the order of the outputs; none for an embedding.
    """

    def __init__(self, module: nn.Module, tasks: Sequence[str]) -> None:
        super().__init__()
        self.module, self.tasks = module, list(tasks)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Probabilities (B, classes) of each task, or the embedding (B, D), of (B, 3, S, S) uint8 pixels."""
        if not self.tasks:
            return (self.module.embed({"image": image}).float(),)  # type: ignore[operator]
        logits = self.module.predict_step({"image": image, "index": None}, 0)["logits"]  # type: ignore[operator]
        return tuple(logits[task].float().softmax(1) for task in self.tasks)


@dataclass
class Check:
    """How far the file's answers lie from the checkpoint's."""

    photos: int
    largest: float
    agreeing: float

    @property
    def passed(self) -> bool:
        """Whether every figure agrees within the tolerance."""
        return self.largest <= TOLERANCE


def classes_of(module: Any) -> dict[str, list[str]]:
    """The names of each task's classes, in the order of its probabilities; empty for a technique that has none."""
    classes = getattr(module, "classes", None) or {}
    words = getattr(module, "words", None)
    found = {"tags": list(words)} if words else {task: list(names) for task, names in classes.items()}
    return found if hasattr(module, "predict_step") and getattr(module, "readout", module) is not None else {}


def write_onnx(deployed: Deployed, size: tuple[int, int], path: Path) -> None:
    """Write the file; any number of images fits through it at once.

    Raises:
        ValueError: Something in the network has no form in ONNX.
    """
    names = deployed.tasks or ["embedding"]
    pixels = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of torch's exporter about itself
        try:
            torch.onnx.export(
                deployed, (pixels,), str(path), input_names=["image"], output_names=names, dynamo=True,
                dynamic_shapes={"image": {0: torch.export.Dim("batch")}}, external_data=False, verbose=False,
            )  # fmt: skip
        except torch.onnx.errors.OnnxExporterError as error:
            first = str(error).strip().splitlines()[0]
            raise ValueError(f"this technique cannot be written as ONNX: {first}") from error


def check(path: Path, deployed: Deployed, batches: Iterable[Mapping[str, Any]]) -> Check:
    """Run the file and the checkpoint on the same pixels."""
    import onnxruntime  # type: ignore[import-untyped]

    onnxruntime.set_default_logger_severity(3)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    photos, largest, agreeing, asked = 0, 0.0, 0, 0
    for batch in batches:
        pixels = batch["image"]
        with torch.inference_mode():
            ours = deployed(pixels)
        theirs = session.run(None, {"image": pixels.numpy()})
        for one, two in zip(ours, map(torch.from_numpy, theirs), strict=True):
            scale = 1.0 if deployed.tasks else float(one.norm(dim=1).max())
            largest = max(largest, float((one - two).abs().max()) / scale)
            agreeing += int((one.argmax(1) == two.argmax(1)).sum())
            asked += len(one)
        photos += len(pixels)
    return Check(photos, largest, agreeing / max(1, asked))


def describe(
    content: Mapping[str, Any], data: Any, size: tuple[int, int], classes: Mapping[str, list[str]], done: Check
) -> dict[str, Any]:
    """What someone with the file alone must know: what goes in, what comes out, and how well it was checked."""
    node = content["stage"]["data"]
    height, width = size
    outputs = [{"name": task, "type": "probabilities", "classes": names} for task, names in classes.items()]
    return {
        "experiment": content["experiment"],
        "input": {
            "name": "image",
            "type": f"uint8, N x 3 x {height} x {width}, RGB, 0 to 255; the normalisation is inside the file",
            "preparation": repr(data.transform),
            "settings": {key: node[key] for key in GEOMETRY if key in node},
        },
        "outputs": outputs or [{"name": "embedding", "type": "a vector, to be compared by cosine"}],
        "checked": {"photos": done.photos, "largest_difference": done.largest, "same_answer": done.agreeing},
    }


def write_folder(
    folder: Path, content: Mapping[str, Any], module: nn.Module, data: Any, batches: Sequence[Mapping[str, Any]]
) -> Check:
    """Write `model.onnx` and, once it was checked on the batches, `model.json` into a folder.

    Raises:
        ValueError: The technique has no form in ONNX, or the file's answers are not the checkpoint's.
    """
    classes = classes_of(module)
    deployed = Deployed(module, list(classes)).eval()
    size = (int(batches[0]["image"].shape[2]), int(batches[0]["image"].shape[3]))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    write_onnx(deployed, size, path)
    done = check(path, deployed, batches)
    if not done.passed:
        wrong = path.rename(folder / "model.wrong.onnx")
        raise ValueError(
            f"{wrong} answers {done.largest:.2g} away from the checkpoint, where at most {TOLERANCE} is accepted: it "
            "is kept to be looked at, not to be used"
        )
    write_json(folder / "model.json", describe(content, data, size, classes, done))
    return done
