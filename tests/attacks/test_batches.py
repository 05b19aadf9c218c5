"""The batches that reach a network: few sizes, idle rows that change nothing, few waits."""

import copy
from functools import partial

import pandas as pd
import pytest
import timm
import torch
from accelerator import WAITS, pretended
from nets import attack_rows, digits
from torch import nn

from alignment_security.attacks.attack import AttackError
from alignment_security.attacks.autoattack import Budget, run_autoattack
from alignment_security.attacks.clean import run_clean
from alignment_security.attacks.crossing import BoundaryCrossing
from alignment_security.attacks.fmn import FMN
from alignment_security.attacks.geometry import project_onto_hyperplane
from alignment_security.attacks.minimum_norm import run_minimum_norm
from alignment_security.models.forward import Forward, batch_shapes, filled_rows, next_shape

IMAGES = digits()[1200:1223]


def bounded(attack: str, eps: float, **budget):
    """One attack of AutoAttack in Linf."""
    options = {"norm": "Linf", "eps": [eps], "budget": Budget((attack,), **budget)}
    return partial(attack_rows, run_autoattack, **options)


def minimal(attack):
    return partial(attack_rows, run_minimum_norm, attack=attack)


MINIMAL = {
    "crossing": minimal(BoundaryCrossing("L2", 40, walks=2)),
    "fmn": minimal(FMN("L2", 40)),
    "fmn-L1": minimal(FMN("L1", 40)),
}


def runs(eps: float) -> dict:
    """Every attack that the engine runs."""
    return norm_bounded(eps) | MINIMAL


def norm_bounded(eps: float) -> dict:
    return {
        "apgd-ce": bounded("apgd-ce", eps, steps=40),
        "apgd-t": bounded("apgd-t", eps, steps=40, targets=2),
        "fab-t": bounded("fab-t", eps, steps=40, targets=2),
        "square": bounded("square", eps, queries=80),
    }


LARGE = {
    "clean": partial(attack_rows, run_clean),
    "apgd-t": bounded("apgd-t", 1 / 255, steps=6, targets=2),
    "square": bounded("square", 1 / 255, queries=6),
    "crossing": minimal(BoundaryCrossing("L2", 10, walks=2)),
    "fmn": minimal(FMN("L2", 10)),
}


class Watched(nn.Module):
    """A net that notes the size of each batch."""

    def __init__(self, net):
        super().__init__()
        self.net, self.sizes = net, []

    def forward(self, x):
        self.sizes.append(len(x))
        return self.net(x)


# ---- sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch_size", "shapes"),
    [
        (1, [1]),
        (3, [3]),
        (7, [7]),
        (8, [4, 8]),
        (12, [6, 12]),
        (64, [4, 8, 16, 32, 64]),
        (1024, [32, 64, 128, 256, 512, 1024]),
    ],
)
def test_batch_shapes(batch_size, shapes):
    assert batch_shapes(batch_size) == shapes


@pytest.mark.parametrize(
    ("rows", "sizes"), [(3, [4]), (70, [64, 8]), (100, [64, 32, 4]), (120, [128]), (300, [128] * 2)]
)
def test_rows_are_cut_into_few_batches_with_few_idle_rows(rows, sizes):
    shapes, got = batch_shapes(128), []
    while rows > sum(got):
        got.append(next_shape(shapes, rows - sum(got)))
    assert got[: len(sizes)] == sizes and filled_rows(shapes, rows) == sum(got)


