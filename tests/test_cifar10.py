"""CIFAR-10: the published files read exactly and without running them, what is wrong with them, the drawn set."""

import inspect
import os
import pickle
import shutil
import sys
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import md5
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torchvision
import yaml

from datamodules import cifar10
from datamodules.array_transforms import BatchAugment
from datamodules.cifar10 import CIFAR10
from datamodules.pickles import read_pickle
from datamodules.samples.cifar10 import BATCHES, FOLDER, pickled
from tests.conftest import ROOT

N = 20  # images of a batch file
NAMES = [f"kind {k}" for k in range(10)]
SETTINGS = {"batch_size": 8, "seed": 0, "threads": 1, "on_leak": "error", "val_share": 0.2}


def content(number: int) -> dict[str, Any]:
    rows = np.random.default_rng(number).integers(0, 256, (N, 3072), dtype=np.uint8)
    return {"batch_label": "some", "labels": [at % 10 for at in range(N)], "data": rows, "filenames": ["x.png"] * N}


def layout(root: Path) -> Path:
    """The published files, small, with random pixels."""
    folder = root / FOLDER
    folder.mkdir(parents=True)
    for number, name in enumerate(BATCHES):
        (folder / name).write_bytes(pickled(content(number)))
    (folder / "batches.meta").write_bytes(pickled({"label_names": NAMES, "num_vis": 3072}))
    return root


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The set as it should be; only read."""
    return layout(tmp_path_factory.mktemp("cifar10"))


@pytest.fixture
def root(clean: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may spoil."""
    return Path(shutil.copytree(clean, tmp_path / "cifar10"))


def opened(root: Path, **changes: Any) -> CIFAR10:
    data = CIFAR10(root, **{**SETTINGS, **changes})
    data.prepare_data()
    data.setup()
    return data


def refused(root: Path, words: str, error: type[Exception] = ValueError, **changes: Any) -> None:
    with pytest.raises(error, match=words) as found:
        opened(root, **changes)
    assert "\n" not in str(found.value), "one sentence"


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> type[torchvision.datasets.CIFAR10]:
    """Torchvision's reader, which is made to believe that the files are the published ones."""
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    return torchvision.datasets.CIFAR10


def same(data: CIFAR10, root: Path, published: Any) -> None:
    """Every image and label as torchvision reads them."""
    for name, train in (("train", True), ("test", False)):
        theirs, split = published(root, train=train), data.splits[name]
        assert theirs.classes == data.facts["classes"]["class"]
        assert split.labels["class"].tolist() == theirs.targets
        (block,) = split.blocks
        assert np.array_equal(block.pixels[split.rows], theirs.data)
        assert np.array_equal(data.picture(name, 7).permute(1, 2, 0), np.asarray(theirs[7][0]))


# --- the files as published


def test_read_as_torchvision_reads_it(clean: Path, published: Any) -> None:
    same(opened(clean, val_share=0), clean, published)


@pytest.mark.parametrize("protocol", range(6))
def test_files_pickled_again_by_python_3(root: Path, protocol: int, published: Any) -> None:
    before = opened(root, val_share=0)
    for path in (root / FOLDER).iterdir():
        again = pickle.loads(path.read_bytes(), encoding="bytes" if protocol % 2 else "latin1")
        path.write_bytes(pickle.dumps(again, protocol))
    data = opened(root, val_share=0)
    assert np.array_equal(data.splits["train"].blocks[0].pixels, before.splits["train"].blocks[0].pixels)
    assert data.facts == before.facts
    if not protocol % 2:
        same(data, root, published)


def test_splits_names_and_notes(clean: Path) -> None:
    data = opened(clean)
    survey = data.survey(deep=True)
    assert survey["counts"] == {"train": 80, "val": 20, "test": 20}
    assert survey["classes"]["val"]["class"] == dict.fromkeys(NAMES, 2)
    assert survey["notes"] == [
        "6 of 6 batch files are not as published (md5), so results need not compare with those of others",
        "val: 20 images of train set aside (seed 0)",
    ]
    names = {data.name(split, at) for split in ("train", "val") for at in range(len(data.splits[split]))}
    assert names == {f"data_batch_{batch}/{at}" for batch in range(1, 6) for at in range(N)}
    assert data.name("test", 19) == "test_batch/19"


