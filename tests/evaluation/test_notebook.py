"""`evaluate` as a notebook calls it: the lines of docs/notebook.md, and the script's own record."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import timm
from conftest import ROOT
from torch import nn

from alignment_security.attacks.autoattack import Budget
from alignment_security.common.files import UserError, safe_file_name
from alignment_security.evaluation import (
    AutoAttack,
    Clean,
    Corruptions,
    Crossing,
    FastMinimumNorm,
    Foolbox,
    evaluate,
)
from alignment_security.images.loading import load_image_set
from alignment_security.models.loading import load_model
from alignment_security.records.record import read_record, read_run_file


@pytest.fixture(scope="module")
def tiny_model(tiny):
    return load_model(tiny.name, tiny.checkpoint)


@pytest.fixture(scope="module")
def tiny_images(tiny):
    return load_image_set("mine", str(tiny.data))


def test_the_lines_of_the_notebook_page_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "notebook.md").read_text()
    first, _, _, own_network = re.findall(r"```python\n(.*?)```", page, re.S)
    names: dict = {}
    exec(first, names)
    exec(own_network, names)
    assert set(names["clean"]["image_id"]) == set(names["images"].ids)
    rows = names["rows"]
    assert set(rows["image_id"]) == set(names["images"].ids)
    assert rows["robust"].isin([0, 1]).all()
    assert list(tmp_path.iterdir()) == []


def test_the_lines_that_check_an_example_check_it(lite0, sample, tmp_path, monkeypatch):
    """With plain timm: the class is pred_index, the norms are those of the file and the record."""
    threat = AutoAttack("Linf", (4 / 255,), Budget(("apgd-ce",), 2))
    rows = evaluate(lite0, sample.take([0, 1]), threat, tmp_path, examples=2).set_index("image_id")
    page = (ROOT / "docs" / "notebook.md").read_text()
    (lines,) = (
        text for text in re.findall(r"```python\n(.*?)```", page, re.S) if "np.load" in text
    )
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: lite0.module.net)
    paths = sorted(tmp_path.glob("examples/*/*/*/*.npz"))
    assert len(paths) == (rows["robust"] == 0).sum() > 0
    for path in paths:
        names: dict = {}
        exec(re.sub(r'np.load\(".*?"\)', f"np.load({str(path)!r})", lines), names)
        example = names["example"]
        (row,) = (row for name, row in rows.iterrows() if safe_file_name(str(name)) == path.stem)
        assert int(names["pred"]) == example["pred_index"] == row["adv_pred"]
        assert example["label_index"] == row["label"] and int(names["pred"]) != row["label"]
        linf, l2 = np.abs(example["delta"]).max(), np.linalg.norm(example["delta"].astype(float))
        assert names["norms"][0] == linf == row["linf"]
        assert example["l2"] == row["l2"] == pytest.approx(l2, rel=5e-7)


def test_warnings_are_printed_whether_or_not_a_record_is_kept(
    tiny_model, tiny_images, tmp_path, capsys
):
    module = nn.Sequential(tiny_model.module, nn.Softmax(1)).eval()
    model = replace(tiny_model, module=module)
    images = tiny_images.take([0, 1])
    for folder in (None, tmp_path, tmp_path):  # without, with, and from a finished record
        evaluate(model, images, Clean(), folder)
        (line,) = re.findall(".*probabilities.*", capsys.readouterr().out)
        assert line.startswith("  warning: ")


THREATS = {
    "clean": (Clean(), ["clean"]),
    "Linf": (
        AutoAttack("Linf", (64 / 255, 16 / 255), Budget(("apgd-ce", "square"), 4, queries=20)),
        ["Linf", "--eps", "16/255", "64/255", "--attacks", "apgd-ce", "square", "--steps", "4"]
        + ["--queries", "20"],
    ),
    "L2-fmn": (FastMinimumNorm("L2", steps=10), ["L2", "--protocol", "fmn", "--steps", "10"]),
    "Linf-crossing": (
        Crossing("Linf", steps=10),
        ["Linf", "--protocol", "crossing", "--steps", "10"],
    ),
    "L2-ddn": (Foolbox("ddn", steps=10), ["L2", "--protocol", "ddn", "--steps", "10"]),
}


@pytest.mark.parametrize("name", THREATS)
def test_evaluate_writes_the_record_of_the_script(
    cli, tiny, tiny_model, tiny_images, tmp_path, name
):
    threat, command = THREATS[name]
    assert cli(*tiny.arguments(tmp_path / "script"), *command)[0] == 0
    rows = evaluate(tiny_model, tiny_images, threat, tmp_path / "notebook", batch_size=4)
    relative = f"records/mine/{name}/{tiny.name}"
    script, notebook = tmp_path / "script" / relative, tmp_path / "notebook" / relative
    assert threat.name == name
    assert script.with_suffix(".csv").read_bytes() == notebook.with_suffix(".csv").read_bytes()
    ours, theirs = (
        read_run_file(path.with_suffix(".json"))["settings"] for path in (notebook, script)
    )
    assert ours == theirs
    pd.testing.assert_frame_equal(rows, read_record(notebook.with_suffix(".csv")))


def test_evaluate_without_a_folder_returns_the_same_rows(tiny_model, tiny_images, tmp_path):
    threat = Crossing("L2", steps=5)
    kept = evaluate(tiny_model, tiny_images, threat, tmp_path, batch_size=4)
    pd.testing.assert_frame_equal(
        evaluate(tiny_model, tiny_images, threat, batch_size=4), kept, check_dtype=False
    )


def test_evaluate_goes_on_with_a_record(cli, tiny, tiny_model, tiny_images, tmp_path):
    command = [*tiny.arguments(tmp_path), "--stop_after", "1e-9", "clean"]
    assert cli(*command)[0] == 85
    rows = evaluate(tiny_model, tiny_images, Clean(), tmp_path, batch_size=4)
    assert len(rows) == tiny.images


def test_corruptions_need_images_that_are_corrupted(tiny_model, tiny_images):
    with pytest.raises(UserError, match="not under fog 3"):
        evaluate(tiny_model, tiny_images, Corruptions(type="fog", severity=3))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: AutoAttack("L1", (0.5,)), "the norms are Linf and L2"),
        (lambda: AutoAttack("linf", (0.1,)), "the norms are Linf and L2"),
        (lambda: AutoAttack("Linf", (8,)), "eps 8: .* write 8 / 255"),
        (lambda: AutoAttack("L2", (-0.1,)), "eps -0.1"),
        (lambda: AutoAttack("Linf", ()), "at least one eps"),
        (lambda: Foolbox("pgd"), "foolbox's protocols are"),
        (lambda: FastMinimumNorm("L2", gamma=2), "gamma"),
        (lambda: FastMinimumNorm("L3"), "L3"),
        (lambda: Crossing("L1"), "L1"),
        (lambda: Crossing("L2", steps=0), "at least 1"),
    ],
)
def test_a_threat_that_cannot_be_run_is_refused_when_it_is_made(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"precision": "fp16"}, "precision 'fp16'"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"stop_after": 1.0}, "stop_after needs a results_dir"),
    ],
)
def test_evaluate_refuses_options_that_make_no_sense(tiny_model, tiny_images, options, message):
    with pytest.raises(UserError, match=message):
        evaluate(tiny_model, tiny_images, Clean(), **options)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"model": "tf_efficientnet_lite0"}, "'tf_efficientnet_lite0': .* by load_model"),
        ({"images": "sample"}, "images 'sample': .* by load_image_set"),
        ({"threat": "clean"}, r"threat 'clean': not a Threat; make it by Clean\(\)"),
        ({"threat": Clean}, "not a Threat"),
    ],
)
def test_a_name_in_the_place_of_an_object_is_one_line(tiny_model, tiny_images, wrong, message):
    with pytest.raises(UserError, match=message):
        evaluate(**{"model": tiny_model, "images": tiny_images, "threat": Clean()} | wrong)


def test_a_threat_sorts_its_eps_once():
    assert AutoAttack("Linf", (2 / 255, 1 / 255, 2 / 255)).eps == (1 / 255, 2 / 255)
    assert AutoAttack("L2", 1).eps == (1.0,) and type(AutoAttack("L2", [1]).eps[0]) is float


def test_an_image_set_is_found_in_the_folder_of_the_environment(tiny, monkeypatch):
    monkeypatch.setenv("DATA_DIR", str(tiny.data))
    assert len(load_image_set("mine")) == tiny.images
    assert len(load_image_set("sample")) == 20
    with pytest.raises(UserError, match="the set `sample` reads no folder"):
        load_image_set("sample", str(tiny.data))