@pytest.mark.parametrize("batch_size", [1, 3, 8, 12, 50, 64, 1000])
def test_idle_rows_are_at_most_an_eighth_of_a_batch(batch_size):
    shapes = batch_shapes(batch_size)
    idle = [filled_rows(shapes, rows) - rows for rows in range(1, 2 * batch_size + 1)]
    assert min(idle) >= 0 and max(idle) <= max(batch_size // 8, shapes[0])


@pytest.mark.parametrize("name", ["clean", *runs(0.1)])
def test_a_network_sees_at_most_six_sizes_of_batch(robust_digits, name):
    net = Watched(robust_digits)
    run = partial(attack_rows, run_clean) if name == "clean" else runs(0.1)[name]
    run(net, digits()[1200:1300], batch_size=64)
    assert set(net.sizes) <= set(batch_shapes(64)) and max(net.sizes) == 64


@pytest.mark.parametrize("count", range(1, 20))
def test_idle_rows_are_not_returned(robust_digits, count):
    x = torch.stack([image for _, image, _ in digits()[:count]])
    forward = Forward(robust_digits, 16)
    logits, gradient = forward.gradient(x, lambda logits, rows: logits[:, 0])
    leaf = x.clone().requires_grad_()
    want = robust_digits(leaf)
    torch.testing.assert_close(logits, want.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(want[:, 0].sum(), leaf)[0])
    torch.testing.assert_close(forward.logits(x), want.detach())


# ---- company -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["clean", *runs(0.1)])
def test_rows_are_the_same_bytes_in_any_company(robust_digits, name):
    """Reversed, in two halves, and an image almost alone: every digit of every column."""
    run = partial(attack_rows, run_clean) if name == "clean" else runs(0.1)[name]

    def rows(*parts) -> pd.DataFrame:
        found = [run(robust_digits, part, batch_size=8) for part in parts]
        return pd.concat(found).sort_values("image_id", ignore_index=True)

    want = rows(IMAGES).drop(columns="perturbation", errors="ignore")
    assert len(want) == len(IMAGES)
    for parts in ([IMAGES[::-1]], [IMAGES[:13], IMAGES[13:]], [IMAGES[1:], IMAGES[:1]]):
        got = rows(*parts).drop(columns="perturbation", errors="ignore")
        pd.testing.assert_frame_equal(got[want.columns], want, check_exact=True)


@pytest.mark.parametrize("name", LARGE)
def test_large_images_give_the_same_bytes_at_any_batch_size(name):
    torch.manual_seed(0)
    net = timm.create_model("test_resnet", num_classes=10).eval().requires_grad_(False)
    x = torch.rand(5, 3, 128, 128)
    images = [(f"{i}", x[i], label) for i, label in enumerate(net(x).argmax(1).tolist())]

    def rows(batch_size: int, part=images) -> pd.DataFrame:
        found = LARGE[name](net, part, batch_size=batch_size)
        return found.drop(columns="perturbation", errors="ignore")

    want = rows(8).sort_values("image_id", ignore_index=True)
    for parts in ([rows(1, images[:2]), rows(3, images[2:])], [rows(64, images[::-1])]):
        got = pd.concat(parts).sort_values("image_id", ignore_index=True)
        pd.testing.assert_frame_equal(got[want.columns], want, check_exact=True)


# ---- waits ---------------------------------------------------------------------------------------


# (run, most waits a pass): nothing breaks; images leave at different steps; a walk is looked at
# when it ends
MOST_WAITS = {f"{name}, all survive": (run, 1.0) for name, run in norm_bounded(1e-4).items()}
MOST_WAITS |= {f"{name}, some break": (run, 1.0) for name, run in norm_bounded(0.1).items()}
MOST_WAITS |= {name: (run, 0.2) for name, run in MINIMAL.items()}


@pytest.mark.parametrize("name", MOST_WAITS)
def test_the_host_waits_at_most_once_a_pass_for_the_device(robust_digits, name):
    run, most = MOST_WAITS[name]
    with pretended() as device:
        net = Watched(copy.deepcopy(robust_digits).to(device))
        WAITS.clear()
        run(net, IMAGES[:7], batch_size=4)
        assert len(WAITS) / len(net.sizes) <= most, pd.Series(WAITS).value_counts()


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("norm", ["L2", "Linf"])
def test_a_projection_that_nobody_looks_at_reaches_the_hyperplane(norm, share):
    """`share`: how far the hyperplane is, as a share of the way to the corner of the box."""
    generator = torch.Generator().manual_seed(0)
    x, w = torch.rand(50, 3072, generator=generator), torch.randn(50, 3072, generator=generator)
    c = share * (w.abs() * torch.where(w < 0, 1 - x, x)).sum(1)
    with pretended() as device:
        there = project_onto_hyperplane(x.to(device), w.to(device), c.to(device), norm)
        d = there.cpu()
    missing = 1 + torch.linalg.vecdot(w, d) / c
    assert missing.abs().max() < (1e-5 if share <= 0.5 else 0.03)
    if share <= 0.5:
        torch.testing.assert_close(d, project_onto_hyperplane(x, w, c, norm), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["apgd-t", "square", "crossing", "fmn"])
def test_logits_that_were_infinite_for_one_pass_end_the_run(robust_digits, name):
    """Also in a walk, which is looked at many passes later."""

    class Flickering(nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            logits = robust_digits(x)
            if self.calls != 5:
                return logits
            return logits + torch.tensor([0.0, torch.inf, 0.0, 0.0])[: len(x), None]

    with pytest.raises(AttackError, match=rf"{IMAGES[1][0]}: .* infinite logits under {name}"):
        runs(1e-4)[name](Flickering(), IMAGES[:4], batch_size=4)
