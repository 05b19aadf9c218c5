"""The exact network decides which points count; what is done where it rejects one."""

import math

import pytest
import torch
from nets import Linear, attack_rows, digits, two_class

from alignment_security.attacks.attack import AttackedImage
from alignment_security.attacks.attacked_model import AttackedModel
from alignment_security.attacks.autoattack import Budget, run_autoattack
from alignment_security.attacks.confirmation import confirm_in_float32
from alignment_security.attacks.crossing import BoundaryCrossing
from alignment_security.attacks.fmn import FMN
from alignment_security.attacks.line_search import adversarial_point, other_images
from alignment_security.attacks.minimum_norm import run_minimum_norm
from alignment_security.models.forward import Forward


def towards_boundary(net: Linear, image: torch.Tensor, length: float) -> torch.Tensor:
    """The image moved so far in L2 along the shortest way out of class 0."""
    weight = next(net.buffers())[0]
    return image - length * (weight / weight.norm()).view_as(image)


@pytest.mark.parametrize(
    ("length", "eps", "counts"),
    [(0.29, 1.0, False), (0.31, 1.0, True), (0.31, 0.305, False), (0.31, math.inf, True)],
)
def test_a_point_counts_where_the_network_is_wrong_within_eps(length, eps, counts):
    net, x = two_class(0.3, "L2")
    image = AttackedImage("a", x, 0, net(x[None])[0], None, eps=eps)
    point = towards_boundary(net, x, length)
    (finding,) = confirm_in_float32(Forward(net, 1), "L2")([image], point[None], "apgd-ce")
    assert image.forwards == 1 and (finding is not None) == counts
    if finding is not None:
        assert finding.l2 == pytest.approx(length, rel=1e-5)
        assert (finding.adv_pred, finding.broken_by, finding.from_eps) == (1, "apgd-ce", eps)


@pytest.mark.parametrize(("eps", "robust"), [(0.35, 1), (0.45, 0)])
def test_the_exact_network_decides_whether_an_image_is_robust(eps, robust):
    """The copy that is attacked breaks at 0.3, the exact network at 0.4."""
    (fast, image), (exact, _) = two_class(0.3, "L2"), two_class(0.4, "L2")
    budget = Budget(("apgd-ce", "square"), steps=10, queries=30)
    options = {"n_outputs": 2, "exact": exact}
    rows = attack_rows(run_autoattack, fast, [("a", image, 0)], "L2", [eps], budget, **options)
    assert rows.robust.tolist() == [robust]


@pytest.mark.parametrize("attack", [FMN("L2", 60), BoundaryCrossing("L2", 25)])
@pytest.mark.parametrize("farther", [1.0005, 1.01])
def test_a_best_point_that_is_rejected_is_moved_outwards(attack, farther):
    """By up to four times of what it takes, and without a second attempt."""
    (fast, image), (exact, _) = two_class(0.3, "L2"), two_class(0.3 * farther, "L2")
    options = {"n_outputs": 2, "exact": exact}
    row = attack_rows(run_minimum_norm, fast, [("a", image, 0)], attack, **options).iloc[0]
    assert row.success == 1 and row.backwards == attack.steps
    assert 0.3 * farther * (1 - 1e-6) <= row.l2 <= 0.3 * (1 + 4.1 * (farther - 1)) * 1.01


def test_the_line_search_ends_at_the_nearest_crossing_of_its_lines():
    """Of a linear model, where each line crosses at a share that is known."""
    net, x = two_class(0.3, "L2")
    image = AttackedImage("a", x, 0, net(x[None])[0], None)
    ends = other_images(image)
    logits = net(torch.cat([x[None], ends]))
    margins = logits[:, 0] - logits[:, 1]
    shares = margins[0] / (margins[0] - margins[1:])
    lengths = (ends - x).flatten(1).norm(dim=1)
    crossings = (shares * lengths)[margins[1:] < 0]
    point = adversarial_point(image, Forward(net, 8), 2)
    assert point is not None and len(crossings) > 3
    assert float((point - x).norm()) == pytest.approx(float(crossings.min()), rel=1e-3)
    assert int(net(point[None]).argmax()) == 1


def test_few_images_are_begun_before_the_first_is_finished(robust_digits):
    """An interruption loses no more than the batches of the attacks."""
    drawn, first = [], None

    def source():
        for row in digits()[1200:1300]:
            drawn.append(row)
            yield row

    model = AttackedModel(robust_digits, 10, batch_size=4)
    budget = Budget(("apgd-ce", "apgd-t"), steps=5, targets=2)
    for rows in run_autoattack(model, source(), "Linf", [0.02], budget):
        if rows and first is None and any(row["robust"] for row in rows):
            first = len(drawn)
    assert first is not None and first <= 3 * 4 and len(drawn) == 100
