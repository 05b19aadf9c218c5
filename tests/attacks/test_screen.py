"""The screen of `--budget screened`: APGD-CE and the walk, at one eps and at several."""

from __future__ import annotations

import pandas as pd
import pytest
from nets import attack_rows, digits, rows_of, two_class

from alignment_security.attacks.attacked_model import AttackedModel
from alignment_security.attacks.autoattack import Budget, run_autoattack
from alignment_security.attacks.minimum_norm import run_minimum_norm
from alignment_security.attacks.screen import run_screen, screening_walk

IMAGES = digits()[1200:1230]
EPS = [0.06, 0.1, 0.14]


def screen(net, images, norm="Linf", eps=EPS, **options) -> pd.DataFrame:
    rows = attack_rows(run_screen, net, images, norm, eps, **options)
    return rows.set_index(["image_id", "eps"]).sort_index()


@pytest.mark.parametrize("norm, eps", [("Linf", EPS), ("Linf", [0.1]), ("L2", [0.3, 0.8])])
def test_an_image_stands_where_neither_apgd_nor_the_walk_breaks_it(robust_digits, norm, eps):
    rows = screen(robust_digits, IMAGES, norm, eps, batch_size=16)
    walk = attack_rows(run_minimum_norm, robust_digits, IMAGES, screening_walk(norm))
    norms = walk.set_index("image_id")[norm.lower()]
    for level in eps:
        apgd = attack_rows(
            run_autoattack, robust_digits, IMAGES, norm, [level], Budget(("apgd-ce",))
        ).set_index("image_id")
        standing = (apgd["robust"] == 1) & ~(norms <= level)
        at_eps = rows.xs(level, level="eps")
        assert at_eps["robust"].to_dict() == standing.astype(int).to_dict()
        found = at_eps["screen_norm"].dropna()
        assert found.to_dict() == pytest.approx(norms[found.index].to_dict(), rel=1e-3)
    broken = rows[(rows["robust"] == 0) & (rows["broken_by"] != "clean")]
    levels = broken.index.get_level_values("eps")
    assert (broken[norm.lower()] <= levels * (1 + 1e-5)).all()
    assert set(broken["broken_by"]) <= {"apgd-ce", f"crossing-{norm}"}
    assert (rows["robust"].groupby("image_id").diff().dropna() <= 0).all()


def test_the_walk_of_a_linear_net_decides_every_eps_above_the_distance():
    net, image = two_class(0.3, "Linf")
    run = run_screen(AttackedModel(net, 2), [("a", image, 0)], "Linf", [0.1, 0.2, 0.31, 0.4])
    rows = rows_of(run).sort_values("eps")
    assert rows["robust"].tolist() == [1, 1, 0, 0]
    assert rows["screen_norm"].tolist() == pytest.approx([0.3] * 4, rel=0.01)


def test_rows_depend_on_neither_order_nor_batch_nor_what_was_written(robust_digits):
    exact = ["robust", "broken_by", "from_eps"]
    wanted = screen(robust_digits, IMAGES[:12], batch_size=12)
    for images, size in ((IMAGES[11::-1], 12), (IMAGES[:12], 5)):
        rows = screen(robust_digits, images, batch_size=size)
        pd.testing.assert_frame_equal(rows[exact], wanted[exact])
        pd.testing.assert_series_equal(rows["screen_norm"], wanted["screen_norm"], rtol=1e-3)
    known = {"digit1200": [{"eps": 0.06}, {"eps": 0.1}]}
    left = screen(robust_digits, IMAGES[:1], begun=known)
    assert left.index.tolist() == [("digit1200", 0.14)]


@pytest.mark.parametrize("wanted", [[0.06], [0.1, 0.14], EPS])
def test_an_image_is_attacked_at_the_eps_that_are_wanted(robust_digits, wanted):
    """The full budget's verdicts are those of a run at these eps alone."""
    budget = Budget(steps=10, targets=2, queries=20)
    names = {name: wanted if i % 2 else [0.1] for i, (name, _, _) in enumerate(IMAGES[:8])}
    run = run_autoattack(
        AttackedModel(robust_digits, 10), IMAGES[:8], "Linf", EPS, budget, wanted=names
    )
    rows = rows_of(run).set_index(["image_id", "eps"]).sort_index()
    assert set(rows.index) == {(name, eps) for name, levels in names.items() for eps in levels}
    alone = attack_rows(run_autoattack, robust_digits, IMAGES[:8], "Linf", wanted, budget)
    verdicts = alone.set_index(["image_id", "eps"])["robust"]
    odd = [key for key in verdicts.index if key[0] in list(names)[1::2]]
    assert rows["robust"].loc[odd].to_dict() == verdicts.loc[odd].to_dict()
