"""`--budget screened` from images to summary: two phases, kills, tampering, words and figures."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from alignment_security.analysis.results import load_results
from alignment_security.attacks.attack import AttackError
from alignment_security.attacks.autoattack import Budget
from alignment_security.common.files import UserError, sha256_file
from alignment_security.common.remarks import is_remark
from alignment_security.evaluation import Screened, Stopped, evaluate, robust_estimates
from alignment_security.images.image_sets import ImageSet, synsets
from alignment_security.images.loading import load_image_set
from alignment_security.models.heads import Model
from alignment_security.models.loaded_net import checked_net
from alignment_security.models.loading import as_model
from alignment_security.plots.attacks import FIGURES as ATTACK_FIGURES
from alignment_security.plots.records import accuracy_vs_eps
from alignment_security.plots.report_leaderboard import leaderboard
from alignment_security.records.audit import audit
from alignment_security.records.record import read_record
from alignment_security.records.run import Run
from alignment_security.records.screened import SAMPLE, SCREENED, TOP, choice_of
from alignment_security.records.summary import merge_records, summary_table
from alignment_security.records.trace import print_trace

SIZE, IMAGES = 12, 20
EPS = (0.0005, 0.003)
SMALL = Budget(steps=2, targets=1, queries=3)
LINF = Screened("Linf", EPS, SMALL)


@pytest.fixture(scope="module")
def net() -> Model:
    """A net of random weights for 12 x 12 pixels, a second's worth of the screen on all images."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 25, 1000)
        )
    preprocessing = {
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "input_size": (3, SIZE, SIZE),
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "crop_mode": "center",
    }
    return as_model(checked_net(module.eval(), "random", preprocessing, "small"), "small")


@pytest.fixture(scope="module")
def noise(net, tmp_path_factory) -> ImageSet:
    """Images of noise in the folders of the classes that the net predicts, but for every tenth."""
    root, pixels = tmp_path_factory.mktemp("noise"), np.random.default_rng(0)
    for k in range(IMAGES):
        image = pixels.integers(0, 256, (SIZE, SIZE, 3), np.uint8)
        x = torch.from_numpy(image).permute(2, 0, 1).float() / 255
        label = (int(net.module(x[None]).argmax()) + (k % 10 == 9)) % 1000
        folder = root / synsets()[label]
        folder.mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / f"{k:02}.png")
    return load_image_set("mine", str(root))


def run_at(results: Path, net: Model, images: ImageSet, threat=LINF, **options) -> pd.DataFrame:
    return evaluate(net, images, threat, results, **{"batch_size": 20} | options)


def csv_of(results: Path) -> Path:
    (path,) = results.glob("records/*/*/*.csv")
    return path


@pytest.fixture(scope="module")
def whole(net, noise, tmp_path_factory) -> Path:
    """A results folder with one finished record."""
    results = tmp_path_factory.mktemp("whole")
    run_at(results, net, noise)
    return results


def tampered(results: Path, tmp_path: Path, change) -> list[str]:
    """What the audit finds once rows were changed, and the hash in the run file with them."""
    copy = shutil.copytree(results, tmp_path / "tampered")
    path = csv_of(copy)
    rows = pd.read_csv(path, dtype=str, keep_default_na=False)
    change(rows)
    path.write_text(rows.to_csv(index=False, lineterminator="\n"))
    run_file = path.with_suffix(".json")
    info = json.loads(run_file.read_text()) | {"record_sha256": sha256_file(path)}
    run_file.write_text(json.dumps(info))
    return audit(copy)


# ---- the two phases ------------------------------------------------------------------------------


def test_a_record_has_the_full_budget_for_the_images_that_its_screen_implies(whole, noise):
    rows = read_record(csv_of(whole))
    assert len(rows) == len(EPS) * IMAGES and csv_of(whole).parent.name == "Linf-screened"
    implied, chosen = choice_of(rows, LINF.seed), rows[rows.stage != SCREENED]
    assert dict(zip(zip(chosen.image_id, chosen.eps), chosen.stage)) == implied
    assert {TOP, SAMPLE} == set(implied.values())
    standing = rows[(rows.stage == SCREENED) & (rows.robust == 1)]
    assert (standing.screen_norm > standing.eps).all() and len(standing)
    assert not [line for line in audit(whole) if "small.csv" in line and "git" not in line]


