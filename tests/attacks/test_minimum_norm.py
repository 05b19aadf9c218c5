"""Minimum-norm attacks against closed forms, bisection and linear programming, and each other."""

import math
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from nets import Linear, attack_rows, digits, two_class
from scipy.optimize import linprog

from alignment_security.attacks import libraries
from alignment_security.attacks.crossing import BoundaryCrossing
from alignment_security.attacks.fmn import FMN
from alignment_security.attacks.geometry import shrink_onto_ball
from alignment_security.attacks.libraries import run_foolbox, stretch
from alignment_security.attacks.minimum_norm import run_minimum_norm

minimise = partial(attack_rows, run_minimum_norm)


def box_distance(net, distance: float) -> float:
    """L2 distance of the grey image to the boundary inside the box, by bisection in float64."""
    weight = (net.weight[0] - net.weight[1]).double().numpy()
    goal, low, high = distance * np.linalg.norm(weight), 0.0, 1e3
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (
            (low, middle)
            if (np.abs(weight) * np.minimum(middle * np.abs(weight), 0.5)).sum() > goal
            else (middle, high)
        )
    return float(np.linalg.norm(np.minimum(high * np.abs(weight), 0.5)))


@pytest.mark.parametrize("norm", ["L2", "Linf", "L1"])
@pytest.mark.parametrize("distance", [0.02, 0.05, 0.2, 0.45])
def test_fmn_finds_the_distance_of_a_linear_model(norm, distance):
    """Closed form |margin| / dual norm. All distances are below the first step length of 1."""
    net, image = two_class(distance, norm)
    row = minimise(net, [("a", image, 0)], FMN(norm, 1000), n_outputs=2).iloc[0]
    assert ("l1" in row) == (norm == "L1")
    found = row[norm.lower()]
    assert row.success == 1 and distance * (1 - 1e-6) <= found <= 1.01 * distance


@pytest.mark.parametrize("distance", [0.7, 1.3, 2.6])
def test_fmn_where_pixels_clip(distance):
    """Against the projection onto hyperplane and box, by bisection in float64."""
    net, image = two_class(distance, "L2")
    want = box_distance(net, distance)
    row = minimise(net, [("a", image, 0)], FMN("L2", 1000), n_outputs=2).iloc[0]
    assert want * (1 - 1e-5) <= row.l2 <= 1.01 * want


@pytest.mark.parametrize("norm", ["L2", "Linf", "L1"])
@pytest.mark.parametrize("steps", [20, 100])
def test_fmn_leaves_no_image_of_a_linear_model_unfound(monkeypatch, norm, steps):
    """The 40 of 400 images that are nearest to the boundary, a third of their pixels on the box.

    The authors' first step of 1 is far beyond it, and leaves some of them out.
    """
    monkeypatch.setattr("alignment_security.attacks.minimum_norm.adversarial_point", never)
    generator = torch.Generator().manual_seed(1)
    net = Linear(torch.randn(10, 192, generator=generator), torch.zeros(10))
    x = (torch.rand(400, 3, 8, 8, generator=generator) * 1.6 - 0.3).clamp(0, 1)
    first, second = net(x).topk(2)[0].unbind(1)
    labels = net(x).argmax(1).tolist()
    nearest = (first - second).argsort()[:40].tolist()
    images = [(f"i{i}", x[i], labels[i]) for i in nearest]
    ours, theirs = (
        minimise(net, images, attack, batch_size=40)
        for attack in (FMN(norm, steps), FMN(norm, steps, step_unit="pixels"))
    )
    assert ours.success.sum() == 40
    if norm == "L2":
        assert theirs.success.sum() < 40
        longer = minimise(net, images, FMN(norm, 1000), batch_size=40)
        assert ours.l2.mean() == pytest.approx(longer.l2.mean(), rel=1e-3)


def never(*_):
    """In the place of `adversarial_point`: no second attempt."""
    return


