"""The fast module gives the logits of the plain one, up to rounding."""

import threading
from dataclasses import replace

import pandas as pd
import pytest
import timm
import torch
from nets import cifar_photographs, cifar_resnet18, rows_of
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from alignment_security.attacks.attacked_model import AttackedModel
from alignment_security.attacks.autoattack import Budget, run_autoattack
from alignment_security.evaluation import AutoAttack, evaluate
from alignment_security.models.fast import (
    WithoutTF32,
    fast_copy,
    followed_by_norm,
    set_memory_format,
)
from alignment_security.models.loaded_net import checked_net
from alignment_security.models.loading import as_model


def with_statistics(name: str) -> nn.Module:
    """A timm network whose batch norms are not the identity."""
    torch.manual_seed(0)
    net = timm.create_model(name).eval().requires_grad_(False)
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.2)
            part.running_var.uniform_(0.5, 2)
            part.weight.uniform_(0.5, 1.5)
    return net


@pytest.mark.parametrize(
    ("name", "left"), [("resnet18", 0), ("tf_efficientnet_lite0", 0), ("convnext_atto", 0)]
)
def test_fast_copy_changes_logits_by_rounding_only(name, left):
    net, x = with_statistics(name), torch.rand(2, 3, 96, 96)
    fast = fast_copy(net, x)
    want, got = net(x), fast(x)
    assert float((want - got).abs().max()) <= 1e-4 * float(want.abs().max())
    assert sum(isinstance(part, _BatchNorm) for part in fast.modules()) == left
    assert any(isinstance(part, _BatchNorm) for part in net.modules()) == (name != "convnext_atto")


def test_followed_by_norm_skips_a_convolution_that_runs_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
            self.norm.running_mean += 0.3

        def forward(self, x):
            return self.norm(self.conv(self.norm(self.conv(x)))).mean((2, 3))

    net, x = Twice().eval().requires_grad_(False), torch.rand(2, 3, 8, 8)
    assert followed_by_norm(net, x) == []
    torch.testing.assert_close(fast_copy(net, x)(x), net(x))


def test_fast_copy_undoes_folding_that_changes_the_logits():
    """The convolution's output has a second use, which folding would change too."""

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
            self.norm.running_var *= 9

        def forward(self, x):
            out = self.conv(x)
            return (out + self.norm(out)).mean((2, 3))

    net, x = Residual().eval().requires_grad_(False), torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(fast_copy(net, x)(x), net(x))


def small_net(change=lambda convolution: convolution) -> nn.Module:
    """A convolution that `change` may alter, a batch norm that changes values, a classifier."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4)
    norm.running_mean.normal_()
    layers = [change(nn.Conv2d(3, 4, 3)), norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(4, 5))


class Noise(nn.Module):
    def forward(self, x):
        return x + 0.1 * torch.randn_like(x)


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def with_parametrization(convolution):
    parametrize.register_parametrization(convolution, "weight", Doubled())
    return convolution


class ViewsItsMaps(nn.Module):
    """Flattens maps by `view`, which channels_last has no strides for."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(256, 5)

    def forward(self, x):
        return self.fc(self.conv(x).view(len(x), -1))


class ReadsMemory(ViewsItsMaps):
    """Takes maps for contiguous: with channels_last it would mix channels and pixels."""

    def forward(self, x):
        return self.fc(self.conv(x).as_strided((len(x), 256), (256, 1)))


class InThreeDimensions(ViewsItsMaps):
    """torch has no channels_last of weights in 5 dimensions, as timm's lambda networks have."""

    def __init__(self):
        super().__init__()
        self.conv3d = nn.Conv3d(1, 1, (1, 3, 3), padding=(0, 1, 1))

    def forward(self, x):
        return self.fc(self.conv3d(self.conv(x)[:, None]).flatten(1))


class HoldsALock(nn.Sequential):
    """Cannot be copied."""

    def __init__(self):
        super().__init__(*small_net())
        self.lock = threading.Lock()


NETS = {
    "weight norm": lambda: small_net(torch.nn.utils.weight_norm),
    "spectral norm": lambda: small_net(torch.nn.utils.spectral_norm),
    "weight norm of today": lambda: small_net(torch.nn.utils.parametrizations.weight_norm),
    "spectral norm of today": lambda: small_net(torch.nn.utils.parametrizations.spectral_norm),
    "a parametrization": lambda: small_net(with_parametrization),
    "a view of maps": ViewsItsMaps,
    "strides": ReadsMemory,
    "a convolution in 3 dimensions": InThreeDimensions,
    "no copies": HoldsALock,
    "TorchScript": lambda: torch.jit.script(small_net().eval()),
}


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated", "ignore:.*torch.jit")
def test_networks_of_ones_own_run_as_they_are(kind, sample):
    """Whatever computes its weights, reads its memory or has no copy keeps its logits."""
    preprocessing = {"input_size": (3, 8, 8), "interpolation": "bilinear", "crop_pct": 1.0}
    config = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "crop_mode": "center", **preprocessing}
    x = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    model = as_model(checked_net(NETS[kind](), "test", config, kind), kind)
    want = model.module(x)
    images = replace(sample.take(range(2)), n_classes=5, labels=(0, 1))
    rows = evaluate(model, images, AutoAttack("Linf", 8 / 255, Budget(("apgd-ce",), steps=2)))
    assert len(rows) == 2
    for module in (model.module, fast_copy(model.module, x)):
        torch.testing.assert_close(module(x), want, rtol=1e-4, atol=1e-5)


def test_a_random_network_is_laid_out_as_any_other():
    """Its logits differ in any two passes, whatever their memory format is."""
    noisy = nn.Sequential(Noise(), small_net()).eval()
    set_memory_format(noisy, torch.channels_last, torch.rand(1, 3, 8, 8))
    convolution = next(part for part in noisy.modules() if isinstance(part, nn.Conv2d))
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last)


def test_bf16_verdicts_are_confirmed_in_float32():
    net = cifar_resnet18()
    images = cifar_photographs(net)[:8]
    budget = Budget(attacks=("apgd-ce",), steps=15)

    def verdicts(module) -> pd.DataFrame:
        rows = run_autoattack(
            AttackedModel(module, 10, exact=WithoutTF32(net), batch_size=8),
            images,
            norm="Linf",
            eps=[2 / 255],
            budget=budget,
        )
        return rows_of(rows).set_index("image_id").sort_index()

    plain = verdicts(net)
    half = verdicts(fast_copy(net, torch.rand(2, 3, 32, 32), "bf16"))
    assert (plain.robust == half.robust).mean() >= 7 / 8
    pixels = {name: x for name, x, _ in images}
    for row in half[half.robust == 0].reset_index().itertuples():
        assert (
            int(net((pixels[row.image_id] + row.perturbation)[None]).argmax())
            == row.adv_pred
            != row.label
        )


def test_without_tf32_restores_the_flags():
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    seen = []

    class Spy(nn.Module):
        def forward(self, x):
            seen.append(torch.backends.cudnn.allow_tf32)
            return x

    try:
        WithoutTF32(Spy())(torch.zeros(1))
        assert seen == [False] and torch.backends.cudnn.allow_tf32 is True
    finally:
        torch.backends.cudnn.allow_tf32 = before
