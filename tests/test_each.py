"""Stages that the data make: one for each brand, chosen by name, side by side, resumed, and joined by a later stage."""

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest
import torch

from engine.compose import Plan, make_plan
from engine.each import expand, item_seed, look_up, slug
from engine.joins import Joined
from engine.lanes import run_side_by_side
from engine.launch import RankFailed
from engine.members import members, outside, refuse_gaps
from engine.preflight import preflight
from engine.runs import changes, stage_key
from engine.session import settle
from engine.suggest import composed
from tests.conftest import only_run
from tests.test_resume import until
from tests.test_shoes import draw, picture

Cli = Callable[..., tuple[int, str]]
BRANDS = {"Nike": 2, "Inc 5": 2, "눈치": 3}
TINY = [
    "experiment=brand_experts", "logger=none", "trainer.accelerator=cpu", "trainer.precision=32-true",
    "trainer.max_epochs=2", "stages.expert.module.encoder.name=test_resnet", "stages.expert.data.image_size=32",
    "stages.expert.data.batch_size=4", "stages.joined.data.batch_size=4", "stages.joined.data.threads=1",
]  # fmt: skip


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """Photos of three brands, one of them with a space in its name and one in another script."""
    draw(tmp_path / "data/shoes", BRANDS)
    return tmp_path / "data"


def planned(data_dir: Path, *overrides: str) -> Plan:
    every = [*TINY, f"data_dir={data_dir}", *overrides]
    plan = make_plan(composed(every), every, "brand_experts", data_dir / "OUT")
    settle(plan)
    expand(plan, look_up(plan))
    return plan


def test_a_stage_for_every_brand_with_its_photos_and_a_seed_of_its_own(data_dir: Path) -> None:
    plan = planned(data_dir)
    assert list(plan["stages"]) == ["expert/inc-5", "expert/nike", "expert/눈치", "joined"]
    stages = plan["stages"]
    assert [stages[f"expert/{name}"]["data"]["brand"] for name in ("inc-5", "nike", "눈치")] == [
        "Inc 5",
        "Nike",
        "눈치",
    ]
    seeds = {item_seed(seed, stage) for seed in (0, 1) for stage in stages.values()}
    assert len(seeds) == 2 * 3 + 2
    assert item_seed(7, stages["joined"]) == 7
    for product in range(2):
        picture(data_dir / f"shoes/Adidas/{product}/0.jpg", 800 + product)
    later = planned(data_dir)
    assert item_seed(0, later["stages"]["expert/nike"]) == item_seed(0, stages["expert/nike"])
    out = data_dir / "OUT"
    keys = [stage_key(each["stages"]["expert/nike"], "expert/nike", 0, out) for each in (plan, later)]
    assert keys[0] == keys[1], "a brand that is added changes no other's stage"


@pytest.mark.parametrize(
    ("only", "chosen"),
    [
        ("only=nike", ["expert/nike"]),
        ("only=Nike", ["expert/nike"]),
        ('only="Inc 5"', ["expert/inc-5"]),
        ("only=['눈치',joined]", ["expert/눈치", "joined"]),
        ("only=expert", ["expert/inc-5", "expert/nike", "expert/눈치"]),
        ("only=expert/nike", ["expert/nike"]),
    ],
)
def test_only_names_a_brand_as_people_do(only: str, chosen: list[str], data_dir: Path) -> None:
    assert planned(data_dir, only)["only"] == chosen


def test_wrong_names_are_refused_with_the_right_ones(data_dir: Path) -> None:
    with pytest.raises(ValueError, match=r"only=\[expert/nikee\]: there is no such stage; did you mean 'expert/nike'"):
        planned(data_dir, "only=expert/nikee")
    with pytest.raises(ValueError, match=r"each=brnd: .+ has no such argument; did you mean 'brand'"):
        planned(data_dir, "stages.expert.each=brnd")
    with pytest.raises(ValueError, match=r"each=augment: the data have stages by brand and by mapping.index"):
        planned(data_dir, "stages.expert.each=augment")
    picture(data_dir / "shoes/inc_5/0/0.jpg", 700)
    with pytest.raises(ValueError, match=r"brand 'inc_5' and 'Inc 5' would share the folder expert/inc-5: rename one"):
        planned(data_dir)


