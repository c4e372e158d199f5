"""Frozen means: no gradient, no optimiser state, and bit-equal after the fit, buffers included."""

import copy

import lightning.pytorch as pl
import pytest
import torch

from callbacks.freeze import Freeze, fingerprint, freeze, part
from callbacks.warm_start import WarmStart
from tests.toy_fashion import Toy, technique, trainer


def snapshot(module):
    return copy.deepcopy({**dict(module.named_parameters()), **dict(module.named_buffers())})


def moved(module, before):
    now = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name for name, tensor in before.items() if not torch.equal(tensor, now[name])}


class BackToTraining(pl.Callback):
    """A rude neighbour: puts the whole technique into training mode wherever it can."""

    def on_train_epoch_start(self, trainer, pl_module):
        pl_module.train()

    def on_validation_end(self, trainer, pl_module):
        pl_module.train()


class Unlocked(Freeze):
    """A freeze that only stops gradients, as most do."""

    def on_train_batch_start(self, *args):
        pass


@pytest.mark.parametrize("rude", [False, True])
def test_frozen_trunk_is_bit_equal_after_epochs_with_validation(tmp_path, rude):
    module = technique()
    before = snapshot(module)
    callbacks = [Freeze(["encoder"])] + [BackToTraining()] * rude
    fitted = trainer(tmp_path, *callbacks, max_epochs=2, val_check_interval=0.5)
    fitted.fit(module, datamodule=Toy(train=32))
    assert moved(module.encoder, {k.removeprefix("encoder."): v for k, v in before.items() if "encoder" in k}) == set()
    assert moved(module, before) >= {f"heads.{slot}.weight" for slot in ("색조", "type_", "a_b")}
    optimized = sum(len(group["params"]) for group in fitted.optimizers[0].param_groups)
    assert optimized == len(list(module.heads.parameters()))


def test_without_the_lock_batch_normalisation_moves_and_is_caught(tmp_path):
    with pytest.raises(RuntimeError, match=r"frozen tensors changed, the first is encoder\.model\..*running_mean"):
        trainer(tmp_path, Unlocked(["encoder"]), BackToTraining()).fit(technique(), datamodule=Toy())


def test_only_a_part_of_the_trunk_can_be_frozen(tmp_path):
    module = technique()
    before = snapshot(module)
    trainer(tmp_path, Freeze(["encoder.model.layer1", "heads.type_"])).fit(module, datamodule=Toy())
    changed = moved(module, before)
    assert not any(name.startswith(("encoder.model.layer1.", "heads.type_")) for name in changed)
    assert any(name.startswith("encoder.model.layer2.") for name in changed)
    assert "encoder.model.conv1.1.running_mean" in changed


def test_frozen_features_are_the_same_in_training_and_evaluation():
    encoder = technique().encoder
    freeze(encoder)
    image = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(encoder(image[:1]), encoder(image)[:1])  # the batch's own statistics would differ
    assert not encoder(image).requires_grad


def test_fingerprint_sees_one_bit_in_any_tensor():
    module = technique()
    before = fingerprint(module)
    assert before == fingerprint(copy.deepcopy(module))
    for name in ("encoder.model.conv1.0.weight", "encoder.model.conv1.1.num_batches_tracked", "heads.type_.bias"):
        changed = copy.deepcopy(module)
        tensor = {**dict(changed.named_parameters()), **dict(changed.named_buffers())}[name].data
        first = (0,) * tensor.ndim
        up = tensor[first] + 1 if not tensor.is_floating_point() else tensor[first].nextafter(torch.tensor(9.0))
        tensor[first] = up
        assert {key for key, value in fingerprint(changed).items() if value != before[key]} == {name}
    assert len(before) == len(list(module.parameters())) + len(list(module.buffers()))


def test_unknown_part_offers_the_nearest_and_nothing_left_to_train_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"FashionMTL has no module 'encodr'; the nearest are: encoder"):
        trainer(tmp_path, Freeze(["encodr"])).fit(technique(), datamodule=Toy())
    with pytest.raises(ValueError, match=r"has no module 'zzz'; the nearest are: encoder, dropout, heads"):
        part(technique(), "zzz")
    with pytest.raises(ValueError, match=r"leaves nothing of FashionMTL to train"):
        trainer(tmp_path, Freeze(["encoder", "heads"])).fit(technique(), datamodule=Toy())


def test_nothing_is_frozen_by_an_empty_list_or_outside_a_fit(tmp_path):
    module = technique()
    trainer(tmp_path, Freeze(["encoder"])).validate(module, datamodule=Toy(), verbose=False)
    assert all(parameter.requires_grad for parameter in module.parameters())
    trainer(tmp_path, Freeze([]), max_epochs=1).fit(module, datamodule=Toy())
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_resumed_fit_must_go_on_from_what_was_frozen_at_first(tmp_path):
    fitted = trainer(tmp_path, Freeze(["encoder"]), max_epochs=1)
    fitted.fit(technique(), datamodule=Toy())
    fitted.save_checkpoint(tmp_path / "last.ckpt")
    resumed = {"datamodule": Toy(), "ckpt_path": tmp_path / "last.ckpt", "weights_only": True}
    trainer(tmp_path, Freeze(["encoder"]), max_epochs=2).fit(technique(seed=1), **resumed)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    checkpoint["state_dict"]["encoder.model.conv1.0.weight"][0] += 1
    torch.save(checkpoint, tmp_path / "last.ckpt")
    with pytest.raises(
        RuntimeError, match=r"1 of \d+ frozen tensors changed, the first is encoder.model.conv1.0.weight"
    ):
        trainer(tmp_path, Freeze(["encoder"]), max_epochs=2).fit(technique(seed=1), **resumed)


def test_warm_start_then_freeze_hands_the_weights_over_and_keeps_them(tmp_path):
    donor, module = technique(seed=1), technique(seed=2)
    torch.save({"state_dict": donor.state_dict()}, tmp_path / "donor.ckpt")
    callbacks = [WarmStart(str(tmp_path / "donor.ckpt"), ["encoder"]), Freeze(["encoder"])]
    trainer(tmp_path, *callbacks).fit(module, datamodule=Toy())
    assert fingerprint(module.encoder) == fingerprint(donor.encoder)
