"""NaN and infinite values never count as robustness or as success."""

from functools import partial

import pandas as pd
import pytest
import torch
from nets import attack_rows, digits
from torch import nn

from alignment_security.attacks.attack import AttackError
from alignment_security.attacks.autoattack import Budget, run_autoattack
from alignment_security.attacks.crossing import BoundaryCrossing
from alignment_security.attacks.fmn import FMN
from alignment_security.attacks.libraries import run_foolbox, run_pyautoattack
from alignment_security.attacks.minimum_norm import run_minimum_norm
from alignment_security.attacks.saliency import run_saliency

IMAGES = digits()[1200:1204]


def bounded(attack: str, run=run_autoattack):
    budget = Budget((attack,), steps=20, targets=2, queries=40)
    return partial(attack_rows, run, norm="Linf", eps=[0.1], budget=budget)


def minimal(attack):
    return partial(attack_rows, run_minimum_norm, attack=attack)


def library(protocol: str):
    return partial(attack_rows, run_foolbox, protocol=protocol, steps=20)


OURS = {
    "apgd-ce": bounded("apgd-ce"),
    "apgd-t": bounded("apgd-t"),
    "fab-t": bounded("fab-t"),
    "crossing-L2": minimal(BoundaryCrossing("L2", 20)),
    "crossing-Linf": minimal(BoundaryCrossing("Linf", 20)),
    "fmn-L2": minimal(FMN("L2", 20)),
    "fmn-L1": minimal(FMN("L1", 20)),
}
LIBRARIES = {
    "reference": bounded("apgd-ce", run_pyautoattack),
    **{protocol: library(protocol) for protocol in ("ddn", "cw", "deepfool", "feng2025")},
}


class NanGradient(nn.Module):
    """A network's logits; the slope of a square root at zero makes every gradient NaN."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x) + (x - x.detach()).abs().sqrt().sum((1, 2, 3))[:, None]


class NanLogits(nn.Module):
    def forward(self, logits):
        return logits * torch.nan


class NanNearby(nn.Module):
    """A network's logits where the pixels are clean ones (16ths), NaN elsewhere."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        moved = ((16 * x - (16 * x).round()).abs() > 1e-3).flatten(1).any(1)
        return torch.where(moved[:, None], torch.nan, self.net(x))


@pytest.mark.parametrize("name", OURS)
def test_a_gradient_of_nan_ends_the_run_under_its_own_name(robust_digits, name):
    """Its sign is zero: APGD would stay where it is, and every image would count as robust."""
    with pytest.raises(AttackError, match=r"the gradient of .* is NaN .* under "):
        OURS[name](NanGradient(robust_digits), IMAGES, batch_size=4)


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_gradient_of_nan_ends_the_attacks_of_libraries(robust_digits, name):
    with pytest.raises(AttackError, match="the gradient of .* is NaN"):
        LIBRARIES[name](NanGradient(robust_digits), IMAGES, batch_size=4)


@pytest.mark.parametrize("name", [*OURS, "reference", "ddn", "cw", "deepfool"])
def test_logits_of_nan_are_no_adversarial_point(robust_digits, name):
    with pytest.raises(AttackError, match="the model gives NaN or infinite logits"):
        (OURS | LIBRARIES)[name](NanNearby(robust_digits), IMAGES, batch_size=4)


@pytest.mark.parametrize("name", ["apgd-ce", "fmn-L2", *LIBRARIES])
def test_clean_logits_of_nan_are_named_with_their_image(robust_digits, name):
    net = nn.Sequential(robust_digits, NanLogits())
    with pytest.raises(AttackError, match=rf"{IMAGES[0][0]}: the model gives NaN"):
        (OURS | LIBRARIES)[name](net, IMAGES, batch_size=4)


def test_a_saliency_of_nan_ends_the_run(robust_digits):
    with pytest.raises(AttackError, match=f"{IMAGES[0][0]}: the gradient of .* is NaN"):
        attack_rows(run_saliency, NanGradient(robust_digits), IMAGES, batch_size=4)


def test_an_attack_without_gradients_takes_a_network_whose_gradients_are_nan(robust_digits):
    want = bounded("square")(robust_digits, IMAGES, batch_size=4)
    got = bounded("square")(NanGradient(robust_digits), IMAGES, batch_size=4)
    columns = ["image_id", "robust", "adv_pred", "forwards"]
    pd.testing.assert_frame_equal(got[columns], want[columns])
