"""`use.py augment`: changed copies of any photos, and a table that says what was done to each."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from PIL import Image
from torch.nn import functional as F

from engine.commands.augment import of_whole_photo
from tests.test_config import plan_of
from use import command_line

CLASSES = {"class": ["cat", "dog"]}
SMALL = ["stages.classifier.module.encoder.name=test_resnet", "stages.classifier.module.encoder.stem=default"]
THETA = [f"theta_{place}" for place in ("11", "12", "13", "21", "22", "23")]


def checkpoint(path: Path, stage: str = "gan", *overrides: str) -> Path:
    """What a finished stage leaves, its generator away from the identity and different for different photos."""
    torch.manual_seed(0)
    plan = plan_of("stn_gan", "augmenter=bounded", *SMALL, *overrides)["stages"][stage]
    plan["module"]["classes"] = CLASSES
    module = instantiate(plan["module"], _convert_="all")
    for part in module.modules():
        if hasattr(part, "apply_to"):
            torch.nn.init.normal_(part.head.weight)
            torch.nn.init.normal_(part.head.bias, std=0.5)
    content = {"state_dict": module.state_dict(), "stage": {"module": plan["module"], "data": plan["data"]}}
    torch.save(content | {"facts": {"classes": CLASSES}, "experiment": "stn_gan"}, path / f"{stage}.ckpt")
    return path / f"{stage}.ckpt"


def draw(path: Path, width: int, height: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(width).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((width, height)).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    home = tmp_path / "photos"
    for name, size in {"a.png": (64, 64), "inside/b.png": (120, 48), "inside/c.png": (40, 96)}.items():
        draw(home / name, *size)
    return home


def table(folder: Path) -> list[dict[str, str]]:
    with open(folder / "parameters.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def pixels(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None].float() / 255


def augment(*words: object) -> int:
    return command_line(["augment", *map(str, words), "--device", "cpu"])


def test_the_table_says_what_was_applied_at_any_size(tmp_path: Path, photos: Path) -> None:
    assert augment(checkpoint(tmp_path), photos, "--out", tmp_path / "new") == 0
    rows = table(tmp_path / "new")
    assert [row["image"] for row in rows] == ["a.png", "inside/b.png", "inside/c.png"]
    assert len({row["theta_11"] for row in rows}) == 3, "each photo has a change of its own"
    for row in rows:
        image = pixels(Path(row["photo"]))
        theta = torch.tensor([[float(row[key]) for key in THETA]]).view(1, 2, 3)
        grid = F.affine_grid(theta, list(image.shape), align_corners=False)
        expected = F.grid_sample(image, grid, padding_mode="border", align_corners=False)
        written = pixels(tmp_path / "new" / row["image"])
        assert written.shape == image.shape
        assert (written - expected).abs().max() < 1.01 / 255
        assert (written - image).abs().mean() > 0.01
        assert 0 < abs(float(row["rotation"])) <= 30
        assert 1 / 1.4 - 1e-3 <= float(row["scale_x"]) <= 1.4 + 1e-3


def test_a_turn_stays_a_turn_in_a_photo_that_is_no_square() -> None:
    """Seen in pixels, the map of the whole photo is the map of its square."""
    theta = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0)).double()
    place = torch.rand(4, 2, 1, generator=torch.Generator().manual_seed(1)).double() * 2 - 1
    for fit, side in (("crop", 48), ("letterbox", 120)):
        half = torch.tensor([[60.0], [24.0]]).double()  # of a photo of 120 x 48
        whole = of_whole_photo(theta, (120, 48), fit)
        reads = (whole[:, :, :2] @ (place * side / 2 / half) + whole[:, :, 2:]) * half
        torch.testing.assert_close(reads, (theta[:, :, :2] @ place + theta[:, :, 2:]) * side / 2)
    assert of_whole_photo(theta, (120, 48), "squash") is theta


def test_a_generator_in_front_of_a_classifier_is_found_too(tmp_path: Path, photos: Path) -> None:
    assert augment(checkpoint(tmp_path, "finetune"), photos, "--out", tmp_path / "new") == 0
    assert len(table(tmp_path / "new")) == 3


def test_noise_makes_many_copies_and_a_seed_the_same_ones(tmp_path: Path, photos: Path) -> None:
    run = checkpoint(tmp_path, "gan", "stages.gan.module.generator.noise=4")
    for name, seed in (("one", 1), ("again", 1), ("two", 2)):
        assert augment(run, photos, "--out", tmp_path / name, "--copies", 3, "--seed", seed) == 0
    one, again, two = (table(tmp_path / name) for name in ("one", "again", "two"))
    assert [row["image"] for row in one if "b" in row["image"]] == [f"inside/b-{n}.png" for n in (1, 2, 3)]
    assert len({row["theta_11"] for row in one}) == 9
    assert one == again
    assert not {row["theta_11"] for row in one} & {row["theta_11"] for row in two}


def test_a_broken_photo_is_named_and_the_others_are_written(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "torn.png").write_bytes((photos / "a.png").read_bytes()[:90])
    (photos / "text.jpg").write_text("no photo")
    assert augment(checkpoint(tmp_path), photos, "--out", tmp_path / "new") == 1
    printed = capsys.readouterr()
    assert "torn.png" in printed.err
    assert "text.jpg" in printed.err
    assert "copies of 3 photos" in printed.out
    assert len(table(tmp_path / "new")) == 3
    assert not (tmp_path / "new/torn.png").exists()


def test_what_cannot_be_done_is_refused_in_a_sentence(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = checkpoint(tmp_path), tmp_path / "new"
    without = checkpoint(tmp_path, "finetune", "augmenter=none")
    (tmp_path / "empty").mkdir()
    refused = {
        "is not overwritten": (run, photos, "--out", photos),
        "no noise input": (run, photos, "--out", out, "--copies", 2),
        "--copies=0 must be 1 or more": (run, photos, "--out", out, "--copies", 0),
        "is not a folder": (run, photos / "a.png", "--out", out),
        "has no generator": (without, photos, "--out", out),
        "no photo in this folder": (run, tmp_path / "empty", "--out", out),
    }
    for said, words in refused.items():
        assert augment(*words) == 1
        assert said in capsys.readouterr().err
    assert not out.exists()
    content = torch.load(run, weights_only=True)
    content["state_dict"]["generator.head.bias"][2] = float("nan")
    torch.save(content, run)
    assert augment(run, photos, "--out", out) == 1
    assert "numbers that are none" in capsys.readouterr().err