def test_fmn_takes_the_nearest_of_ten_classes():
    generator = torch.Generator().manual_seed(3)
    weight, image = torch.randn(10, 64, generator=generator), torch.full((1, 8, 8), 0.5)
    bias = torch.linspace(1, 2, 10) - weight @ image.flatten()
    logits = weight @ image.flatten() + bias
    label = int(logits.argmax())
    gaps = (logits[label] - logits) / (weight[label] - weight).norm(dim=1)
    want = float(gaps[torch.arange(10) != label].min())
    row = minimise(Linear(weight, bias), [("a", image, label)], FMN("L2", 1000)).iloc[0]
    assert want * (1 - 1e-5) <= row.l2 <= 1.01 * want


def test_every_reported_point_is_misclassified_and_in_the_box(robust_digits):
    images = {name: x for name, x, _ in digits()[1200:1220]}
    rows = minimise(robust_digits, digits()[1200:1220], FMN("L2", 40))
    hit = rows[rows.success == 1]
    assert len(hit) >= 15
    for row in hit.itertuples():
        point = images[row.image_id] + row.perturbation
        assert -1e-6 <= point.min() and point.max() <= 1 + 1e-6
        assert int(robust_digits(point[None]).argmax()) == row.adv_pred != row.label
        assert row.l2 == pytest.approx(float(row.perturbation.norm()), rel=1e-5)


def test_a_misclassified_image_has_a_row_and_no_norm(robust_digits):
    name, x, label = digits()[1200]
    row = minimise(robust_digits, [(name, x, (label + 1) % 10)], FMN("L2", 5)).iloc[0]
    assert row.clean_correct == 0 and "l2" not in row.dropna()


def test_a_zero_gradient_is_no_division_by_zero():
    """A constant model cannot be fooled: success 0, and no NaN in between."""
    row = minimise(
        Linear(torch.zeros(2, 64), [1.0, 0.0]),
        [("a", torch.rand(1, 8, 8), 0)],
        FMN("L2", 5),
        n_outputs=2,
    )
    assert row.success.tolist() == [0]


class Flat(torch.nn.Module):
    """Two classes whose boundary lies `beyond` a region in which no logit depends on the image."""

    def __init__(self, distance, beyond=0.1):
        super().__init__()
        net, self.image = two_class(distance, "L2")
        self.weight = net.weight[0]
        self.first = (distance - beyond) * float(self.weight.norm())
        self.beyond = beyond * float(self.weight.norm())

    def forward(self, x):
        along = (x - self.image).flatten(1) @ self.weight
        gained = (along - self.first).relu() - self.beyond
        return torch.stack([torch.zeros_like(gained), gained], 1)


@pytest.mark.parametrize("attack", [FMN("L2", 100), BoundaryCrossing("L2", 50)])
@pytest.mark.parametrize("distance", [0.2, 1.0])
def test_an_image_without_gradient_has_the_norm_of_the_nearest_boundary(attack, distance):
    """It is attacked again from where a line to another image leaves the class."""
    net = Flat(distance)
    row = minimise(net, [("a", net.image, 0)], attack, n_outputs=2).iloc[0]
    assert row.success == 1 and distance * (1 - 1e-5) <= row.l2 <= 1.002 * distance
    assert row.backwards == 2 * attack.steps


class Saturated(torch.nn.Module):
    """Digits with logits cut off at 1: most images have an input gradient of zero."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        logits = self.net(x)
        return (logits - logits.amax(1, keepdim=True).detach() + 3).clamp(0, 1) * 0.5 + (
            logits.argmax(1, keepdim=True) == torch.arange(10)
        )


@pytest.mark.parametrize("norm", ["L2", "Linf"])
def test_images_without_gradient_all_have_norms(robust_digits, norm):
    """Not far from those of the same classes with their gradients, in any batch and order."""
    images = digits()[1200:1220]
    attack = BoundaryCrossing(norm, 50)
    found, want = (
        norms_found(net, images, attack, 10) for net in (Saturated(robust_digits), robust_digits)
    )
    assert set(found.index) == set(want.index) and (found / want).median() < 3
    turned = minimise(Saturated(robust_digits), images[::-1], attack, batch_size=7).set_index(
        "image_id"
    )
    np.testing.assert_allclose(turned[norm.lower()].loc[found.index], found, rtol=1e-3)


def clipped_distance(net, image):
    """Linf distance to a two-class linear model's boundary in the box, by linear programming."""
    w, x, gap = (
        net.weight[0].double().numpy(),
        image.double().flatten().numpy(),
        float(net(image[None])[0, 0]),
    )
    both = np.concatenate([np.eye(len(w)), -np.eye(len(w))])
    # variables d and t: |d| <= t, w.d = -gap, x + d in the box; least t
    found = linprog(
        [0] * len(w) + [1],
        np.hstack([both, -np.ones((len(both), 1))]),
        [0] * len(both),
        [[*w, 0]],
        [-gap],
        [*zip(-x, 1 - x), (0, None)],
    )
    assert found.success
    return found.fun


