"""merge --format robustbench: model_info files as RobustBench has them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from conftest import run_utilities

from alignment_security.analysis import robustbench_export
from alignment_security.analysis.robustbench_export import list_sha256, write_robustbench
from alignment_security.attacks.autoattack import Budget
from alignment_security.common.files import UserError
from alignment_security.common.settings import ROOT
from alignment_security.images.image_sets import checked_set, read_image_list

# of RobustBench/robustbench@78fcc9e, model_info/imagenet/Linf/Salman2020Do_R18.json, in its order
KEYS = (
    "link name authors additional_data number_forward_passes dataset venue architecture eps "
    "clean_acc reported autoattack_acc unreliable"
).split()
# its texts of numbers
SALMAN_R18 = {"eps": "4/255", "clean_acc": "52.92", "autoattack_acc": "25.32"}
STANDARD_R50 = {"eps": "4/255", "clean_acc": "76.52", "autoattack_acc": "0.0"}


def row(model: str = "resnet18_linf_eps4.0", **columns) -> dict:
    """A row of the summary: that of Salman et al.'s ResNet-18 on the leaderboard."""
    return {
        "model": model,
        "threat": "Linf",
        "eps": 4 / 255,
        "image_set": "robustbench",
        "attack": Budget().name,
        "n": 5000,
        "clean_acc": 2646 / 5000,
        "robust_acc": 1266 / 5000,
        "partial": 0,
        "list_sha256": list_sha256(),
        **columns,
    }


def written(folder: Path, *rows: dict) -> dict[str, dict]:
    """{file: its JSON} of a summary of these rows."""
    out = write_robustbench(pd.DataFrame(rows), folder)
    return {path.name: json.loads(path.read_text()) for path in out.iterdir()}


def test_a_model_info_has_robustbenchs_keys_and_texts(tmp_path):
    standard = row("resnet50.tv_in1k", clean_acc=3826 / 5000, robust_acc=0.0)
    infos = written(tmp_path, row(), standard, row("half", eps=2 / 255))
    assert set(infos) == {"resnet18_linf_eps4.0.json", "resnet50.tv_in1k.json"}
    for name, numbers in zip(sorted(infos), (SALMAN_R18, STANDARD_R50)):
        assert list(infos[name]) == KEYS and numbers.items() <= infos[name].items()
        assert infos[name]["dataset"] == "imagenet" and infos[name]["number_forward_passes"] == 1
        assert infos[name]["link"] is infos[name]["unreliable"] is None


def test_what_was_filled_in_by_hand_stays(tmp_path):
    written(tmp_path, row())
    (path,) = tmp_path.rglob("*.json")
    by_hand = {"authors": "Hadi Salman et al.", "venue": "NeurIPS 2020", "footnote": "f"}
    path.write_text(json.dumps(json.loads(path.read_text()) | by_hand | {"clean_acc": "1"}))
    (info,) = written(tmp_path, row()).values()
    assert by_hand.items() <= info.items() and SALMAN_R18.items() <= info.items()
    path.write_text("{")
    with pytest.raises(UserError, match=r"resnet18_linf_eps4.0.json: no JSON"):
        written(tmp_path, row())


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"n": 100, "list_sha256": "other"}, "100 images, not its 5000"),
        ({"attack": "reduced: apgd-ce(10)"}, "reduced: apgd-ce.10."),
        ({"partial": 1}, "unfinished"),
        ({"threat": "L2-autoattack"}, "threat L2-autoattack"),
        ({"image_set": "imagenet-val"}, "images of imagenet-val"),
        ({"eps": 8 / 255}, "eps 8/255"),
        ({"image_set": "mine", "threat": "clean", "eps": float("nan")}, "of mine, threat clean"),
    ],
)
def test_what_robustbench_could_not_compare(tmp_path, capsys, change, reason):
    with pytest.raises(UserError, match=reason):
        written(tmp_path, row(**change))
    assert not list(tmp_path.iterdir())
    assert list(written(tmp_path, row("other"), row(**change))) == ["other.json"]
    assert re.search(f"not for RobustBench: resnet18_linf_.*{reason}", capsys.readouterr().err)


def test_a_reduced_row_beside_the_standard_one_takes_nothing_away(tmp_path, capsys):
    reduced = row(attack="reduced: apgd-ce(10)", robust_acc=0.9)
    for rows in ((row(), reduced), (reduced, row())):
        (info,) = written(tmp_path, *rows).values()
        assert SALMAN_R18.items() <= info.items()
    assert "not for RobustBench" not in capsys.readouterr().err


def test_the_list_is_that_of_a_record():
    rows = read_image_list(ROOT / "lists" / "images" / "robustbench.txt")
    here = Path(__file__)
    images = checked_set("robustbench", [(name, here, label) for name, label in rows])
    assert images.list_sha256 == list_sha256()


def test_merge_writes_it_from_records(tmp_path, tiny_record, capsys, monkeypatch):
    image = {"image_id": "a", "label": 1, "clean_pred": 1, "clean_correct": 1, "eps": 4 / 255}
    tiny_record(
        [image | {"robust": 1}],
        eps=[4 / 255],
        kind="ball",
        threat="Linf",
        protocol="autoattack",
        attack=Budget().name,
    )
    monkeypatch.setattr(robustbench_export, "list_sha256", lambda: "l")
    monkeypatch.setattr(robustbench_export, "IMAGE_SET", "sample")  # the set of tiny_record
    arguments = ["merge", "--results_dir", str(tmp_path), "--format", "robustbench"]
    assert run_utilities(*arguments) == 0
    (path,) = (tmp_path / "robustbench").rglob("*.json")
    assert capsys.readouterr().out.splitlines()[-1] == str(path.parent)
    assert json.loads(path.read_text())["autoattack_acc"] == "100.0"