@pytest.mark.parametrize("threat", [LINF, Screened("L2", (0.05,), SMALL)], ids=["Linf", "L2"])
def test_killed_after_any_write_it_ends_with_the_same_bytes(
    net, noise, tmp_path, monkeypatch, threat
):
    """A copy of the files after each append is what kill -9 leaves at that moment."""
    whole, append = tmp_path / "whole", Run.append
    copies: list[Path] = []

    def copied(run, rows):
        append(run, rows)
        if rows:
            copies.append(tmp_path / f"copy{len(copies)}")
            shutil.copytree(whole, copies[-1], ignore=shutil.ignore_patterns("*.lock"))

    with monkeypatch.context() as patch:
        patch.setattr(Run, "append", copied)
        run_at(whole, net, noise, threat)
    wanted = csv_of(whole).read_bytes()
    stages = [read_record(csv_of(copy))["stage"] for copy in copies]
    second = [i for i, stage in enumerate(stages) if (stage != SCREENED).any()]
    assert 0 < second[0] < len(copies) - 1
    torn = shutil.copytree(copies[-1], tmp_path / "torn")
    os.truncate(csv_of(torn), csv_of(torn).stat().st_size - 20)
    for i in (0, second[0] - 1, second[0]):
        run_at(copies[i], net, noise, threat)
        assert csv_of(copies[i]).read_bytes() == wanted
    run_at(torn, net, noise, threat)
    verdicts = [
        read_record(csv_of(path))[["image_id", "robust", "stage"]] for path in (torn, whole)
    ]
    pd.testing.assert_frame_equal(*verdicts)


def test_neither_order_nor_batch_size_matters(net, noise, whole, tmp_path):
    rows = read_record(csv_of(whole)).set_index(["image_id", "eps"]).sort_index()
    backwards = noise.take(range(IMAGES)[::-1])
    for name, images, size in (("order", backwards, 20), ("batch", noise, 7)):
        run_at(tmp_path / name, net, images, batch_size=size)
        found = read_record(csv_of(tmp_path / name)).set_index(["image_id", "eps"]).sort_index()
        exact = ["robust", "broken_by", "stage"]
        pd.testing.assert_frame_equal(found[exact], rows[exact])
        pd.testing.assert_series_equal(found["screen_norm"], rows["screen_norm"], rtol=1e-4)


@pytest.mark.parametrize("eps, robust", [((1e-6,), 0.9), ((1.0,), 0.0), ((1e-6, 1.0), 0.9)])
def test_a_screen_that_breaks_none_or_all(net, noise, eps, robust):
    rows = evaluate(net, noise, Screened("Linf", eps, SMALL), batch_size=20)
    found = robust_estimates(rows)
    assert found.loc[eps[0], "robust_estimate"] == pytest.approx(robust)
    if eps[-1] == 1:
        assert found.loc[1.0, ["robust_low", "robust_high"]].tolist() == [0, 0]
        assert set(rows.loc[rows.eps == 1, "stage"]) == {SCREENED}


def test_one_image_has_the_verdict_of_the_full_budget(net, noise):
    rows = evaluate(net, noise.take([0]), LINF, batch_size=20)
    found = robust_estimates(rows)
    assert (found["robust_low"] == found["robust_high"]).all()
    assert set(rows["stage"]) <= {TOP, SCREENED}


def test_what_stopped_at_a_deadline_goes_on(net, noise, whole, tmp_path):
    for _ in range(2):
        with pytest.raises(Stopped):
            run_at(tmp_path, net, noise, stop_after=1e-9)
    run_at(tmp_path, net, noise)
    assert csv_of(tmp_path).read_bytes() == csv_of(whole).read_bytes()


# ---- what is refused -----------------------------------------------------------------------------


def test_a_finished_record_does_not_grow(net, noise, whole, tmp_path):
    results = shutil.copytree(whole, tmp_path / "copy")
    before = csv_of(results).read_bytes()
    for images, threat in (
        (noise.take(range(IMAGES - 1)), LINF),
        (noise, replace(LINF, eps=(*EPS, 0.01))),
    ):
        with pytest.raises(UserError, match="cannot grow, since its sample is of its images"):
            run_at(results, net, images, threat)
    assert csv_of(results).read_bytes() == before


def test_the_clean_accuracy_is_not_screened():
    with pytest.raises(AttackError, match="eps 0 is the clean accuracy"):
        Screened("Linf", (0.0, 0.1))


@pytest.mark.parametrize(
    "option, says",
    [
        (["--steps", "5"], "leave out --attacks"),
        (["--attacks", "square"], "leave out --attacks"),
        (["--queries", "9"], "leave out --attacks"),
        (["--engine", "reference"], "--budget screened: not with --engine reference"),
    ],
)
def test_another_second_phase_than_the_standard_one_is_refused(cli, tiny, tmp_path, option, says):
    command = ["Linf", "--eps", "1/255", "--budget", "screened", *option]
    status, _, err = cli(*tiny.arguments(tmp_path), *command)
    assert status == 2 and says in err and not list(tmp_path.iterdir())


