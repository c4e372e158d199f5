"""Margins: what is recorded, what is judged by it, and what the tables say."""

import csv
import json
import math
from pathlib import Path
from types import MappingProxyType, SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from wandb import Table

from callbacks.judgement import HEADING, Judged, judge, merge, read_judged, suggest
from callbacks.margins import Margins, margins
from tests.toy_arrays import Toy
from tests.toy_fashion import technique
from tests.toy_fashion import trainer as toy_trainer

SETTINGS = {
    "form": "logits",
    "rule": "threshold",
    "percentile": 99,
    "most": 1.0,
    "epochs": None,
    "earlier": None,
    "pictures": 3,
}


def trainer(folder, *callbacks, **changes):
    return toy_trainer(folder, *callbacks, limit_val_batches=0, **changes)


def callback(**changes):
    return Margins(**{**SETTINGS, **changes})


class Fixed(pl.LightningModule):
    """Says of each photo what the test wants, `logits(epoch, index)`, so that each margin is known."""

    classes = MappingProxyType({"class": ["kind 0", "kind 1", "kind 2", "kind 3", "(threshold)"]})

    def __init__(self, schedule="constant"):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.optimiser = SimpleNamespace(schedule=schedule, decay_epochs=2)

    def logits(self, index):
        return torch.stack([torch.sin(index * (k + 1.0) + self.current_epoch) for k in range(5)], 1)

    def training_step(self, batch, _):
        outputs = {"logits": {"class": self.logits(batch["index"])}, "labels": batch["labels"], "index": batch["index"]}
        return {"loss": self.weight.sum(), **outputs}

    def validation_step(self, batch, _):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder, part=0, module=None, epochs=3, **changes):
    folder.mkdir(exist_ok=True)
    data = Toy(folder, labels={"threshold": part}, val_share=0)
    fitted = trainer(folder, callback(**changes), max_epochs=epochs)
    fitted.fit(module or Fixed(), datamodule=data)
    return data