def test_published_files_are_read_without_a_word(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sums = {name: md5((clean / FOLDER / name).read_bytes()).hexdigest() for name in BATCHES}
    splits = {split: {name: sums[name] for name in files} for split, files in cifar10.SPLITS.items()}
    monkeypatch.setattr(cifar10, "SPLITS", splits)
    assert opened(clean, val_share=0).notes == []


def test_config_names_every_argument() -> None:
    settings = yaml.safe_load((ROOT / "conf/datamodules/cifar10.yaml").read_text(encoding="utf-8"))
    assert settings.pop("_target_") == "datamodules.cifar10.CIFAR10"
    assert settings.keys() == inspect.signature(CIFAR10).parameters.keys()
    assert settings["augment"].keys() == inspect.signature(BatchAugment).parameters.keys()


# --- files that are wrong


def test_missing_files(root: Path, tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "No CIFAR-10 in .*nowhere: .*download=true.*sample=true", FileNotFoundError)
    (root / FOLDER / "data_batch_4").unlink()
    (root / FOLDER / "batches.meta").unlink()
    refused(root, "has no data_batch_4, batches.meta", FileNotFoundError)


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.9999])
def test_a_batch_file_cut_short(root: Path, share: float) -> None:
    path = root / FOLDER / "data_batch_3"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    refused(root, "data_batch_3 was cut short or is no pickle .*: copy or download it again")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        (
            "data",
            np.zeros((N, 3071), np.uint8),
            r"its data are a uint8 array of shape \(20, 3071\), where rows of 3072",
        ),
        ("data", np.zeros((N, 3, 32, 32), np.uint8), r"of shape \(20, 3, 32, 32\)"),
        ("data", np.zeros((N, 3072), np.float32), "its data are a float32 array"),
        ("data", [[0] * 3072], "its data are no array"),
        ("labels", [0] * (N - 1), "has 19 labels for 20 images"),
        ("labels", [0.5] * N, "has 20 labels for 20 images"),
        ("labels", [*[3] * (N - 1), 10], "data_batch_2/19: label 10: labels run from 0 to 9"),
        ("labels", [-1, *[3] * (N - 1)], "data_batch_2/0: label -1"),
    ],
)
def test_wrong_contents(root: Path, key: str, value: Any, words: str) -> None:
    path = root / FOLDER / "data_batch_2"
    path.write_bytes(pickle.dumps({**content(1), key: value}))
    refused(root, words)


def test_wrong_keys(root: Path) -> None:
    path = root / FOLDER / "data_batch_2"
    path.write_bytes(pickle.dumps({"pixels": 3}))
    refused(root, "data_batch_2: its data are no array")
    path.write_bytes(pickle.dumps([1, 2]))
    refused(root, "data_batch_2 holds a list where a dictionary is expected")
    path.write_bytes(pickled(content(1)))
    (root / FOLDER / "batches.meta").write_bytes(pickle.dumps({"names": 3}))
    refused(root, "batches.meta has no list label_names")


class Evil:
    """Unpickled in the usual way, it runs a command."""

    def __init__(self, sign: Path) -> None:
        self.sign = sign

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.sign}",)


def attacks(sign: Path) -> Iterator[tuple[bytes, str]]:
    """Pickles that would run or import something, and what each is refused for."""
    for protocol in range(6):
        yield pickle.dumps({"data": Evil(sign)}, protocol), "asks for (posix|nt).system"
    yield pickle.dumps({"data": np.array([Evil(sign)], dtype=object)}), "asks for an array of type 'O8'"
    yield pickle.dumps({"data": sys.intern}), "asks for sys.intern"
    yield b"cbuiltins\neval\n(S'1'\ntR.", "asks for builtins.eval"
    yield b"cnumpy\nload\n(S'x'\ntR.", "asks for numpy.load"
    yield b"cnumpy.core.multiarray\nset_string_function\n.", "asks for numpy.core.multiarray.set_string_function"
    yield b"c_codecs\nencode\n(S'x'\nS'zip'\ntR.", "asks for the encoding"
    yield b"cnumpy\nndarray\n((K\x01tS'O'\ntR.", "was cut short or is no pickle"
    yield b"Phttp://example.org\n.", "asks for an object of another program"


def test_nothing_that_a_pickle_asks_for_is_run(root: Path, tmp_path: Path) -> None:
    sign = tmp_path / "run"
    for attack, words in attacks(sign):
        (root / FOLDER / "data_batch_5").write_bytes(attack)
        refused(root, f"data_batch_5 {words}")
    assert not sign.exists()
    pickle.loads(pickle.dumps(Evil(sign)))
    assert sign.exists(), "the usual reader would have"


def test_arrays_of_plain_numbers_come_back_equal(tmp_path: Path) -> None:
    path = tmp_path / "pickle"
    for dtype in ("u1", "<i4", ">f8", "<f2", "?"):
        for order in "CF":
            array = np.asarray(np.arange(24).reshape(2, 3, 4), dtype=dtype, order=order)  # type: ignore[call-overload]
            for protocol in range(6):
                path.write_bytes(pickle.dumps({"a": array, "b": np.int64(5), "c": b"\xff"}, protocol))
                found = read_pickle(path)
                assert np.array_equal(found["a"], array)
                assert (found["a"].dtype, found["b"], found["c"]) == (array.dtype, 5, b"\xff")


# --- download


class Site(SimpleHTTPRequestHandler):
    """Counts what is asked for."""

    asked: ClassVar[Counter[str]] = Counter()

    def log_message(self, form: str, *values: object) -> None:
        self.asked[self.command] += 1


