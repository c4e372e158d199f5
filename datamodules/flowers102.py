"""Oxford Flowers-102 in the layout that torchvision keeps it in."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torchvision import datasets

from datamodules.pairs import PairDataModule, Positives
from datamodules.photos import Photos
from datamodules.samples import flowers102 as sample
from datamodules.splits import Splits

TASK = "class"
LABELS, PARTS = "imagelabels.mat", "setid.mat"
SPLITS = {"train": "trnid", "val": "valid", "test": "tstid"}


class Flowers102(PairDataModule):
    """102 kinds of flowers, 10 photos of each in train and in val and about 60 in test: the published split.

    `jpg/image_00001.jpg` and so on lie beside `imagelabels.mat` and `setid.mat`, in a folder that torchvision calls
    `flowers-102`. Labels are there to judge by.

    Reference: Nilsback and Zisserman, Automated Flower Classification over a Large Number of Classes, 2008.

    Args:
        root: the folder `flowers-102`.
        batch_size: photos of a batch over all devices; with their positives twice as many pictures.
        seed: of order and positives.
        threads: that decode.
        on_leak: error, drop or warn about a photo in two splits.
        on_bad_image: error, or skip a broken photo.
        image_size: side of the square, in pixels.
        fit: letterbox, squash or crop.
        positives: `fixed` makes each photo's positive once, `fresh` anew in each epoch.
        change: strengths of what makes a positive, see `Augment`.
        download: fetch the data set, 350 MB, if it is not there.
    """

    def __init__(
        self,
        root: str | Path,
        batch_size: int,
        seed: int,
        threads: int,
        on_leak: str,
        on_bad_image: str,
        image_size: int,
        fit: str,
        positives: Positives,
        change: Mapping[str, float],
        download: bool,
    ) -> None:
        super().__init__(root, batch_size, seed, threads, on_leak, on_bad_image, image_size, fit, positives, change)
        self.download = download

    @classmethod
    def draw_sample(cls, root: Path, seed: int = 0) -> None:
        """Draw flowers of five kinds in this layout into `root`; a set that is there is kept."""
        matlab()
        sample.draw(Path(root), seed)

    def prepare_data(self) -> None:
        """Fetch the data set if that is wanted.

        Raises:
            ValueError: there is no way to the server.
        """
        if not self.download or (self.root / PARTS).is_file():
            return
        try:
            datasets.Flowers102(self.root.parent, download=True)  # into flowers-102 there
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"Flowers-102 cannot be downloaded ({error}): fetch 102flowers.tgz, {LABELS} and {PARTS} from "
                f"www.robots.ox.ac.uk/~vgg/data/flowers/102 elsewhere and unpack them into {self.root.absolute()}"
            ) from error

    def read(self) -> Splits:
        """The published splits.

        Raises:
            FileNotFoundError: the data set is not there.
            ValueError: scipy is not there.
        """
        labels = self._matlab(LABELS)["labels"] - 1
        self.facts = {"classes": {TASK: list(datasets.Flowers102.classes)}}
        parts = self._matlab(PARTS)
        return {split: self._photos(parts[key], labels) for split, key in SPLITS.items()}

    def _photos(self, numbers: NDArray[Any], labels: NDArray[Any]) -> Photos:
        numbers = np.sort(numbers)
        names = [f"jpg/image_{number:05d}.jpg" for number in numbers.tolist()]
        ids = {TASK: labels[numbers - 1].astype(np.int64)}
        return Photos(
            [self.root / name for name in names], None, ids, names, self.transform, self.on_bad_image == "skip"
        )

    def _matlab(self, name: str) -> dict[str, NDArray[Any]]:
        path = self.root / name
        if not path.is_file():
            raise FileNotFoundError(
                f"No {name} in {self.root.absolute()}: expected jpg/, {LABELS} and {PARTS}, as torchvision keeps "
                "Flowers-102 in flowers-102/; set download=true in the stage's data, data_dir=<folder that holds "
                f"{self.root.name}/>, or sample=true to go on with drawn flowers"
            )
        found: dict[str, NDArray[Any]] = matlab().loadmat(path, squeeze_me=True)
        return found


def matlab() -> Any:
    """What reads and writes Matlab's files.

    Raises:
        ValueError: it is not installed.
    """
    try:
        return import_module("scipy.io")
    except ImportError as error:
        raise ValueError("Flowers-102 has its labels in Matlab files, which need scipy: pip install scipy") from error