def rows(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_margin_is_the_lead_over_the_best_other_class():
    random = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(50, 6, generator=random), torch.randint(-1, 6, (50,), generator=random)
    for form, scores in (("logits", logits), ("probabilities", logits.softmax(1))):
        found = margins(logits, labels, form).tolist()
        for row, label, lead in zip(scores.tolist(), labels.tolist(), found, strict=True):
            expected = -math.inf if label < 0 else row[label] - max(v for k, v in enumerate(row) if k != label)
            assert lead == pytest.approx(expected)


def test_areas_and_threshold_are_those_of_a_slow_loop(tmp_path):
    data = fit(tmp_path)
    module, labels = Fixed(), data.splits["train"].labels["class"]
    area = []
    for photo in range(40):
        leads = []
        for epoch in range(3):
            scores = [math.sin(photo * (k + 1.0) + epoch) for k in range(5)]
            leads.append(scores[labels[photo]] - max(s for k, s in enumerate(scores) if k != labels[photo]))
        area.append(sum(leads) / 3)
    fake = [photo for photo in range(40) if labels[photo] == 4]
    threshold = np.percentile([area[photo] for photo in fake], 99)
    found = rows(tmp_path / "margins.csv")
    assert len(fake) == 8
    assert {row["photo"] for row in found} == {data.name("train", p) for p in range(40) if p not in fake}
    places = {data.name("train", photo): photo for photo in range(40)}
    for row in found:
        assert float(row["aum"]) == pytest.approx(area[places[row["photo"]]], abs=1e-6)
        assert float(row["threshold"]) == pytest.approx(threshold, abs=1e-6)
        assert row["suggestion"] == ("drop" if area[places[row["photo"]]] <= threshold else "keep")
        assert row["label"] == module.classes["class"][labels[places[row["photo"]]]]
        assert len(row["margins"].split()) == 3
        assert row["guess"] != "(threshold)"
    assert found == sorted(found, key=lambda row: float(row["aum"])), "worst first"


def test_the_second_pass_judges_every_photo_and_takes_the_mean_of_both(tmp_path):
    fit(tmp_path / "first")
    first = {row["photo"]: row for row in rows(tmp_path / "first/margins.csv")}
    data = fit(tmp_path / "second", part=1, earlier=str(tmp_path / "first/margins.csv"))
    alone = fit(tmp_path / "alone", part=1)
    own = {row["photo"]: row for row in rows(tmp_path / "alone/margins.csv")}
    both = {row["photo"]: row for row in rows(tmp_path / "second/margins.csv")}
    assert set(both) == set(data.names("train")) == set(alone.names("train"))
    assert len(first) == len(own) == 32
    for photo, row in both.items():
        passes = [p[photo] for p in (first, own) if photo in p]
        for key in ("aum", "threshold"):
            assert float(row[key]) == pytest.approx(sum(float(p[key]) for p in passes) / len(passes))
        assert row["label"] != "(threshold)"
    kept = rows(tmp_path / "second/kept.csv")
    assert {row["photo"]: row["action"] for row in kept} == {p: row["suggestion"] for p, row in both.items()}


def test_only_epochs_before_the_first_drop_count_or_as_many_as_are_asked_for(tmp_path):
    for name, settings in {"drop": {"module": Fixed("step")}, "asked": {"epochs": 2}}.items():
        fit(tmp_path / name, **settings)
        assert all(len(row["margins"].split()) == 2 for row in rows(tmp_path / name / "margins.csv"))


def test_zero_judges_all_photos_in_one_pass_by_a_negative_area(tmp_path):
    data = Toy(tmp_path, val_share=0)
    trainer(tmp_path, callback(rule="zero", form="probabilities"), max_epochs=2).fit(Fixed(), datamodule=data)
    found = rows(tmp_path / "margins.csv")
    assert len(found) == 40
    assert all((row["suggestion"] == "drop") == (float(row["aum"]) < 0) for row in found)
    table, labels = torch.tensor([[0.0, -1e-9]]), torch.tensor([0, 0])
    exact = judge(table, labels, labels, ["a", "b"], None)
    assert not exact[0].suspicious, "an area of 0 is not negative"
    assert exact[1].suspicious


def test_a_photo_without_a_label_or_never_seen_is_not_judged():
    table = torch.tensor([[1.0, -torch.inf, 2.0], [3.0, -torch.inf, -torch.inf]])
    found = judge(table, torch.tensor([0, -1, 1]), torch.tensor([0, 0, 0]), ["a", "b"], None)
    assert set(found) == {0, 2}
    assert found[0].aum == 2.0
    assert found[2].margins == (2.0,)


def test_summary_by_class_and_what_was_found_again(tmp_path):
    data = Toy(tmp_path, labels={"flip": 0.2}, val_share=0)
    trainer(tmp_path, callback(rule="zero"), max_epochs=1).fit(Fixed(), datamodule=data)
    (summary,) = json.loads((tmp_path / "margins.json").read_text()).values()
    found = rows(tmp_path / "margins.csv")
    flagged = {row["photo"] for row in found if row["suggestion"] == "drop"}
    wrong = {data.name("train", photo) for photo in np.flatnonzero(data.planted["class"])}
    assert len(wrong) == 8 == summary["planted"]
    assert summary["precision"] == pytest.approx(len(flagged & wrong) / len(flagged))
    assert summary["recall"] == pytest.approx(len(flagged & wrong) / 8)
    assert sum(each["suspicious"] for each in summary["classes"].values()) == summary["suspicious"] == len(flagged)
    assert summary["judged"] == 40


def test_no_class_is_dropped_beyond_a_share_of_its_labels():
    def verdict(label, aum):
        return Judged(label, aum, 0.0, "a", ())

    areas = {"rare": [-3.0, -2.0, -1.0, -0.5], "common": [-4.0, 1.0, 2.0, 3.0]}
    verdicts = {(f"{label} {n}", "t"): verdict(label, aum) for label, row in areas.items() for n, aum in enumerate(row)}
    verdicts = merge(verdicts, {})
    assert suggest(verdicts, 0.5) == {("rare 0", "t"), ("rare 1", "t"), ("common 0", "t")}
    assert suggest(verdicts, 1.0) == {key for key, each in verdicts.items() if each.suspicious}


def test_review_shows_the_worst_with_their_pictures_and_curves(tmp_path):
    fit(tmp_path, epochs=2)
    shown = json.loads((tmp_path / "review.json").read_text())
    worst = [row for row in rows(tmp_path / "margins.csv") if row["suggestion"] == "drop"][:3]
    assert [entry["name"] for entry in shown] == [row["photo"] for row in worst]
    assert all((tmp_path / entry["image"]).is_file() for entry in shown)
    assert all(len(entry["margins"]) == 2 for entry in shown)


def test_several_tasks_and_groups_of_cached_features_are_recorded_alike(tmp_path):
    module = technique()
    data = SimpleNamespace(splits={"train": [0] * 16}, weights=None, fake_class=None)
    recorder = callback(rule="zero")
    recorder.tasks, recorder.limit = list(module.classes), 9
    stand_in = SimpleNamespace(datamodule=data, current_epoch=0)
    recorder.on_train_start(stand_in, module)
    steps = [
        {"logits": {t: torch.randn(2, len(c)) for t, c in module.classes.items()},
         "labels": {t: torch.tensor([0, 1]) for t in module.classes}, "index": torch.tensor([at, at + 1])}
        for at in (0, 2)
    ]  # fmt: skip
    recorder.on_train_batch_end(stand_in, module, {"loss": torch.zeros(()), "steps": steps}, None, 0)
    for number, task in enumerate(module.classes):
        expected = torch.cat([margins(s["logits"][task], s["labels"][task], "logits") for s in steps])
        assert torch.equal(recorder.table[0, number, :4], expected)
    assert (recorder.table[0, :, 4:] == -torch.inf).all()


@pytest.mark.parametrize(
    ("changes", "labels", "said"),
    [
        ({}, {}, "needs threshold samples: set labels.threshold"),
        ({"rule": "zero"}, {"threshold": 0}, "set labels.threshold of the data to null"),
    ],
)
def test_settings_that_cannot_go_together_are_refused(tmp_path, changes, labels, said):
    with pytest.raises(ValueError, match=said):
        trainer(tmp_path, callback(**changes)).fit(Fixed(), datamodule=Toy(tmp_path, labels=labels, val_share=0))


def test_a_balancing_sampler_is_refused():
    with pytest.raises(ValueError, match="set balance=null in this stage"):
        callback().check(SimpleNamespace(fake_class="(threshold)", weights=object()))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"form": "logit"}, "margins.form='logit' is not one of: logits, probabilities"),
        ({"rule": "one"}, "margins.rule='one' is not one of: threshold, zero"),
        ({"most": 0.0}, "margins.most=0.0 must be a share above 0"),
        ({"percentile": 0}, "margins.percentile=0 must be above 0"),
        ({"epochs": 0}, "margins.epochs=0 must be at least 1"),
    ],
)
def test_wrong_settings(changes, said):
    with pytest.raises(ValueError, match=said):
        callback(**changes)