@pytest.mark.parametrize(
    ("norm", "distance"),
    [
        *[("L2", d) for d in (0.02, 0.2, 0.7, 1.3, 2.6)],
        *[("Linf", d) for d in (0.002, 0.02, 0.2, 0.3)],
    ],
)
def test_crossing_on_linear_models_in_few_passes(norm, distance):
    """Against bisection and linear programming in float64.

    Most pixels clip at L2 2.6; half of the image is dark in Linf.
    """
    net, image = two_class(distance, norm)
    if norm == "Linf":  # pixels that reach the box at different lengths
        image = image - torch.linspace(0, 0.4, image.numel()).view_as(image) * (
            net.weight[0].view_as(image) > 0
        )
        net.bias[0] = distance * net.weight[0].abs().sum() - net.weight[0] @ image.flatten()
    want = box_distance(net, distance) if norm == "L2" else clipped_distance(net, image)
    row = minimise(net, [("a", image, 0)], BoundaryCrossing(norm, 25), n_outputs=2).iloc[0]
    found = float(
        torch.linalg.vector_norm(row.perturbation.flatten(), ord={"L2": 2, "Linf": math.inf}[norm])
    )
    assert want * (1 - 1e-5) <= found <= 1.002 * want and row.backwards == 25


class Halves(torch.nn.Module):
    """Ten digits as two groups, by the largest logit of each, like the animate head."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return torch.stack([half.amax(1) for half in self.net(x).split(5, dim=1)], dim=1)


def norms_found(net, images, attack, n_outputs):
    rows = minimise(net, images, attack, n_outputs=n_outputs, batch_size=len(images)).set_index(
        "image_id"
    )
    return rows[rows.success == 1][attack.norm.lower()]


@pytest.mark.parametrize("norm", ["L2", "Linf"])
@pytest.mark.parametrize("classes", [10, 2])
def test_crossing_reaches_the_norms_of_long_fmn(robust_digits, norm, classes):
    """50 passes against 500 steps: on average not larger, and on no image much larger."""
    net = robust_digits if classes == 10 else Halves(robust_digits)
    images = [(name, x, y if classes == 10 else y // 5) for name, x, y in digits()[1200:1230]]
    short, long = (
        norms_found(net, images, attack, classes)
        for attack in (BoundaryCrossing(norm, 50), FMN(norm, 500))
    )
    assert len(short) == len(long) > 20
    assert short.mean() <= 1.002 * long.mean() and (short / long).max() < 1.1


@pytest.mark.parametrize("classes", [10, 2])
def test_a_second_walk_does_not_repeat_the_first(robust_digits, classes):
    """The second walk of 100 steps finds smaller norms on some images, on two classes too."""
    net = robust_digits if classes == 10 else Halves(robust_digits)
    images = [(name, x, y if classes == 10 else y // 5) for name, x, y in digits()[1200:1230]]
    one, two, three = (
        norms_found(net, images, BoundaryCrossing("L2", 50 * walks, walks), classes)
        for walks in (1, 2, 3)
    )
    assert (two < one * (1 - 1e-5)).any()
    for fewer, more in ((one, two), (two, three)):
        assert (more <= fewer * (1 + 1e-6)).all()


@pytest.mark.parametrize(
    ("steps", "walks"),
    [(1, 1), (39, 1), (40, 2), (50, 2), (100, 2), (149, 2), (150, 3), (1000, 20)],
)
def test_crossing_takes_two_walks_or_one_for_each_fifty_steps(steps, walks):
    assert BoundaryCrossing("L2", steps).walks == walks


def test_two_walks_find_smaller_norms_than_one(robust_digits):
    """At the same number of steps, on digits that the schedule was not chosen on."""
    images = digits()[1400:1440]
    one, two = (
        minimise(robust_digits, images, BoundaryCrossing("Linf", 50, walks)) for walks in (1, 2)
    )
    both = one.merge(two, on="image_id", suffixes=("", "_two")).dropna(subset="linf")
    assert both.linf_two.mean() < both.linf.mean() and (both.linf_two < 1.01 * both.linf).all()


def test_late_in_a_linf_walk_pixels_near_the_radius_get_its_length():
    attack = BoundaryCrossing("Linf", 40, walks=1)
    delta = torch.tensor([-0.09, 0.1, 0.06, 0.0]).view(1, 1, 2, 2)
    late = attack._saturate(delta, torch.tensor([0.2]), torch.tensor([20]))
    torch.testing.assert_close(late.flatten(), torch.tensor([-0.2, 0.2, 0.144, 0.0]))
    assert torch.equal(attack._saturate(delta, torch.tensor([0.2]), torch.tensor([19])), delta)


@pytest.mark.parametrize("walks", [1, 2, 3])
def test_crossing_never_gets_worse_with_its_walks(robust_digits, walks):
    """The best point of all walks is what is reported."""
    images = digits()[1200:1208]
    rows = minimise(robust_digits, images, BoundaryCrossing("L2", 60, walks)).set_index("image_id")
    pixels = {name: x for name, x, _ in images}
    for row in rows[rows.success == 1].reset_index().itertuples():
        assert (
            int(robust_digits((pixels[row.image_id] + row.perturbation)[None]).argmax())
            != row.label
        )
        assert row.forwards == 63 and row.backwards == 60


@pytest.mark.parametrize(("distance", "published"), [(0.05, 1), (0.2, 1), (0.7, 1), (1.3, 2)])
def test_feng2025_gives_what_foolbox_gives_which_is_not_minimal(distance, published):
    """foolbox's own point: its norm is whole steps of length 1, whatever the true distance."""
    import foolbox

    net, image = two_class(distance, "L2", size=(3, 16, 16))
    image = image + torch.linspace(-0.5, 0.5, image.numel()).view_as(
        image
    )  # from 0 to 1: stretching changes nothing
    net.bias[0] -= float((net.weight[0] * (image.flatten() - 0.5)).sum())
    row = attack_rows(run_foolbox, net, [("a", image, 0)], "feng2025", 1000, n_outputs=2).iloc[0]
    theirs = foolbox.attacks.L2FMNAttack(steps=1000, max_stepsize=1, min_stepsize=1e-5, gamma=10)(
        foolbox.PyTorchModel(net.eval(), (0, 1)), image[None], torch.tensor([0]), epsilons=None
    )[1][0]
    torch.testing.assert_close(row.perturbation, theirs - image)
    assert row.l2 == pytest.approx(published, abs=0.15)  # whole steps of 1, less what the box takes
    ours = minimise(net, [("a", image, 0)], BoundaryCrossing("L2", 20), n_outputs=2).iloc[0].l2
    assert distance <= ours <= 1.02 * distance


