"""Human maps over the ceiling of their reading, and the images of Feng 2025, in whole evaluations.

A record that was begun before either existed goes on as it was begun.
"""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.stats import spearmanr

from alignment_security.evaluation.reattack import confirm_examples
from alignment_security.evaluation.run import evaluate
from alignment_security.evaluation.threats.feng2025 import GEOMETRY
from alignment_security.evaluation.threats.foolbox import Foolbox
from alignment_security.evaluation.threats.minimum_norm import Crossing
from alignment_security.images.human_maps import human_map, original_map
from alignment_security.images.loading import load_image_set, read_image
from alignment_security.models.loading import load_model
from alignment_security.records.audit import audit
from alignment_security.records.ceiling import HUMAN_CEILING, MAP_BLUR

# TonyFPY/Adversarial_Alignment@597da67 (dataset.ClickMe, CustomModelWrapper, foolbox's L2FMNAttack
# with 20 steps) on tf_efficientnet_lite2 and the first photographs of `sample` at 256 x 256 pixels:
# L2 norm, and Spearman of its mask with the map as the file has it
PUBLISHED_CODE = {
    "0": (0.9989058971405029, 0.23479916217130506),
    "1": (2.6428802013397217, -0.08645896044943881),
}


@pytest.fixture(scope="module")
def clickme(tmp_path_factory, sample):
    """Two photographs of `sample` as Feng 2025's .pth files of ClickMe."""
    folder = tmp_path_factory.mktemp("clickme")
    for i in range(2):
        image = np.array(read_image(sample.paths[i]).resize((256, 256)))
        drawn = np.asarray(Image.fromarray(original_map(sample, i)).resize((256, 256)))
        heatmap = (drawn * 255).round().clip(0, 255).astype(np.uint8)
        arrays = {
            "image": torch.from_numpy(image).permute(2, 0, 1),
            "heatmap": torch.from_numpy(heatmap)[None],
            "label": torch.tensor([sample.labels[i]]),
        }
        torch.save(arrays, folder / f"{i}.pth")
    return load_image_set("clickme", str(folder))


def run_settings(results, threat: str) -> dict:
    (path,) = results.glob(f"records/clickme/{threat}/*.json")
    return json.loads(path.read_text())["settings"]["run"]


def examples(results, threat: str) -> dict:
    """{image_id: the arrays of its adversarial example}"""
    return {
        path.stem: dict(np.load(path))
        for path in results.glob(f"examples/clickme/{threat}/*/*.npz")
    }


def make_old(results, threat: str, *settings: str) -> None:
    """Take the last image and some settings from a finished record: a run that an earlier version
    began."""
    (path,) = results.glob(f"records/clickme/{threat}/*.json")
    run = json.loads(path.read_text())
    for name in settings:
        del run["settings"]["run"][name]
    for name in ("record_sha256", "images"):
        del run[name]
    path.write_text(json.dumps(run | {"status": "checkpointed"}))
    record = path.with_suffix(".csv")
    record.write_text("".join(record.read_text().splitlines(keepends=True)[:-1]))


# ---- human maps ----------------------------------------------------------------------------------


def test_clickmes_maps_are_blurred_and_the_run_file_says_so(tmp_path, lite0, clickme):
    rows = evaluate(lite0, clickme, Crossing("L2", 5), tmp_path, examples=2)
    settings = run_settings(tmp_path, "L2-crossing")
    assert settings["human_map_blur"] == MAP_BLUR and settings["human_ceiling"] == HUMAN_CEILING
    for i, row in rows.iterrows():
        example = examples(tmp_path, "L2-crossing")[row["image_id"]]
        mask = np.abs(example["delta"].astype(float)).max(axis=2)
        blurred, plain = (human_map(clickme, i, lite0.preprocessing, blur) for blur in (1, 0))
        rho = spearmanr(mask.ravel(), blurred.ravel())[0]
        assert row["human_alignment_raw"] == pytest.approx(rho, abs=2e-3)  # delta is float16 there
        assert abs(rho - spearmanr(mask.ravel(), plain.ravel())[0]) > 0.005
        np.testing.assert_allclose(example["human_map"], blurred, rtol=1e-3, atol=1e-3)
    assert not [problem for problem in audit(tmp_path) if "ceiling" in problem]