def test_an_earlier_pass_of_other_data_is_refused(tmp_path):
    fit(tmp_path / "first")
    path = tmp_path / "first/margins.csv"
    with pytest.raises(FileNotFoundError, match="the first pass must run before"):
        fit(tmp_path / "second", part=1, earlier=str(tmp_path / "nowhere.csv"))
    with pytest.raises(ValueError, match=r"is no margins.csv: its columns are photo, task, label, guess, aum, action"):
        fit(tmp_path / "second", part=1, earlier=str(tmp_path / "first/kept.csv"))
    text = path.read_text()
    path.write_text(text.replace("train.bin/3,", "elsewhere.jpg,"))
    with pytest.raises(ValueError, match=r"'elsewhere.jpg', labelled class 'kind \d' in it, is not in train"):
        fit(tmp_path / "second", part=1, earlier=str(path))
    path.write_text(text.replace(",kind 1,", ",kind 0,"))
    with pytest.raises(ValueError, match="labelled class 'kind 0' in it, is labelled class 'kind 1' here"):
        fit(tmp_path / "second", part=1, earlier=str(path))


def test_an_earlier_verdict_on_a_label_that_is_missing_now_is_refused():
    """-1 is no class, and above all not the last one, that of threshold samples."""
    data = SimpleNamespace(
        names=lambda split: ["p"], fake_class="(threshold)",
        splits={"train": SimpleNamespace(labels={"t": torch.tensor([-1]).numpy()})},
    )  # fmt: skip
    recorder = callback(earlier="margins.csv")
    recorder.before = {("p", "t"): Judged("a", -1.0, 0.0, "b", (1.0,))}
    with pytest.raises(ValueError, match="'p', labelled t 'a' in it, is not in train with such a label"):
        recorder.compare(data, {"t": ["a", "b", "(threshold)"]})