@pytest.mark.parametrize(
    ("protocol", "steps", "within", "distance"),
    [
        *[
            (*row, d)
            for row in (("ddn", 300, 1.002), ("deepfool", 50, 1.026))
            for d in (0.02, 0.05, 0.2, 0.7, 1.3)
        ],
        ("cw", 1000, 1.01, 0.05),
        *[pytest.param("cw", 1000, 1.01, d, marks=pytest.mark.slow) for d in (0.02, 0.2, 0.7, 1.3)],
    ],
)
def test_library_attacks_that_are_offered_find_closed_form_distances(
    protocol, steps, within, distance
):
    """DeepFool oversteps by 2 %, as its settings say. At 1.3 the box takes part."""
    net, image = two_class(distance, "L2")
    want = box_distance(net, distance)
    row = attack_rows(run_foolbox, net, [("a", image, 0)], protocol, steps, n_outputs=2).iloc[0]
    assert row.success == 1 and want * (1 - 1e-5) <= row.l2 <= within * want


@pytest.mark.parametrize(("protocol", "steps"), [("ddn", 30), ("cw", 20), ("deepfool", 20)])
def test_library_attacks_do_not_depend_on_the_batch(robust_digits, protocol, steps):
    alone, together = (
        attack_rows(
            run_foolbox, robust_digits, digits()[1200:1212], protocol, steps, batch_size=batch_size
        )
        for batch_size in (1, 12)
    )
    assert alone.success.sum() > 5
    pd.testing.assert_series_equal(alone.l2, together.l2, rtol=1e-3)
    assert alone.backwards.sum() == pytest.approx(
        together.backwards.sum(), rel=0.5
    )  # deepfool ends when all have