# ---- the audit -----------------------------------------------------------------------------------


def exchange(rows: pd.DataFrame) -> None:
    """An image of the sample and one that was not chosen change their places."""
    at_eps = rows["eps"] == rows["eps"].iloc[0]
    stands = at_eps & (rows["robust"] == "1")
    sampled, other = (rows.index[stands & (rows["stage"] == s)][0] for s in (SAMPLE, SCREENED))
    rows.loc[[sampled, other], "stage"] = [SCREENED, SAMPLE]


def drop_from_sample(rows: pd.DataFrame) -> None:
    rows.loc[rows.index[rows["stage"] == SAMPLE][0], "stage"] = SCREENED


def move_to_top(rows: pd.DataFrame) -> None:
    rows.loc[rows.index[rows["stage"] == SAMPLE][0], "stage"] = TOP


def change_a_norm(rows: pd.DataFrame) -> None:
    """The image furthest from the boundary becomes the nearest."""
    norms = pd.to_numeric(rows["screen_norm"]).where(rows["robust"] == "1")
    rows.loc[norms.idxmax(), "screen_norm"] = str(norms.min() * 0.999)


def rename_a_stage(rows: pd.DataFrame) -> None:
    rows.loc[0, "stage"] = "standard"


@pytest.mark.parametrize(
    "change", [exchange, drop_from_sample, move_to_top, change_a_norm, rename_a_stage]
)
def test_a_sample_that_the_rows_do_not_imply_is_found(whole, tmp_path, change):
    findings = tampered(whole, tmp_path, change)
    assert any("another image was sampled than the rows imply" in line for line in findings)


def test_a_wide_interval_is_told_with_what_makes_it_exact(whole):
    """As a remark. The images that stand are few here; none is wide where all get the budget."""
    rows = read_record(csv_of(whole))
    (note,) = LINF.notes_on(rows)
    found = robust_estimates(rows)
    width = (found["robust_high"] - found["robust_low"]).max()
    assert width > 0.1 and f"is {round(100 * width)} points wide" in note and is_remark(note)
    assert "--budget standard" in note
    everything = rows.assign(stage=rows["stage"].where(rows["robust"] == 0, SAMPLE))
    assert LINF.notes_on(everything) == []


# ---- words and figures ---------------------------------------------------------------------------


def test_the_summary_has_the_interval_and_never_says_autoattack(whole, tmp_path):
    summary = merge_records(shutil.copytree(whole, tmp_path / "copy"))
    text = (tmp_path / "copy" / "evaluation_results.csv").read_text() + summary_table(summary)
    assert "autoattack" not in text.lower()
    wanted = robust_estimates(read_record(csv_of(whole))).reset_index(drop=True)
    pd.testing.assert_frame_equal(summary[wanted.columns], wanted, check_dtype=False)
    assert "robust_acc" not in summary or summary["robust_acc"].isna().all()
    assert (summary["robust_low"] < summary["robust_high"]).any()
    shown = f"({100 * wanted.robust_low[0]:.1f} to {100 * wanted.robust_high[0]:.1f})"
    assert shown in summary_table(summary)


def test_an_unfinished_record_has_no_estimate(net, noise, whole, tmp_path):
    copy = shutil.copytree(whole, tmp_path / "copy")
    run_file = csv_of(copy).with_suffix(".json")
    info = json.loads(run_file.read_text()) | {"status": "running"}
    run_file.write_text(json.dumps(info))
    with pytest.raises(UserError, match="unfinished run"):
        merge_records(copy, allow_partial=True)


def test_figures_and_page_have_the_interval_and_do_not_count_verdicts(whole, tmp_path):
    copy = shutil.copytree(whole, tmp_path / "copy")
    summary = merge_records(copy)
    results = load_results(copy)
    ((_, figure, table, caption),) = accuracy_vs_eps(results)
    estimates = table[table["eps"] > 0].reset_index(drop=True)
    for name, column in (("accuracy", "estimate"), ("low", "low"), ("high", "high")):
        assert estimates[name].tolist() == summary[f"robust_{column}"].tolist()
    assert "estimate" in caption and "autoattack" not in caption.lower()
    for draw, _ in ATTACK_FIGURES.values():
        assert not list(draw(results))
    page = leaderboard(results, tmp_path).html
    assert f"[{100 * summary.robust_low[0]:.1f}, {100 * summary.robust_high[0]:.1f}]" in page
    path = tmp_path / "accuracy_vs_eps.csv"
    table.to_csv(path, index=False)
    print_trace(path, copy)