@pytest.mark.parametrize("row", ["p,t,a,-1.0,0.0", "p,t,a,low,0.0,b,drop,1 2", "p,t,a,-1.0,0.0,b,drop,1 ?"])
def test_a_row_that_is_cut_off_or_changed_is_named(tmp_path, row):
    path = tmp_path / "margins.csv"
    path.write_text(",".join(HEADING) + f"\np,u,a,-1.0,0.0,b,drop,1 2\n{row}\n")
    with pytest.raises(ValueError, match=r"margins.csv row 3 has no numbers .* a person's changes belong in kept.csv"):
        read_judged(path)


def test_what_both_passes_judged_has_the_mean_of_both_and_the_later_guess():
    first, second = Judged("a", -1.0, 0.0, "b", (1.0,)), Judged("a", 3.0, 1.0, "c", (2.0,))
    assert merge({("p", "t"): second}, {("p", "t"): first}) == {("p", "t"): Judged("a", 1.0, 0.5, "c", (2.0,))}


def test_a_label_at_the_threshold_is_suspicious():
    assert Judged("a", 0.5, 0.5, "b", ()).suspicious
    assert not Judged("a", 0.6, 0.5, "b", ()).suspicious


def test_tables_are_read_back_as_they_were_written(tmp_path):
    fit(tmp_path)
    found = read_judged(tmp_path / "margins.csv")
    assert merge(found, {}) == found
    one = Judged("a", -1.0, 0.0, "b", (1.0,))
    assert merge({("p", "t"): one}, {("q", "t"): one}) == {("p", "t"): one, ("q", "t"): one}


@pytest.mark.parametrize("world", [1, 2, 4])
def test_recording_is_exact_for_any_number_of_processes(tmp_path, world):
    """Each process writes what it saw; put together it is, to the last bit, what one process writes."""
    data = fit(tmp_path / "one")
    merged = torch.full((1, 40), -torch.inf)
    for rank in range(world):
        recorder = callback()
        recorder.tasks, recorder.limit = ["class"], 9
        stand_in = SimpleNamespace(datamodule=data, current_epoch=0)
        module = Fixed()
        recorder.on_train_start(stand_in, module)
        index = torch.arange(40)[rank::world]
        labels = torch.from_numpy(data.splits["train"].labels["class"])[index]
        outputs = {"logits": {"class": module.logits(index)}, "labels": {"class": labels}, "index": index}
        recorder.on_train_batch_end(stand_in, module, outputs, None, 0)
        merged = torch.maximum(merged, recorder.state_dict()["table"][0])
    labels = torch.from_numpy(data.splits["train"].labels["class"])
    assert torch.equal(merged[0], margins(Fixed().logits(torch.arange(40)), labels, "logits"))


def test_the_table_for_weights_and_biases(tmp_path, monkeypatch):
    from lightning.pytorch.loggers import WandbLogger

    from callbacks import review

    logged = {}

    class Stub(WandbLogger):
        def __init__(self):
            pass

        @property
        def experiment(self):
            return SimpleNamespace(log=logged.update)

    fit(tmp_path, epochs=1)
    shown = json.loads((tmp_path / "review.json").read_text())
    review.log_table(SimpleNamespace(loggers=[Stub()], default_root_dir=tmp_path), shown)
    table = logged["train/suspicious"]
    assert isinstance(table, Table)
    assert [row[1] for row in table.data] == [entry["name"] for entry in shown]
    assert Path(shown[0]["image"]).name == "0001.png"
