"""Saliency: the input gradient against human maps, by a direct computation and by the script."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from alignment_security.common.files import UserError
from alignment_security.evaluation import Saliency, evaluate
from alignment_security.images.human_maps import human_map
from alignment_security.images.loading import load_image_set, stream_images
from alignment_security.records.audit import audit
from alignment_security.records.record import read_record, read_run_file
from alignment_security.records.summary import merge_records

CEILING = 0.65753  # between people (Fel et al. 2022)


def direct(model, images, reduce) -> list[float]:
    """Spearman's rho of the gradient's map with the human map, image by image."""
    found = []
    for i, (_, pixels, label) in enumerate(stream_images(images, model.preprocessing)):
        x = pixels[None].clone().requires_grad_()
        model.module(x)[0, label].backward()
        attention = human_map(images, i, model.preprocessing)
        assert x.grad is not None and attention is not None
        found.append(spearmanr(reduce(x.grad[0]).flatten(), attention.flatten()).statistic)
    return found


REDUCTIONS = {"max": lambda g: g.abs().amax(0), "l2": lambda g: g.norm(dim=0)}


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_saliency_is_the_direct_computation(lite0, sample, reduction):
    rows = evaluate(lite0, sample, Saliency(reduction), batch_size=8)
    wanted = np.array(direct(lite0, sample, REDUCTIONS[reduction]))
    assert len(wanted) == 20 and wanted.std() > 0.01
    # a batch of eight sums in another order than a single image
    np.testing.assert_allclose(rows["human_alignment_raw"], wanted, atol=1e-4)
    np.testing.assert_allclose(
        rows["human_alignment"], rows["human_alignment_raw"] / CEILING, rtol=1e-9
    )


def test_saliency_takes_misclassified_images_too(cli, tiny, tmp_path, sample):
    """A net of random weights is wrong on the sample; the summary's mean is over all images."""
    request = ["--model_name", tiny.name, "--checkpoint", tiny.checkpoint, "--results_dir"]
    request += [tmp_path, "--device", "cpu", "saliency"]
    status, out, err = cli(*request)
    assert status == 0, err
    path = tmp_path / f"records/sample/saliency/{tiny.name}.csv"
    rows, run = read_record(path), read_run_file(path.with_suffix(".json"))
    assert list(rows) == ["image_id", "label", "clean_pred", "clean_correct"] + [
        "human_alignment_raw",
        "human_alignment",
    ]
    assert rows["clean_correct"].mean() < 0.5 and rows["human_alignment"].notna().all()
    assert run["settings"]["run"]["human_map"].startswith("hand-drawn")
    (summary,) = merge_records(tmp_path).to_dict("records")
    assert summary["human_alignment"] == pytest.approx(rows["human_alignment"].mean(), abs=1e-12)
    assert summary["n_alignment"] == 20
    assert f"mean {rows['human_alignment'].mean():.4f} over 20 images" in out
    found = [line for line in audit(tmp_path) if "git" not in line]
    assert [line for line in found if "its run warned" not in line] == []  # of a net that guesses


def test_saliency_goes_on_with_a_record(lite0, sample, cli, tmp_path):
    request = ["--model_name", "tf_efficientnet_lite0", "--results_dir", tmp_path, "--device"]
    request += ["cpu", "--batch_size", "4", "-s", "6"]
    assert cli(*request, "--stop_after", "1e-9", "saliency")[0] == 85
    assert cli(*request, "saliency")[0] == 0
    path = tmp_path / "records/sample/saliency/tf_efficientnet_lite0.csv"
    whole = evaluate(lite0, sample, Saliency()).set_index("image_id")["human_alignment_raw"]
    rows = read_record(path).set_index("image_id")["human_alignment_raw"]
    np.testing.assert_allclose(rows, whole[rows.index], atol=1e-4)


def test_images_without_maps_are_refused(lite0, tiny):
    images = load_image_set("mine", str(tiny.data))
    with pytest.raises(UserError, match="^mine: has no human maps, .*--map_dir"):
        evaluate(lite0, images, Saliency())


def test_a_gradient_of_zero_has_no_value(lite0, sample):
    """No rank correlation of a constant map: the cell is empty."""

    class Constant(nn.Module):
        def forward(self, x):
            return 0 * x.flatten(1)[:, :1000] + torch.arange(1000)

    model = replace(lite0, module=Constant().eval())
    rows = evaluate(model, sample.take(range(3)), Saliency())
    assert rows["human_alignment_raw"].isna().all()
