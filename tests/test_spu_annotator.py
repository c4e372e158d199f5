"""SPUAnnotator: what each setting learns, NU and PU, its figures, its answers, and two processes against one."""

import json
from collections import Counter

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.data import DataLoader

from callbacks.freeze import Freeze
from callbacks.predictions import read
from callbacks.warm_start import WarmStart
from lightning_modules.spu_annotator import SPUAnnotator, draw
from tests.conftest import ROOT
from tests.toy_fashion import optimiser, small_resnet, trainer
from use import command_line

# Three themes of four words each: words of one theme occur together.
WORDS = [f"{theme}{number}" for theme in ("바다", "food", "[cat]") for number in range(4)]


class Flat(nn.Module):
    """A trunk whose features are the pixels, with a parameter to freeze."""

    features = 3 * 2 * 2

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(self.features))

    def forward(self, image):
        return image.flatten(1).float() / 255 * self.scale


def annotator(seed=0, **changes):
    torch.manual_seed(seed)
    settings = {"encoder": Flat(), "words": WORDS, "hidden_dim": 6, "activation": "relu", "labels": "mean"}
    settings |= {"ks": [1, 4], "seed": 3, "optimiser": optimiser(lr=0.03)} | changes
    return SPUAnnotator(**settings)


def photos(count=24, seed=0, tags_each=(1, 5), start=0):
    """Photos of a theme: its channel is bright, and its tags are some of the theme's words."""
    random = torch.Generator().manual_seed(seed)
    themes = torch.randint(0, 3, (count,), generator=random)
    image = torch.randint(0, 60, (count, 3, 2, 2), generator=random, dtype=torch.uint8)
    image[torch.arange(count), themes] += 150
    counts = torch.randint(*tags_each, (count,), generator=random)
    tags = [4 * theme + torch.randperm(4, generator=random)[:n] for theme, n in zip(themes, counts, strict=True)]
    offsets = F.pad(counts.cumsum(0), (1, 0))
    return {"image": image, "index": torch.arange(start, start + count), "tags": torch.cat(tags), "offsets": offsets}


def single(count=12, seed=1):
    """Photos with one label; the even ones' were seen in training, and the last one's word is unknown."""
    batch = photos(count, seed, tags_each=(1, 2))
    batch["tags"][-1] = -1
    return batch | {"seen": torch.arange(count) % 2 == 0}


def rows_of(batch, start, stop):
    at = batch["offsets"]
    cut = {"tags": batch["tags"][at[start] : at[stop]], "offsets": at[start : stop + 1] - at[start]}
    return {key: value[start:stop] for key, value in batch.items() if key not in cut} | cut


class Toy(pl.LightningDataModule):
    def train_dataloader(self):
        return DataLoader([photos(seed=seed, start=24 * seed) for seed in range(3)], batch_size=None)

    def val_dataloader(self):
        return DataLoader([single(12, 7), single(5, 8)], batch_size=None)

    test_dataloader = val_dataloader


def own_tags(batch, row):
    return batch["tags"][batch["offsets"][row] : batch["offsets"][row + 1]].tolist()


@pytest.mark.parametrize("labels", ["mean", "first", "random"])
@pytest.mark.parametrize("hidden_dim", [6, None])
def test_training_loss_is_the_mean_over_images_of_what_is_learned(labels, hidden_dim):
    module, batch = annotator(labels=labels, hidden_dim=hidden_dim), photos()
    batch["offsets"][-1] = batch["offsets"][-2]  # the last photo has no tags, as one that could not be read
    batch["tags"] = batch["tags"][: int(batch["offsets"][-1])]
    log_probabilities = module(module.encode(batch)).log_softmax(1)
    places = draw(3, 0, batch["index"], batch["offsets"].diff()).tolist()
    expected = []
    for row in range(23):
        own = own_tags(batch, row)
        own = {"mean": own, "first": own[:1], "random": [own[places[row]]]}[labels]
        expected.append(-log_probabilities[row, own].mean())
    outputs = module.step(batch, "train")
    assert_close(outputs["loss"], torch.stack(expected).mean())
    outputs["loss"].backward()
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())


