"""The engine, the script and training never mix tensors of two devices.

They run on a simulated accelerator (accelerator.py), and their results equal the CPU's.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from functools import partial
from typing import Any

import pandas as pd
import pytest
import torch
from accelerator import DEVICE, Pretended, pretended
from nets import attack_rows, digits
from torch import nn

import training
from alignment_security.attacks.autoattack import Budget, run_autoattack
from alignment_security.attacks.clean import run_clean
from alignment_security.attacks.crossing import BoundaryCrossing
from alignment_security.attacks.fmn import FMN
from alignment_security.attacks.libraries import run_pyautoattack
from alignment_security.attacks.minimum_norm import MinimumNormAttack, run_minimum_norm
from alignment_security.models.heads import AnimateHead, smooth_head
from alignment_security.records.record import read_record

BUDGET = Budget(steps=8, targets=2, queries=20)
IMAGES = digits()[1200:1206]
BALLS: dict[str, dict[str, Any]] = {
    norm: {"norm": norm, "eps": eps, "budget": BUDGET, "batch_size": 4, "seed": 0}
    for norm, eps in (("Linf", [0.02, 0.1, 0.2]), ("L2", [0.2, 0.8]))
}
RUNS = {
    "clean": partial(attack_rows, run_clean, batch_size=4),
    "reference": partial(attack_rows, run_pyautoattack, **BALLS["Linf"]),
}
RUNS |= {
    f"{norm} eps search": partial(attack_rows, run_autoattack, **options)
    for norm, options in BALLS.items()
}
NORMS: list[MinimumNormAttack] = [
    *(FMN(norm, 8) for norm in ("L2", "Linf", "L1")),
    *(BoundaryCrossing(norm, 30, walks=2) for norm in ("L2", "Linf")),
]
RUNS |= {
    attack.name: partial(attack_rows, run_minimum_norm, attack=attack, batch_size=4)
    for attack in NORMS
}


class Thousand(nn.Module):
    """A net with 1000 outputs, a fixed linear map of its ten."""

    def __init__(self, net):
        super().__init__()
        self.net = net
        self.register_buffer(
            "weights", torch.randn(10, 1000, generator=torch.Generator().manual_seed(0))
        )

    def forward(self, x):
        return self.net(x) @ self.weights


def same_rows(net, images, run) -> pd.DataFrame:
    """The rows of a run on the CPU; fails if the simulated accelerator gives others."""
    on_cpu = run(net, images)
    with pretended() as device:
        there = run(copy.deepcopy(net).to(device), images)
    order = ["image_id", *({"eps"} & set(on_cpu))]
    pd.testing.assert_frame_equal(
        *(
            rows.drop(columns="perturbation", errors="ignore").sort_values(order, ignore_index=True)
            for rows in (on_cpu, there)
        )
    )
    return on_cpu


@pytest.mark.parametrize("name", RUNS)
def test_the_engine_gives_the_same_rows_on_another_device(robust_digits, name):
    rows = same_rows(robust_digits, IMAGES, RUNS[name])
    assert set(rows.image_id) == {name for name, *_ in IMAGES}
    if name != "clean":
        assert ((rows["success"] == 1) if "success" in rows else (rows["robust"] == 0)).any()


def test_a_smoothed_head_gives_the_same_rows_on_another_device(robust_digits):
    net = nn.Sequential(Thousand(robust_digits), AnimateHead("max")).eval().requires_grad_(False)
    images = [(name, x, int(net(x[None]).argmax())) for name, x, _ in IMAGES]
    run = partial(
        attack_rows,
        run_minimum_norm,
        attack=BoundaryCrossing("L2", 30, walks=2),
        n_outputs=2,
        batch_size=4,
    )
    assert (same_rows(smooth_head(net), images, run).success == 1).all()


SCRIPT = {
    "clean": ["clean"],
    "L2-crossing": ["--head", "animate", "L2", "--protocol", "crossing", "--steps", "4"],
    "Linf": ["Linf", "--eps", "1/255", "--steps", "3", "--targets", "2", "--queries", "5"],
}


@pytest.mark.parametrize("threat", SCRIPT)
def test_the_script_runs_on_another_device(cli, tiny, tmp_path, threat):
    """From weights to record. Norms are not compared: convolutions round differently."""
    found = []
    for device in ("cpu", DEVICE.type):
        with pretended() if device != "cpu" else nullcontext():
            status, _, said = cli(
                *tiny.arguments(tmp_path / device), "--device", device, *SCRIPT[threat]
            )
        assert status == 0, said
        (path,) = (tmp_path / device / "records").rglob("*.csv")
        found.append(read_record(path))
    same = found[0].columns.intersection(
        ["image_id", "clean_pred", "robust", "broken_by", "success", "backwards"]
    )
    pd.testing.assert_frame_equal(*(rows[same] for rows in found))


def test_a_training_runs_on_another_device(mapped, tmp_path, signals_kept):
    """Both objectives; every number of the log equals the CPU's."""
    curves = []
    for device in ("cpu", DEVICE.type):
        request = (
            "--model_name test_resnet --num_classes 2 --dataset mine --batch_size 4 --epochs 2 "
            "--objective both --lambda_1 0.1 --norm Linf --eps 2/255 --attack_steps 1 "
            "--random_start --log_every 1 --workers 0 --name mine "
            f"--data_dir {mapped[0]} --map_dir {mapped[1]} --results_dir {tmp_path / device} "
            f"--device {device}"
        )
        with signals_kept(), pretended() if device != "cpu" else nullcontext():
            assert training.main(request.split()) == 0
        curves.append((tmp_path / device / "training" / "mine" / "log.csv").read_text())
    assert curves[0] == curves[1] and len(curves[0].splitlines()) == 5


# ---- the simulated device itself ----------------------------------------------------------------


@pytest.mark.parametrize(
    "mixed",
    [
        lambda here, there: here + there,
        lambda here, there: torch.where(there > 0, there, here),
        lambda here, there: torch.cat([here, there]),
        lambda here, there: there.add_(here),
        lambda here, there: here[there > 0],
        lambda here, there: here * there.sum(),
        lambda here, there: there.index_put_((torch.tensor([0]),), here[:1]),
        lambda here, there: nn.functional.linear(there, torch.ones(2, 3)),
        lambda here, there: torch.rand(3, generator=torch.Generator(), device=DEVICE),
    ],
)
def test_what_cuda_refuses_is_refused(mixed):
    with pretended():
        with pytest.raises(RuntimeError, match="two devices|indexed|generator"):
            mixed(torch.ones(3), torch.ones(3, device=DEVICE))


def test_what_cuda_allows_is_allowed():
    with pretended():
        there = torch.tensor([1.0, 2.0, 3.0], device=DEVICE)
        assert (
            isinstance(there, Pretended)
            and there.device == DEVICE
            and not isinstance(there.cpu(), Pretended)
        )
        there[[0, 2]] = 5.0
        assert (there * torch.tensor(2.0)).tolist() == [10, 4, 10] and float(there.sum()) == 12
        assert there[torch.tensor([1])].cpu().tolist() == [2] and there.add_(1) is there
        leaf = there.detach().requires_grad_()
        (grad,) = torch.autograd.grad((leaf**2).sum(), leaf)
        assert grad.device == DEVICE and grad.tolist() == [12, 6, 12]
