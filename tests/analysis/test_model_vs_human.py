"""Error consistency and shape bias on made trials whose values are worked out by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from conftest import run_utilities
from sklearn.metrics import cohen_kappa_score

from alignment_security.analysis.model_vs_human import (
    as_condition,
    error_consistency,
    image_of,
    model_scores,
    read_trials,
    shape_bias,
    texture_category,
)
from alignment_security.analysis.other_scores import read_scores_of
from alignment_security.common.files import UserError


def bools(text: str) -> np.ndarray:
    return np.array([letter == "1" for letter in text])


@pytest.mark.parametrize(
    "a, b, kappa",
    [
        ("1110", "1010", 0.5),  # observed 3/4, expected 3/4 * 1/2 + 1/4 * 1/2 = 1/2
        ("1100", "1010", 0.0),  # observed 1/2, expected 1/2
        ("1100", "0011", -1.0),  # observed 0, expected 1/2
        ("1101", "1101", 1.0),
        ("1111", "1111", 1.0),  # expected 1 too: agreement counts
        ("1111", "1100", 0.0),  # observed 1/2, expected 1/2
    ],
)
def test_error_consistency_by_hand(a, b, kappa):
    assert error_consistency(bools(a), bools(b)) == pytest.approx(kappa, abs=1e-12)


def test_error_consistency_is_cohens_kappa():
    rng = np.random.default_rng(0)
    for _ in range(50):
        a, b = rng.random((2, 200)) < rng.random((2, 1))
        assert error_consistency(a, b) == pytest.approx(cohen_kappa_score(a, b), abs=1e-12)


@pytest.mark.parametrize(
    "name, image",
    [
        ("0000_cl_s01_bw_boat_40_n02951358_5952.JPEG", "n02951358_5952.JPEG"),
        ("0001_s5n_s01_0_bird_00_bird3-bird2.png", "bird3-bird2.png"),
        ("airplane1-bicycle2.png", "airplane1-bicycle2.png"),
    ],
)
def test_the_part_of_a_name_that_observers_share(name, image):
    assert image_of(name) == image


def test_textures_and_conditions():
    assert texture_category("0004_s5n_s01_0_truck_00_truck6-boat2.png") == "boat"
    assert as_condition("0.60") == as_condition("0.6") and as_condition("true") == as_condition(
        "True"
    )
    assert as_condition("inf") == "inf" != as_condition("1-10-10")


def trial(subject: str, response: str, category: str, image: str, condition="0") -> dict:
    return {
        "subj": subject,
        "session": 1,
        "trial": 1,
        "rt": "NaN",
        "object_response": response,
        "category": category,
        "condition": condition,
        "imagename": image,
    }


def test_shape_bias_by_hand(tmp_path):
    """Two shapes, one texture, one neither; the image without a conflict does not count: 2/3."""
    names = ["cat1-dog2.png", "cat2-bird1.png", "boat1-dog1.png", "bear1-car1.png", "cat3-cat1.png"]
    answers = ["cat", "cat", "dog", "oven", "cat"]
    rows = [
        trial("net", answer, name.rstrip("g.pn").split("-")[0].rstrip("123"), f"0001_x_{name}")
        for name, answer in zip(names, answers)
    ]
    assert shape_bias(pd.DataFrame(rows)) == pytest.approx(2 / 3, abs=1e-12)
    assert np.isnan(shape_bias(pd.DataFrame(rows[3:])))


def write_trials(folder, dataset: str, answers: dict[str, dict[str, str]]) -> None:
    """answers   observer -> {condition: right (1) or wrong (0) for images 0, 1, ...}"""
    for i, (subject, by_condition) in enumerate(answers.items()):
        rows = [
            trial(subject, "cat" if right == "1" else "dog", "cat", f"00{i}{k}_e_{c}-{k}.png", c)
            for c, text in by_condition.items()
            for k, right in enumerate(text)
        ]
        path = folder / dataset / f"{dataset}_{subject}_session_1.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        table = pd.DataFrame(rows)
        if subject == "net":  # another order and other capitals
            table = table[::-1].rename(columns={"session": "Session", "condition": "Condition"})
        table.to_csv(path, index=False)


def test_the_mean_is_over_conditions_people_and_datasets(tmp_path):
    """Kappas: edge 0.5 and 1; contrast (0 + 1) / 2 and (-1 + 1) / 2, c100 is left out."""
    write_trials(
        tmp_path,
        "edge",
        {"net": {"0": "1110"}, "subject-01": {"0": "1010"}, "subject-02": {"0": "1110"}},
    )
    write_trials(
        tmp_path,
        "contrast",
        {
            "net": {"c50": "1100", "c30": "1101", "c100": "1111"},
            "subject-01": {"c50": "1010", "c30": "1101", "c100": "0000"},
            "subject-02": {"c50": "0011", "c30": "1101", "c100": "0001"},
        },
    )
    scores = model_scores(read_trials(tmp_path))
    assert list(scores.index) == ["net"]
    wanted = ((0.5 + 1) / 2 + (0.5 + 0) / 2) / 2
    assert scores.loc["net", "error_consistency"] == pytest.approx(wanted, abs=1e-12)
    assert scores.loc["net", "error_consistency_datasets"] == 2
    assert np.isnan(scores.loc["net", "shape_bias"])


def test_the_command_writes_a_table_that_joins(tmp_path, capsys):
    folder, out = tmp_path / "raw-data", tmp_path / "scores.csv"
    people = {"0": "1010"}
    write_trials(folder, "edge", {"net": {"0": "1110"}, "subject-01": people})
    command = ["model_vs_human", str(folder), "--out", str(out)]
    assert run_utilities(*command) == 0
    scores = read_scores_of(out)  # the number of datasets is no score
    assert list(scores) == ["error_consistency"]
    assert scores.loc["net", "error_consistency"] == pytest.approx(0.5, abs=1e-12)
    assert "left out shape_bias (no value)" in capsys.readouterr().out


def test_trials_that_cannot_be_compared_are_one_line(tmp_path):
    with pytest.raises(UserError, match="no trials in it"):
        read_trials(tmp_path)
    write_trials(tmp_path, "edge", {"net": {"0": "111"}, "subject-01": {"0": "1010"}})
    with pytest.raises(UserError, match="edge: net and subject-01 did not see the same images"):
        model_scores(read_trials(tmp_path))
    path = tmp_path / "edge" / "edge_net_session_1.csv"
    table = pd.read_csv(path)
    pd.concat([table, table[:1]]).to_csv(path, index=False)
    with pytest.raises(UserError, match="edge: net has .* twice"):
        read_trials(tmp_path)
    table.drop(columns="category").to_csv(path, index=False)
    with pytest.raises(UserError, match="no column category"):
        read_trials(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match="no trials of both people .* and networks"):
        model_scores(read_trials(tmp_path))