def test_random_tags_are_a_function_of_seed_epoch_and_image_and_uniform():
    index, counts = torch.arange(30_000), torch.full((30_000,), 3)
    drawn = draw(1, 5, index, counts)
    shuffled = torch.randperm(30_000)
    assert torch.equal(draw(1, 5, index[shuffled], counts[shuffled]), drawn[shuffled])
    for other in (draw(2, 5, index, counts), draw(1, 6, index, counts), draw(0, 6, index, counts)):
        pairs = Counter(zip(drawn.tolist(), other.tolist(), strict=True))
        assert sum((n - 30_000 / 9) ** 2 / (30_000 / 9) for n in pairs.values()) < 26, "chi square, 8 degrees: p > .001"
        assert len(pairs) == 9
    assert torch.equal(draw(1, 5, index, torch.ones_like(index)), torch.zeros_like(index))


def test_a_fit_draws_anew_each_epoch_and_a_repeated_one_draws_alike(tmp_path):
    def losses(seed):
        class Losses(pl.Callback):
            seen = ()

            def on_train_batch_end(self, trainer, module, outputs, *_):
                self.seen += (outputs["loss"].item(),)

        # The learning rate is so small that only the drawn tags can change the loss from epoch to epoch.
        module, found = annotator(labels="random", seed=0, optimiser=optimiser(lr=1e-12)), Losses()
        module.seed = seed
        trainer(tmp_path, found, max_epochs=2, limit_val_batches=0).fit(module, datamodule=Toy())
        return found.seen

    first = losses(seed=3)
    assert first == losses(seed=3)
    assert first[:3] != pytest.approx(first[3:], rel=1e-3)
    assert first != losses(seed=4)


def test_evaluation_takes_all_tags_whatever_is_learned():
    batch = photos()
    found = [annotator(labels=labels).step(batch, "val")["loss"] for labels in ("mean", "first", "random")]
    assert found[0] == found[1] == found[2]


def test_results_of_an_epoch_by_hand(tmp_path):
    module, batches = annotator(), [single(12, 7), single(5, 8)]
    logged = trainer(tmp_path).test(module, datamodule=Toy(), verbose=False)[0]
    hits, losses = {"": [], "seen/": [], "unseen/": []}, []
    with torch.no_grad():
        for batch in batches:
            log_probabilities = module(module.encode(batch)).log_softmax(1)
            for row, tag in enumerate(batch["tags"].tolist()):
                order = log_probabilities[row].argsort(descending=True).tolist()
                place = order.index(tag) if tag >= 0 else 99
                losses += [-log_probabilities[row, tag].item()] if tag >= 0 else []
                for group in ("", "seen/" if batch["seen"][row] else "unseen/"):
                    hits[group].append(place)
    assert len(losses) == 15
    assert logged["test/loss"] == pytest.approx(sum(losses) / 15, abs=1e-5)
    for group, places in hits.items():
        for k in (1, 4):
            expected = sum(place < k for place in places) / len(places)
            assert logged[f"test/{group}hit@{k}"] == pytest.approx(expected)
    assert set(logged) == {"test/loss", *(f"test/{group}hit@{k}" for group in hits for k in (1, 4))}


def test_multi_tag_evaluation_has_no_groups_and_one_without_tags_no_results():
    module, batch = annotator(), photos()
    module.step(batch, "val")
    assert set(module.results("val")) == {"val/loss", "val/hit@1", "val/hit@4"}
    module.reset_metrics("val")
    empty = torch.tensor([], dtype=torch.int64)
    module.step(batch | {"tags": empty, "offsets": torch.zeros_like(batch["offsets"])}, "val")
    assert module.results("val") == {}


def test_what_callbacks_read_is_a_hit_at_1():
    module, batch = annotator(seed=1), photos()
    batch["tags"][int(batch["offsets"][5]) : int(batch["offsets"][6])] = -1
    rows = read(module.step(batch, "test"))
    right = [row["tags"].right for row in rows.values()]
    assert sum(right) / 24 == pytest.approx(module.results("test")["test/hit@1"])
    assert 0 < sum(right) < 24
    assert all(rows[i]["tags"].truth in own_tags(batch, i) for i in range(24))
    assert rows[5]["tags"].truth == -1


