"""The encoder: names, normalisation, weights from files, stems; and what it says when something does not fit."""

import copy
import time

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch
from torch.testing import assert_close

from lightning_modules.nn import weights
from lightning_modules.nn.backbones import Encoder


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "mobilenetv3_small_050", "resnet10t"])
def test_any_timm_network_gives_features_of_the_stated_length(name):
    encoder = Encoder(name, "none").eval()
    size = encoder.model.pretrained_cfg["input_size"][1] if "vit" in name else 64
    assert encoder(torch.zeros(2, 3, size, size, dtype=torch.uint8)).shape == (2, encoder.features)


def test_pixels_are_normalised_once_whether_bytes_or_floats():
    encoder = Encoder("test_resnet", "none", mean=[0.5, 0.4, 0.3], std=[0.1, 0.2, 0.3])
    image = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    mean, std = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1), torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
    expected = (image / 255 - mean) / std
    assert_close(encoder.normalise(image), expected, rtol=1e-5, atol=1e-5)
    assert_close(encoder.normalise(image / 255), expected, rtol=1e-5, atol=1e-5)
    assert encoder.normalise(image).is_contiguous(memory_format=torch.channels_last)


def test_gradients_flow_to_float_images():
    image = torch.rand(2, 3, 32, 32, requires_grad=True)
    Encoder("test_resnet", "none")(image).sum().backward()
    assert image.grad.abs().sum() > 0


def test_random_weights_take_imagenet_statistics_and_a_file_its_own(tmp_path):
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "vit.pth")
    assert_close(Encoder("test_vit", "none").mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))
    own = timm.get_pretrained_cfg("test_vit").mean
    assert own == (0.5, 0.5, 0.5)
    assert_close(Encoder("test_vit", str(tmp_path / "vit.pth")).mean.flatten(), torch.tensor(own))


def test_statistics_travel_with_the_checkpoint():
    trained = Encoder("test_resnet", "none", mean=[0.1, 0.2, 0.3], std=[1.0, 2.0, 3.0])
    rebuilt = Encoder("test_resnet", "none")
    rebuilt.load_state_dict(trained.state_dict())
    image = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(rebuilt.eval()(image), trained.eval()(image))


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
@pytest.mark.parametrize("classes", [0, 7, 1000])
def test_files_load_strictly_whatever_head_they_have(tmp_path, suffix, classes):
    model = timm.create_model("test_resnet", num_classes=classes)
    path = tmp_path / f"weights{suffix}"
    save = safetensors.torch.save_file if suffix == ".safetensors" else torch.save
    save(model.state_dict(), path)
    assert torch.equal(Encoder("test_resnet", str(path)).model.conv1[0].weight, model.conv1[0].weight)


def test_wrapped_state_dict_loads(tmp_path):
    model = timm.create_model("test_resnet")
    wrapped = {"state_dict": {f"module.{key}": value for key, value in model.state_dict().items()}, "epoch": 3}
    torch.save(wrapped, tmp_path / "wrapped.pth")
    assert torch.equal(
        Encoder("test_resnet", str(tmp_path / "wrapped.pth")).model.conv1[0].weight, model.conv1[0].weight
    )


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth: there is no such file.*weights=hub"):
        Encoder("resnet18", str(tmp_path / "nowhere.pth"))


def test_file_that_is_no_checkpoint_is_refused(tmp_path):
    path = tmp_path / "page.pth"
    path.write_text("<html>404</html>")
    with pytest.raises(ValueError, match=r"page\.pth cannot be read as weights"):
        Encoder("resnet18", str(path))
    torch.save({"epoch": 3, "note": "no tensors"}, path)
    with pytest.raises(ValueError, match="holds no state dict"):
        Encoder("resnet18", str(path))