@pytest.mark.parametrize(
    "seconds_per_image, sizes",
    [(0.1, [1, 2, 4, 8, 8, 7]), (7.0, [1, 2, 4, 8, 8, 7]), (20, [1, *[2] * 14, 1]), (90, [1] * 30)],
)
def test_batches_that_cannot_be_interrupted_are_short(monkeypatch, seconds_per_image, sizes):
    """What a signal costs is bounded by time; on a slow machine a batch is one image."""
    now = [0.0]
    monkeypatch.setattr(libraries.time, "monotonic", lambda: now[0])
    seen = []
    for batch in libraries.paced_batches(iter(range(30)), 8):
        seen.append(len(batch))
        now[0] += seconds_per_image * len(batch)
    assert seen == sizes


def test_stretch():
    x = torch.stack([torch.linspace(0.25, 0.75, 12).view(3, 2, 2), torch.full((3, 2, 2), 0.4)])
    out = stretch(x)
    assert out[0].min() == 0 and out[0].max() == 1 and torch.equal(out[1], x[1])


@pytest.mark.parametrize(
    "bad",
    [
        {"gamma": 1.0},
        {"gamma": 5},
        {"gamma": 0},
        {"steps": 0},
        {"step_size": 0},
        {"step_size": 0.1, "final_step_size": 0.2},
    ],
)
def test_fmn_refuses_settings_that_break_it(bad):
    with pytest.raises(ValueError, match="gamma|steps"):
        FMN("L2", **({"steps": 10} | bad))


@pytest.mark.parametrize(("norm", "p"), [("L2", 2), ("Linf", math.inf), ("L1", 1)])
def test_shrink_onto_ball_only_shrinks(norm, p):
    """Rows inside the ball do not change by a bit; rows outside end on it."""
    delta = torch.randn(6, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    size = torch.linalg.vector_norm(delta.flatten(1), ord=p, dim=1)
    out = shrink_onto_ball(delta.clone(), size * torch.tensor([2, 2, 2, 0.5, 0.5, 0.5]), norm)
    assert torch.equal(out[:3], delta[:3])
    torch.testing.assert_close(
        torch.linalg.vector_norm(out[3:].flatten(1), ord=p, dim=1), size[3:] / 2
    )


@pytest.mark.parametrize("batch_size", [1, 7])
def test_norms_do_not_depend_on_the_batch(robust_digits, batch_size):
    images = digits()[1200:1214]
    whole = minimise(robust_digits, images, FMN("L2", 30), batch_size=14).set_index("image_id")
    parts = minimise(robust_digits, images, FMN("L2", 30), batch_size=batch_size).set_index(
        "image_id"
    )
    np.testing.assert_allclose(parts.l2.loc[whole.index], whole.l2, rtol=1e-4)
    assert (parts.success.loc[whole.index].fillna(-1) == whole.success.fillna(-1)).all()