@pytest.fixture
def archive(clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An archive of the set on a server of this machine, which `download` takes for the published one."""
    path = tmp_path / "site" / "cifar-10-python.tar.gz"
    path.parent.mkdir()
    with tarfile.open(path, "w:gz") as tar:
        tar.add(clean / FOLDER, FOLDER)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Site, directory=path.parent)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(cifar10.Published, "url", f"http://127.0.0.1:{server.server_port}/{path.name}")
        monkeypatch.setattr(cifar10.Published, "tgz_md5", md5(path.read_bytes()).hexdigest())
        yield path
        server.shutdown()


def test_download(archive: Path, tmp_path: Path) -> None:
    data = opened(tmp_path / "new" / "cifar10", download=True)
    assert len(data.splits["test"]) == N
    assert sorted(path.name for path in data.root.iterdir()) == [".download.lock", FOLDER]
    archive.unlink()
    opened(data.root, download=True)  # what is there is not fetched again


def test_of_several_processes_one_downloads(archive: Path, tmp_path: Path) -> None:
    Site.asked.clear()
    with ThreadPoolExecutor(3) as pool:
        sets = list(pool.map(lambda _: opened(tmp_path / "new", download=True), range(3)))
    assert [len(data.splits["test"]) for data in sets] == [N] * 3
    assert Site.asked["GET"] == 2, "torchvision asks once for the address and once for the file"


def test_download_that_fails_leaves_nothing(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive.write_bytes(archive.read_bytes()[:-100])
    refused(tmp_path / "new", "cifar-10-python.tar.gz cannot be downloaded .*unpack it into .*new", download=True)
    monkeypatch.setattr(cifar10.Published, "url", "http://127.0.0.1:9/none.tar.gz")
    refused(tmp_path / "new", "none.tar.gz cannot be downloaded .*refused", download=True)
    assert [path.name for path in (tmp_path / "new").iterdir()] == [".download.lock"]
    refused(tmp_path / "other", "No CIFAR-10", FileNotFoundError)
    assert not (tmp_path / "other").exists(), "without download nothing is made"


# --- the drawn set


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("drawn") / "cifar10"
    CIFAR10.draw_sample(root)
    return root


def test_drawn_set_is_read_as_torchvision_reads_it(drawn: Path, published: Any) -> None:
    data = opened(drawn, val_share=0)
    same(data, drawn, published)
    assert data.survey()["counts"] == {"train": 1200, "test": 400}
    assert set(data.survey()["classes"]["train"]["class"].values()) == {120}
    assert len(data.notes) == 1, "that these are not the published files"
    for path in (drawn / FOLDER).iterdir():
        found = pickle.loads(path.read_bytes(), encoding="bytes")
        assert all(isinstance(key, bytes) for key in found), "strings of Python 2, as published"


def test_drawing_is_a_function_of_its_seed(drawn: Path, tmp_path: Path) -> None:
    before = (drawn / FOLDER / "test_batch").stat().st_mtime_ns
    CIFAR10.draw_sample(drawn, seed=5)
    assert (drawn / FOLDER / "test_batch").stat().st_mtime_ns == before, "what is there is kept"
    again = cifar10.sample.batch("data_batch_2", 0)
    found = read_pickle(drawn / FOLDER / "data_batch_2")
    assert np.array_equal(found["data"], again["data"])
    assert not np.array_equal(found["data"], cifar10.sample.batch("data_batch_2", 1)["data"])


def test_classes_can_be_learned_but_not_from_colours(drawn: Path) -> None:
    """Ridge regression on the kinds of 5 x 5 patches that an image has, and on its colours."""
    data = opened(drawn, val_share=0)
    scores = {}
    for name, features in {"shapes": patches, "colours": colours}.items():
        x, test = (features(data.splits[split].blocks[0].pixels) for split in ("train", "test"))
        y, truth = (data.splits[split].labels["class"] for split in ("train", "test"))
        x, test = (x - x.mean(0)) / (x.std(0) + 1e-6), (test - x.mean(0)) / (x.std(0) + 1e-6)
        weights = np.linalg.solve(x.T @ x + 100 * np.eye(x.shape[1]), x.T @ np.eye(10)[y])
        scores[name] = ((test @ weights).argmax(1) == truth).mean()
    assert scores["shapes"] > 0.5
    assert scores["colours"] < 0.35


def patches(pixels: np.ndarray) -> np.ndarray:
    """How often each of some random filters answers strongly to the grey image."""
    grey = torch.from_numpy(pixels.mean(3, dtype=np.float32))[:, None]
    filters = torch.randn(48, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    answers = torch.nn.functional.conv2d(grey - grey.mean((2, 3), keepdim=True), filters - filters.mean((2, 3), True))
    answers = answers / grey.std((2, 3), keepdim=True)
    return torch.cat([answers.amax((2, 3)), answers.clamp(min=4).mean((2, 3))], 1).double().numpy()


def colours(pixels: np.ndarray) -> np.ndarray:
    """How many pixels have each of 64 colours."""
    kinds = (pixels // 64).astype(int) @ [16, 4, 1]
    return np.stack([np.bincount(image.ravel(), minlength=64) for image in kinds]).astype(float)