def test_a_check_looks_at_a_stage_that_joins_what_is_not_there_yet(
    data_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    assert preflight(planned(data_dir)) == 0
    printed = capsys.readouterr().out
    assert "joined: module" in printed
    assert "not built" in printed
    assert preflight(planned(data_dir, "stages.expert.module.encoder.weights=nowhere.pth")) == 1
    assert "weights=nowhere.pth: there is no such file" in capsys.readouterr().out


def test_a_name_for_a_folder_in_any_script() -> None:
    names = ["Nike", "Inc 5", "A/B", "눈치 신발", "Étoile d'Or", "..hidden", 3]
    assert [slug(name) for name in names] == ["nike", "inc-5", "a-b", "눈치-신발", "étoile-d-or", "hidden", "3"]
    with pytest.raises(ValueError, match="no letter or digit"):
        slug("!!!")


def test_devices_are_lanes_for_experts_and_ranks_for_other_stages(data_dir: Path) -> None:
    stages = planned(data_dir, "trainer.devices=2")["stages"]
    assert stages["expert/nike"]["lanes"] == [0, 1]
    assert stages["expert/nike"]["trainer"]["devices"] == 1
    assert stages["joined"]["trainer"]["devices"] == 2
    one = planned(data_dir)
    assert all(safe for _, _, _, safe in changes(one, planned(data_dir, "trainer.devices=2")))
    with pytest.raises(ValueError, match=r"stages.expert makes a stage for each brand, which nodes share as jobs"):
        planned(data_dir, "trainer.num_nodes=2")


def test_experts_side_by_side_a_brand_added_later_and_one_that_is_missing(
    cli: Cli, data_dir: Path, tmp_path: Path
) -> None:
    code, printed = cli(*TINY, "+stages.expert.trainer.devices=2")
    assert code == 0, printed
    run = only_run(tmp_path, "brand_experts")
    assert {path.stem for path in (run / "expert").glob("*.ckpt")} == {"inc-5", "nike", "눈치"}
    metrics = json.loads((run / "joined.json").read_text(encoding="utf-8"))["metrics"]
    assert {"test/top1", "test/raw/top1", "test/other/ece", "test/scaled/known_brand"} <= metrics.keys()
    before = {path: path.stat().st_mtime_ns for path in (run / "expert").glob("*.json")}
    for product in range(2):
        for photo in range(5):
            picture(data_dir / f"shoes/Adidas/{product}/{photo}.jpg", 900 + 10 * product + photo)
    code, printed = cli(*TINY, "resume=latest", "only=joined")
    assert code == 1, "not skipped as if nothing had changed"
    assert f"joins.experts: the data have Adidas, of which {run}/expert has no expert: train what is miss" in printed
    assert "(only=[adidas]), or leave only= out" in printed
    joined = (run / "joined.json").read_text(encoding="utf-8")
    code, printed = cli(*TINY, "resume=latest")
    assert code == 0, printed
    assert printed.count("finished before, skipped") == 3, "those that were there stay as they are"
    assert printed.count("made anew") == 1
    assert (run / "joined.json").read_text(encoding="utf-8") != joined
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    state = torch.load(run / "joined.ckpt", weights_only=True)
    assert len(state["state_dict"]["calibration.offset"]) == 4, "and all four answer together"
    assert "never saw Adidas as strangers" in (run / "run.log").read_text(encoding="utf-8")
    for end in ("ckpt", "json"):
        (run / f"expert/nike.{end}").unlink()
    code, printed = cli(*TINY, "resume=latest", "only=joined")
    assert code == 1
    assert "the data have Nike, of which" in printed


def test_members_of_another_run_are_all_there_and_count_when_made_anew(tmp_path: Path) -> None:
    for job, name in enumerate(["inc-5", "nike"]):
        checkpoint(tmp_path / f"{job}/expert/{name}.ckpt", 1.0)
    out = tmp_path / "OUT"
    stages: dict[str, Any] = {f"expert/{slug(item)}": {"item": item, "joins": {}} for item in ("Inc 5", "Nike")}
    stages["joined"] = {"joins": {"experts": f"{tmp_path}/*/expert", "router": None}, "each": None}
    refuse_gaps("joined", stages)

    def key() -> str:
        return stage_key(stages["joined"], "joined", 0, out, outside(stages["joined"]["joins"], out))

    before = key()
    assert key() == before
    (tmp_path / "1/expert/nike.json").write_text('{"metrics": {}}')
    assert key() != before
    for item in ("눈치", "A/B", "C", "D"):
        stages[f"expert/{slug(item)}"] = {"item": item, "joins": {}}
    with pytest.raises(ValueError, match=r"have 눈치, A/B, C and 1 more, of .* \(only=\[눈치,a-b,c,...\]\), or leave"):
        refuse_gaps("joined", stages)
    with pytest.raises(ValueError, match="no stage has finished in"):
        refuse_gaps("joined", {"joined": {"joins": {"experts": str(tmp_path / "nowhere")}}})


def spec(out: Path, name: str, **trainer: Any) -> dict[str, Any]:
    """A spec that a lane can read; what it names cannot be built."""
    stage = {"data": {"_target_": "tests.toys.Nowhere"}, "trainer": {"accelerator": "cpu"} | trainer, "joins": {}}
    return {"do": "fit", "name": name, "out": str(out), "stage": stage, "seed": 0}


def test_a_failing_stage_is_named_and_no_other_is_begun(tmp_path: Path) -> None:
    with pytest.raises(RankFailed, match=r"^expert/a: .*Nowhere"):
        run_side_by_side([spec(tmp_path, f"expert/{name}") for name in "abc"], [0])
    assert (tmp_path / "expert/a/run.log").is_file()
    assert not (tmp_path / "expert/b").exists()


def test_a_signal_ends_all_lanes(start: Callable[..., Popen[str]], data_dir: Path, tmp_path: Path) -> None:
    sign = tmp_path / "sign"
    slow = f"+stages.expert.callbacks.slow={{_target_: tests.toys.Slow, seconds: 0.2, sign: {sign}}}"
    process = start(*TINY, slow, "+stages.expert.trainer.devices=2", "trainer.max_epochs=100")
    until(lambda: Path(f"{sign}.0").exists() or process.poll() is not None, 280)
    children = ["ps", "--ppid", str(process.pid), "-o", "pid="]
    lanes = subprocess.run(children, capture_output=True, text=True, check=False).stdout.split()
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 143, printed
    assert lanes
    assert not [pid for pid in lanes if Path(f"/proc/{pid}").exists()], "no lane outlives the run"
    assert list(only_run(tmp_path, "brand_experts").glob("expert/*/last.ckpt")), "a graceful stop leaves a checkpoint"


def checkpoint(path: Path, trunk: float, done: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {"encoder.w": torch.full((2,), trunk), "head.weight": torch.ones(1, 2), "head.bias": torch.zeros(1)}
    stage = {"module": {"encoder": {"_target_": "x", "weights": "hub"}}, "data": {"image_size": 32}}
    torch.save({"state_dict": state, "stage": stage, "facts": {"brand": path.stem}}, path)
    if done:
        path.with_suffix(".json").write_text("{}")
    return path


def test_what_is_joined_is_found_and_equal_trunks_are_one(tmp_path: Path) -> None:
    for job, (name, trunk) in enumerate([("a", 1.0), ("b", 2.0), ("c", 1.0)]):
        checkpoint(tmp_path / f"{job}/expert/{name}.ckpt", trunk)
    checkpoint(tmp_path / "0/expert/a/last.ckpt", 1.0, done=False)
    checkpoint(tmp_path / "0/expert/unfinished.ckpt", 1.0, done=False)
    found = Joined({"experts": f"{tmp_path}/*/expert", "router": str(tmp_path / "1/expert/b.ckpt")})
    assert [member["name"] for member in found.facts["experts"]] == ["a", "b", "c"]
    assert [member["trunk"] for member in found.facts["experts"] + found.facts["router"]] == [0, 1, 0, 1]
    assert found.facts["trunks"][0] == {"encoder": {"_target_": "x", "weights": "none"}, "side": 32}
    assert found.states["trunks"][1]["w"].tolist() == [2.0, 2.0]
    assert list(found.states["experts"][0]) == ["head.weight", "head.bias"]
    with pytest.raises(ValueError, match=r"no stage has finished in .*nowhere: run those that are to be joined first"):
        members(str(tmp_path / "nowhere"))