def test_weights_of_another_network_are_recognised(tmp_path):
    path = tmp_path / "unknown.pth"
    torch.save(timm.create_model("resnet18").state_dict(), path)
    with pytest.raises(ValueError, match=r"do not fit resnet34: \d+ of its 216 tensors .* look like resnet18"):
        Encoder("resnet34", str(path))
    torch.save({f"encoder.model.{k}": v for k, v in timm.create_model("resnet18").state_dict().items()}, path)
    with pytest.raises(ValueError, match=r"0 of its 120 tensors .* hand it over with the warm_start callback"):
        Encoder("resnet18", str(path))
    torch.save({"body.weight": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match=r"no familiar timm model has such tensors.* is body\.weight"):
        Encoder("resnet18", str(path))


def test_incomplete_or_extra_tensors_are_refused(tmp_path):
    tensors = timm.create_model("test_resnet").state_dict()
    torch.save({key: value for key, value in tensors.items() if "bn1.running_mean" not in key}, tmp_path / "less.pth")
    torch.save(tensors | {"extra.weight": torch.zeros(1)}, tmp_path / "more.pth")
    for name, odd in (("less.pth", "bn1.running_mean"), ("more.pth", "extra.weight")):
        with pytest.raises(ValueError, match=f"do not fit test_resnet.*{odd}"):
            Encoder("test_resnet", str(tmp_path / name))


def test_unknown_names_offer_the_nearest():
    with pytest.raises(ValueError, match=r"'resnet81'.*resnet18"):
        Encoder("resnet81", "none")
    with pytest.raises(ValueError, match=r"no weights 'a9_in1k'; it has .*a1_in1k"):
        Encoder("resnet18.a9_in1k", "none")
    with pytest.raises(ValueError, match=r"options=\{'img_size': 64\}: resnet18 does not take them"):
        Encoder("resnet18", "none", options={"img_size": 64})
    with pytest.raises(ValueError, match=r"mean=\[0\.5\] must have three values"):
        Encoder("test_resnet", "none", mean=[0.5])


def test_options_reach_timm():
    assert Encoder("test_vit", "none", options={"img_size": 64}).eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 64)


def test_hub_without_network_fails_at_once_and_tells_the_way_on(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    start = time.perf_counter()
    with pytest.raises(ValueError, match=r"weights of test_resnet are not in the cache .* weights=<file>"):
        Encoder("test_resnet", "hub")
    assert time.perf_counter() - start < 5
    with pytest.raises(ValueError, match="is no model of timm"):
        Encoder("test_mambaout_x", "hub")


def test_hub_reads_the_cache_without_a_network(tmp_path, monkeypatch):
    model = timm.create_model("test_resnet")
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(model.state_dict(), path)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args, **kwargs: str(path))
    monkeypatch.setattr(weights, "online", lambda: pytest.fail("the network was asked"))
    assert torch.equal(Encoder("test_resnet", "hub").model.conv1[0].weight, model.conv1[0].weight)


def test_small_stem_keeps_the_resolution_that_the_default_one_halves_twice():
    default, small = Encoder("resnet18", "none").eval(), Encoder("resnet18", "none", stem="small").eval()
    image = torch.zeros(1, 3, 32, 32)
    assert default.model.forward_features(image).shape[-1] == 1
    assert small.model.forward_features(image).shape[-1] == 4
    with pytest.raises(ValueError, match=r"stem=small is for ResNets .*; test_vit is none"):
        Encoder("test_vit", "none", stem="small")
    with pytest.raises(ValueError, match="no published weights fit"):
        Encoder("resnet18", "hub", stem="small")
    with pytest.raises(ValueError, match="'tiny' is not one of: default, small"):
        Encoder("resnet18", "none", stem="tiny")


def test_twins_share_weights_only_if_they_were_pretrained(tmp_path):
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "weights.pth")
    pretrained = Encoder("test_resnet", str(tmp_path / "weights.pth"))
    random = Encoder("test_resnet", "none")
    assert torch.equal(pretrained.twin().model.conv1[0].weight, pretrained.model.conv1[0].weight)
    assert not torch.equal(random.twin().model.conv1[0].weight, random.model.conv1[0].weight)
    twin, before = pretrained.twin(), copy.deepcopy(pretrained.state_dict())
    twin.model.conv1[0].weight.data.zero_()
    assert torch.equal(pretrained.model.conv1[0].weight, before["model.conv1.0.weight"])