def test_a_record_begun_without_blur_goes_on_without_and_the_audit_says_so(
    tmp_path, lite0, clickme
):
    whole = evaluate(lite0, clickme, Crossing("L2", 5), tmp_path)
    make_old(tmp_path, "L2-crossing", "human_map_blur")
    rows = evaluate(lite0, clickme, Crossing("L2", 5), tmp_path)
    assert "human_map_blur" not in run_settings(tmp_path, "L2-crossing")
    pd.testing.assert_series_equal(rows["l2"], whole["l2"], rtol=1e-2)  # another batch
    changed = rows["human_alignment_raw"] != whole["human_alignment_raw"]
    assert changed.tolist() == [False, True]
    (problem,) = [problem for problem in audit(tmp_path) if "ceiling" in problem]
    assert "human maps read without blur over a ceiling of 0.65753" in problem


def test_another_ceiling_is_not_that_of_the_reading(tmp_path, lite0, clickme):
    evaluate(lite0, clickme, Crossing("L2", 5), tmp_path)
    (path,) = tmp_path.glob("records/clickme/L2-crossing/*.json")
    path.write_text(path.read_text().replace(str(HUMAN_CEILING), "0.5"))
    assert any("ceiling of 0.5: 0.65753 is the ceiling" in problem for problem in audit(tmp_path))


# ---- the images of Feng 2025 ---------------------------------------------------------------------


def test_feng2025_has_the_norms_of_the_published_code(tmp_path, clickme):
    """A net of 260 pixels and crop 0.89: the study attacks 224 pixels of crop 0.875."""
    model = load_model("tf_efficientnet_lite2", head="animate")
    rows = evaluate(model, clickme, Foolbox("feng2025", 20), tmp_path, examples=2)
    for i, (l2, rho) in enumerate(PUBLISHED_CODE.values()):
        example = examples(tmp_path, "L2-feng2025")[rows["image_id"][i]]
        assert example["delta"].shape == (224, 224, 3)
        mask = np.abs(example["delta"].astype(float).max(axis=2))
        as_filed = clickme_map(clickme, i)[16:240, 16:240]
        assert rows["l2"][i] == pytest.approx(l2, rel=2e-3)
        assert spearmanr(mask.ravel(), as_filed.ravel())[0] == pytest.approx(rho, abs=5e-3)
    assert run_settings(tmp_path, "L2-feng2025")["geometry"] == GEOMETRY


def clickme_map(images, i: int) -> np.ndarray:
    return torch.load(images.paths[i])["heatmap"][0].numpy()


def test_a_net_of_224_pixels_has_the_norms_it_had(tmp_path, clickme):
    """Lite0 has the study's size and crop: a run begun without `geometry` has the same numbers."""
    model = load_model("tf_efficientnet_lite0", head="animate")
    whole = evaluate(model, clickme, Foolbox("feng2025", 3), tmp_path)
    make_old(tmp_path, "L2-feng2025", "geometry", "human_map_blur")
    rows = evaluate(model, clickme, Foolbox("feng2025", 3), tmp_path)
    pd.testing.assert_series_equal(rows["l2"], whole["l2"], rtol=1e-6)


def test_a_feng2025_record_begun_on_the_nets_own_pixels_goes_on_on_them(tmp_path, clickme):
    model = load_model("tf_efficientnet_lite2", head="animate")
    evaluate(model, clickme, Foolbox("feng2025", 20), tmp_path, examples=2)
    make_old(tmp_path, "L2-feng2025", "geometry")
    evaluate(model, clickme, Foolbox("feng2025", 20), tmp_path, examples=2)
    assert "geometry" not in run_settings(tmp_path, "L2-feng2025")
    found = examples(tmp_path, "L2-feng2025")
    assert [found[name]["delta"].shape[0] for name in ("0", "1")] == [224, 260]


def test_an_example_of_feng2025_is_attacked_again_on_its_own_pixels(tmp_path, clickme):
    model = load_model("tf_efficientnet_lite2", head="animate")
    evaluate(model, clickme, Foolbox("feng2025", 20), tmp_path, examples=2)
    findings, sentence = confirm_examples(tmp_path, 2)
    assert findings == [] and sentence.startswith("2 of 2 examples confirmed")