def test_it_learns_tags_from_photos(tmp_path):
    module = annotator()
    fitted = trainer(tmp_path, Freeze(["encoder"]), max_epochs=40)
    fitted.fit(module, datamodule=Toy())
    results = fitted.test(module, datamodule=Toy(), verbose=False)[0]
    assert results["test/hit@4"] == pytest.approx(15 / 17), "all but the two unknown words"
    nearest = {word for word, _ in module.nearest_words("food1", 3)}
    assert nearest == {"food0", "food2", "food3"}, "words that occur together lie together"


def test_partial_update_is_a_second_stage_with_w2_frozen(tmp_path):
    first = annotator(seed=1)
    trainer(tmp_path, Freeze(["encoder"])).fit(first, datamodule=Toy())
    torch.save({"state_dict": first.state_dict()}, tmp_path / "nu.ckpt")
    second = annotator(seed=2)
    callbacks = [WarmStart(str(tmp_path / "nu.ckpt"), ["encoder", "w1", "w2"]), Freeze(["encoder", "w2"])]
    fitted = trainer(tmp_path, *callbacks)
    fitted.fit(second, datamodule=Toy())
    for key, tensor in first.state_dict().items():
        assert torch.equal(second.state_dict()[key], tensor) == (not key.startswith("w1.")), key
    assert sum(len(group["params"]) for group in fitted.optimizers[0].param_groups) == 2


def test_without_a_hidden_layer_partial_update_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"freeze\.modules=\['encoder', 'w2'\] leaves nothing of SPUAnnotator to train"
    ):
        trainer(tmp_path, Freeze(["encoder", "w2"])).fit(annotator(hidden_dim=None), datamodule=Toy())


def test_features_that_were_computed_before_give_the_same(tmp_path):
    module = annotator(encoder=small_resnet()).eval()
    batch = {**photos(), "image": torch.randint(0, 256, (24, 3, 32, 32), dtype=torch.uint8)}
    cached = {**batch, "features": module.encoder(batch["image"]).detach().double()}
    del cached["image"]
    assert module.step(cached, "train")["loss"] == module.step(batch, "train")["loss"]
    assert module.answers(cached, 3) == module.answers(batch, 3)
    assert torch.equal(module.predict_step(cached, 0)["logits"]["tags"], module(module.encode(batch)))


def test_bf16_autocast_keeps_losses_and_metrics_in_float32(tmp_path):
    module = annotator()
    fitted = trainer(tmp_path, precision="bf16-mixed", max_epochs=1)
    fitted.fit(module, datamodule=Toy())
    with torch.autocast("cpu", torch.bfloat16):
        outputs = module.step(photos(), "train"), module.step(photos(), "val")
    assert outputs[0]["loss"].dtype == outputs[1]["logits"]["tags"].dtype == torch.float32
    assert fitted.callback_metrics["val/hit@1"].isfinite()


def test_answers_are_the_likeliest_tags_best_first():
    module, batch = annotator(), photos(4)
    probabilities = module(module.encode(batch)).softmax(1)
    answers = module.answers({"image": batch["image"]}, top_k=99)
    for row, answer in enumerate(answers):
        best = probabilities[row].argmax().item()
        assert answer["tags"][0] == (WORDS[best], pytest.approx(probabilities[row, best].item()))
        assert sum(probability for _, probability in answer["tags"]) == pytest.approx(1)
        assert sorted(word for word, _ in answer["tags"]) == sorted(WORDS)


