"""Cached features: the same result as running the frozen trunk again, found again when valid, refused when not."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from datamodules.fascode import FASCODE
from datamodules.features import CHUNK, FeatureData, FeatureLoader, FeatureStore
from datamodules.samplers import TrainSampler
from engine.features import fingerprint, obstacle
from engine.record import read_rows
from lightning_modules.nn.backbones import Encoder
from tests.conftest import TINY, only_run

FROZEN = ["experiment=fashion_frozen", *TINY[1:], "stages.fit.data.augment=null", "trainer.limit_train_batches=1.0"]
Cli = Callable[..., tuple[int, str]]


def curve(run: Path, key: str) -> list[float]:
    return [row[key] for row in read_rows(run / "fit/metrics.jsonl") if key in row]


def test_cached_equals_uncached_and_is_found_again(cli: Cli, tmp_path: Path) -> None:
    runs = {}
    for name, setting in {"cached": "auto", "anew": "off", "again": "on"}.items():
        code, printed = cli(*FROZEN, f"stages.fit.features={setting}", f"out_dir={tmp_path / name}")
        assert code == 0, printed
        assert ("computed once" in printed) is (name == "cached")
        runs[name] = only_run(tmp_path / name, "fashion_frozen")
    for key in ("val/loss", "val/top1", "test/top1"):
        assert curve(runs["cached"], key) == pytest.approx(curve(runs["anew"], key), rel=1e-5)
        assert curve(runs["again"], key) == curve(runs["cached"], key)
    assert len(curve(runs["cached"], "train/loss")) < len(curve(runs["anew"], "train/loss")), "grouped steps"
    metrics = [json.loads((run / "fit.json").read_text())["metrics"] for run in (runs["cached"], runs["anew"])]
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-5)


def test_a_trunk_frozen_in_part_is_run_once_up_to_there(cli: Cli, tmp_path: Path) -> None:
    frozen = "stages.fit.callbacks.freeze.modules=[encoder.model.conv1,encoder.model.bn1,encoder.model.layer1]"
    # Adam would turn rounding errors of near-zero gradients into whole steps.
    parts = [
        frozen,
        "trainer.precision=32-true",
        "stages.fit.module.optimiser.name=sgd",
        "stages.fit.module.optimiser.lr=0.01",
    ]
    runs = {}
    for setting in ("on", "off"):
        code, printed = cli(*FROZEN, *parts, f"stages.fit.features={setting}", f"out_dir={tmp_path / setting}")
        assert code == 0, printed
        runs[setting] = only_run(tmp_path / setting, "fashion_frozen")
    for key in ("val/loss", "test/loss"):
        assert curve(runs["on"], key) == pytest.approx(curve(runs["off"], key), rel=1e-4)
    weights = [torch.load(run / "fit.ckpt", weights_only=True)["state_dict"] for run in runs.values()]
    moved = [key for key in weights[0] if key.startswith("encoder.model.layer2") and key.endswith("weight")]
    for key in moved:
        torch.testing.assert_close(weights[0][key], weights[1][key], rtol=1e-3, atol=1e-4)


def test_two_processes_share_the_extraction(cli: Cli, tmp_path: Path, data_dir: Path) -> None:
    weights = []
    for devices in (2, 1):
        # Another margin, so that neither finds the other tests' features.
        where = [f"trainer.devices={devices}", f"out_dir={tmp_path / str(devices)}", "stages.fit.data.margin=0.11"]
        code, printed = cli(*FROZEN, *where)
        assert code == 0, printed
        assert ("computed once" in printed) is (devices == 2), "one process finds what two have computed"
        run = only_run(tmp_path / str(devices), "fashion_frozen")
        weights.append(torch.load(run / "fit.ckpt", weights_only=True)["state_dict"])
    for key, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("stages.fit.callbacks.freeze.modules=[encoder.model.layer1]", "not from its first layer on"),
        ("stages.fit.data.augment={rotate: 10}", "the training transform is random"),
        ("features_gb=1e-9", "more than features_gb"),
    ],
)
def test_features_on_is_refused_with_the_reason(override: str, said: str, cli: Cli) -> None:
    code, printed = cli(*FROZEN, "stages.fit.features=on", override)
    assert code == 1
    assert said in printed


def test_what_augments_in_the_module_needs_the_pixels_of_each_epoch() -> None:
    stage = {"callbacks": {"freeze": {"_target_": "callbacks.freeze.Freeze", "modules": ["encoder"]}}}
    split = SimpleNamespace(is_random=False, pictures=lambda: range(10))
    data = SimpleNamespace(splits={"train": split})
    module = SimpleNamespace(encoder=SimpleNamespace(features=4), augment=None)
    assert obstacle(stage | {"features_gb": 1.0}, module, data) is None
    module.augment = object()
    assert "module.augment" in str(obstacle(stage | {"features_gb": 1.0}, module, data))


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path, {"weights": "a"}, {"train": 2 * CHUNK + 5}, 3, "float32")


def fill(store: FeatureStore, chunks: Iterator[Any]) -> None:
    for index in chunks:
        store.write("train", index, np.repeat(index[:, None], 3, 1).astype(np.float32))


def test_a_killed_extraction_goes_on_where_it_was(store: FeatureStore) -> None:
    store.begin()
    first, *rest = store.missing("train")
    fill(store, iter([first]))
    again = FeatureStore(store.folder.parent, store.key, store.lengths, 3, "float32")
    assert not again.complete
    again.begin()
    assert [chunk[0] for chunk in again.missing("train")] == [chunk[0] for chunk in rest]
    fill(again, iter(again.missing("train")))
    again.finish()
    assert again.complete
    assert np.array_equal(again.rows("train")[:, 0], np.arange(2 * CHUNK + 5))


def test_ranks_share_the_chunks(store: FeatureStore) -> None:
    store.begin()
    parts = [chunk.tolist() for rank in (0, 1) for chunk in store.missing("train", rank, 2)]
    assert sorted(row for part in parts for row in part) == list(range(2 * CHUNK + 5))


def test_a_half_written_file_is_begun_anew(store: FeatureStore) -> None:
    store.begin()
    (store.part / "train.npy").write_bytes(b"\x93NUMPY\x01\x00v")
    store.begin()
    assert len(store.missing("train")) == 3


def test_other_weights_or_files_are_another_store(tmp_path: Path) -> None:
    def named(**key: str) -> Path:
        return FeatureStore(tmp_path, key, {"train": 1}, 3, "float32").folder

    assert named(weights="a", files="x") != named(weights="b", files="x")
    assert named(weights="a", files="x") != named(weights="a", files="y")


def test_a_damaged_store_is_named(store: FeatureStore) -> None:
    store.begin()
    fill(store, iter(store.missing("train")))
    store.finish()
    with open(store.folder / "train.npy", "r+b") as file:
        file.truncate(100)
    with pytest.raises(ValueError, match="delete"):
        store.rows("train")


def test_numbers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, {}, {"train": 1}, 2, "float16")
    store.begin()
    with pytest.raises(ValueError, match="float16"):
        store.write("train", np.array([0]), np.array([[1e9, 0.0]], dtype=np.float32))


def test_groups_hold_the_minibatches_of_the_plain_order_and_resume(data_dir: Path) -> None:
    FASCODE.draw_sample(data_dir / "samples/fascode")
    data = make_data(data_dir / "samples/fascode")
    photos = data.splits["train"]
    rows = np.arange(len(photos), dtype=np.float32)[:, None]

    def loader(group: int) -> FeatureLoader:
        sampler = TrainSampler(len(photos), 32, 0)
        sampler.set_epoch(3)
        return FeatureLoader(rows, photos, sampler, 32, group, drop_last=True)

    plain = [batch["index"].tolist() for batch in loader(0)]
    grouped = loader(4)
    groups = [[batch["index"].tolist() for batch in each["group"]] for each in grouped]
    assert [batch for group in groups for batch in group] == plain
    assert len(grouped) == len(groups)
    assert all((batch["features"][:, 0] == batch["index"]).all() for batch in loader(0))
    begun = loader(4)
    iterator = iter(begun)
    next(iterator), next(iterator)
    later = loader(4)
    later.load_state_dict(begun.state_dict())
    rest = [[batch["index"].tolist() for batch in each["group"]] for each in later]
    assert rest == groups[2:]


def make_data(root: Path) -> FASCODE:
    from engine.suggest import composed

    node = composed(["experiment=fashion_mtl", "sample=true"]).stages.fit.data
    arguments = {
        key: value for key, value in node.items() if key not in ("_target_", "root", "seed", "on_leak", "on_bad_image")
    }
    arguments["classes"], arguments["augment"] = dict(node.classes), None
    data = FASCODE(root=root, seed=0, on_leak="error", on_bad_image="error", **arguments)
    data.setup("fit")
    return data


def test_the_wrapper_is_the_data_but_for_its_batches(data_dir: Path) -> None:
    FASCODE.draw_sample(data_dir / "samples/fascode")
    data = make_data(data_dir / "samples/fascode")
    wrapped = FeatureData(data, (8,), 0)
    assert wrapped.facts == data.facts
    assert wrapped.name("test", 3) == data.name("test", 3)
    assert len(wrapped.files()["train"]) == len(data.splits["train"])


def test_the_fingerprint_sees_weights_and_buffers() -> None:
    torch.manual_seed(0)
    encoder = Encoder("resnet10t", "none")
    before = fingerprint(encoder)
    assert fingerprint(encoder) == before
    encoder.model.layer4[0].bn1.running_mean += 1
    assert fingerprint(encoder) != before


def test_a_split_trunks_fingerprint_is_that_of_its_frozen_links() -> None:
    torch.manual_seed(0)
    encoder = Encoder("resnet10t", "none")
    encoder.split_after(["model.conv1", "model.bn1", "model.layer1"], 32)
    before = fingerprint(encoder)
    encoder.model.layer4[0].bn1.running_mean += 1
    assert fingerprint(encoder) == before
    encoder.model.layer1[0].bn1.running_mean += 1
    assert fingerprint(encoder) != before
