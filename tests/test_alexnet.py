"""torchvision's AlexNet as a trunk: FC7, weights from a file and from the cache, and what it says without a network."""

import time

import pytest
import torch
import torchvision

from lightning_modules.nn import alexnet, weights
from lightning_modules.nn.backbones import Encoder


@pytest.fixture(scope="module")
def donor(tmp_path_factory):
    """torchvision's own network with other weights than any new one has, and the file of its state dict."""
    torch.manual_seed(1)
    network = torchvision.models.AlexNet().eval()
    path = tmp_path_factory.mktemp("weights") / "alexnet.pth"
    torch.save(network.state_dict(), path)
    return network, path


def test_features_are_fc7_of_the_normalised_image(donor):
    network, path = donor
    encoder = Encoder(alexnet.NAME, str(path)).eval()
    image = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    with torch.no_grad():
        pooled = network.avgpool(network.features((image / 255 - mean) / std))
        expected = network.classifier[:6](pooled.flatten(1))
        assert encoder.features == 4096
        torch.testing.assert_close(encoder(image), expected, rtol=1e-4, atol=1e-5)


def test_hub_reads_torchs_cache_and_fails_at_once_without_a_network(donor, tmp_path, monkeypatch):
    network, path = donor
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(weights, "online", lambda url: False)
    start = time.perf_counter()
    with pytest.raises(ValueError, match=r"alexnet-owt-7be5be79\.pth is not in .*checkpoints.*weights=<file>"):
        Encoder(alexnet.NAME, "hub")
    assert time.perf_counter() - start < 5
    (tmp_path / "checkpoints").mkdir()
    path.rename(tmp_path / "checkpoints" / "alexnet-owt-7be5be79.pth")
    encoder = Encoder(alexnet.NAME, "hub")
    assert torch.equal(encoder.model.classifier[4].weight, network.classifier[4].weight)


@pytest.mark.parametrize("name", ["alexnet", "torchvision:resnet18"])
def test_other_names_are_told_the_right_one(name):
    with pytest.raises(ValueError, match=f"'{name}': of torchvision there is torchvision:alexnet alone"):
        Encoder(name, "none")