def test_nearest_words_by_the_angle_between_their_weights():
    module = annotator()
    found = module.nearest_words("바다0", 99)
    weights = module.w2.weight
    expected = {word: F.cosine_similarity(weights[0], weights[row], dim=0) for row, word in enumerate(WORDS) if row}
    assert dict(found) == {word: pytest.approx(value.item(), abs=1e-6) for word, value in expected.items()}
    assert [value for _, value in found] == sorted((value for _, value in found), reverse=True)
    assert module.nearest_words("바다0", 2) == found[:2]
    with pytest.raises(ValueError, match=r"'바다' is not in the vocabulary; the nearest are: 바다"):
        module.nearest_words("바다", 2)
    with pytest.raises(ValueError, match=r"'ocean' is not in the vocabulary; it has 12 others"):
        module.nearest_words("ocean", 2)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"words": None}, r"words=\[\]: give two words or more"),
        ({"words": ["a", "b", "a"]}, "words has 'a' twice"),
        ({"hidden_dim": 0}, "hidden_dim=0 must be 1 or more, or null"),
        ({"activation": "gelu"}, "activation='gelu' is not one of: relu, tanh, identity"),
        ({"labels": "last"}, "labels='last' is not one of: mean, first, random"),
        ({"ks": []}, r"ks=\[\] must be numbers from 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        annotator(**changes)


def one_of_two(rank, folder):
    """Its half of a batch, in which it has more photos without tags than the other process."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.set_num_threads(1)
    module = annotator(labels="random")
    module.step(rows_of(gapped(), 12 * rank, 12 * rank + 12), "train")["loss"].backward()
    gradients = [parameter.grad for parameter in module.parameters()]
    for gradient in gradients:
        dist.all_reduce(gradient)
    for row in range(rank, 12, 2):
        module.step(rows_of(single(), row, row + 1), "test")
    torch.save({"gradients": [g / 2 for g in gradients], "results": module.results("test")}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def gapped():
    batch = photos()
    batch["offsets"][:6] = 0
    batch["tags"] = batch["tags"][: int(batch["offsets"][-1])]
    return batch


def test_two_processes_equal_one(tmp_path):
    mp.spawn(one_of_two, args=(str(tmp_path),), nprocs=2)
    two = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    module = annotator(labels="random")
    module.step(gapped(), "train")["loss"].backward()
    for parameter, gradient in zip(module.parameters(), two[0]["gradients"], strict=True):
        assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-6)
    module.step(single(), "test")
    one = module.results("test")
    assert two[0]["results"] == two[1]["results"]
    assert one == {
        key: pytest.approx(value, abs=1e-6 if key == "test/loss" else 0) for key, value in two[0]["results"].items()
    }


def test_the_yaml_builds_it():
    config = OmegaConf.load(ROOT / "conf/lightning_modules/spu_annotator.yaml")
    node = OmegaConf.merge(config, {"words": WORDS, "seed": 0, "encoder": {"name": "test_resnet"}})
    module = instantiate(node, _convert_="all")
    assert (module.w1.out_features, module.w2.out_features) == (1000, 12)
    assert config.encoder.name == "torchvision:alexnet"
    assert [module.optimiser.factor(step, 10, 100) for step in (0, 10, 25)] == pytest.approx([1, 0.95, 0.95**2])


def checkpoint(folder, module, node):
    content = {"state_dict": module.state_dict(), "stage": {"module": node, "data": {"_target_": "builtins.dict"}}}
    torch.save(content, folder / "run.ckpt")
    return str(folder / "run.ckpt")


def test_use_tags_shows_the_nearest_and_names_what_is_unknown(tmp_path, capsys):
    module = annotator()
    settings = {"words": WORDS, "hidden_dim": 6, "activation": "relu", "labels": "mean", "ks": [1], "seed": 0}
    settings |= {"_target_": f"{SPUAnnotator.__module__}.SPUAnnotator", "encoder": {"_target_": f"{__name__}.Flat"}}
    target = {"_target_": f"{type(module.optimiser).__module__}.Optimiser", **vars(module.optimiser)}
    path = checkpoint(tmp_path, module, settings | {"optimiser": target})
    assert command_line(["tags", path, "#[cat]1", "바다3", "--top", "2", "--json", str(tmp_path / "tags.json")]) == 0
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "tags.json").read_text(encoding="utf-8"))
    assert found["tags"]["[cat]1"] == [list(pair) for pair in module.nearest_words("[cat]1", 2)]
    assert all(word in printed for word in ("[cat]1", "바다3", found["tags"]["바다3"][0][0]))
    assert command_line(["tags", path, "food2", "foot2"]) == 1
    assert "not answered: foot2: 'foot2' is not in the vocabulary; the nearest are: food2" in capsys.readouterr().err
    assert (
        command_line(
            [
                "tags",
                checkpoint(
                    tmp_path, nn.Linear(2, 2), {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 2}
                ),
                "food2",
            ]
        )
        == 1
    )
    assert "holds a Linear, which knows no tags" in capsys.readouterr().err
