"""What cannot share a record gets one beside it; summary, figures and trace tell them apart."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

import plotting
import utilities
from alignment_security.analysis.feng2025 import norm_tables
from alignment_security.analysis.results import load_results, stale_records
from alignment_security.common.files import UserError
from alignment_security.evaluation.run import raise_stopped
from alignment_security.records.audit import audit
from alignment_security.records.beside import name_of_weights, settings_beside
from alignment_security.records.names import record_stem
from alignment_security.records.summary import SUMMARY_NAME, merge_records

CROSSING = ["-s", "3", "L2", "--protocol", "crossing", "--steps", "4"]
FMN = ["-s", "3", "L2", "--protocol", "fmn", "--steps", "4"]
LINF = ["-s", "3", "Linf", "--attacks", "apgd-ce", "--steps", "3", "--eps", "8/255"]


def contents(folder: Path) -> dict[str, bytes]:
    """Records and run files by name."""
    return {path.stem + path.suffix: path.read_bytes() for path in folder.glob("records/*/*/*.*s*")}


def run_file(folder: Path, stem: str) -> dict:
    (path,) = folder.glob(f"records/*/*/{stem}.json")
    return json.loads(path.read_text())


@pytest.mark.parametrize("threat", [["clean"], [*LINF, "--engine", "reference"]])
def test_a_threat_that_searches_with_no_copy_has_one_record_of_float32(cli, tiny, tmp_path, threat):
    for precision in ("float32", "bf16"):
        status, out, _ = cli(*tiny.arguments(tmp_path), "--precision", precision, *threat)
        assert status == 0 and ("read from its record" in out) == (precision == "bf16")
    assert run_file(tmp_path, tiny.name)["settings"]["run"]["precision"] == "float32"


@pytest.mark.parametrize(
    "first, then, suffix",
    [
        (CROSSING, [*CROSSING[:-1], "5"], "steps-5"),
        (CROSSING, [*CROSSING, "--seed", "1"], "seed-1"),
        (CROSSING, [*CROSSING, "--seed", "1", "--precision", "bf16"], r"seed-1\+precision-bf16"),
        (FMN, [*FMN, "--gamma", "0.1"], r"gamma-0\.1"),
        (LINF, [*LINF, "--steps", "4"], "steps-4"),
        (
            LINF,
            [*LINF, "--attacks", "apgd-ce", "square", "--queries", "5"],
            r"attacks-apgd-ce-apgd-ce-square\+queries-5",
        ),
    ],
)
def test_what_shares_no_row_gets_a_record_beside(cli, tiny, tmp_path, first, then, suffix):
    """The rows are those of a folder of its own; the first record stays; the same command reads."""
    arguments = tiny.arguments(tmp_path / "both")
    assert cli(*arguments, *first)[0] == 0
    before = contents(tmp_path / "both")
    status, out, _ = cli(*arguments, *then)
    assert status == 0 and "has other settings and stays" in out
    after = contents(tmp_path / "both")
    assert before.items() <= after.items() and len(after) == 4
    (stem,) = {name.rsplit(".", 1)[0] for name in set(after) - set(before)}
    assert re.fullmatch(rf"{tiny.name}\+{suffix}", stem)
    assert run_file(tmp_path / "both", stem)["model"] == tiny.name
    for request in (first, then):
        status, out, _ = cli(*arguments, *request)
        assert status == 0 and "read from its record" in out
    assert contents(tmp_path / "both") == after
    assert cli(*tiny.arguments(tmp_path / "alone"), *then)[0] == 0
    assert contents(tmp_path / "alone")[f"{tiny.name}.csv"] == after[f"{stem}.csv"]


def test_overwrite_means_the_record_of_the_request(cli, tiny, tmp_path):
    arguments = tiny.arguments(tmp_path)
    for steps in ("4", "5"):
        cli(*arguments, *CROSSING[:-1], steps)
    before = contents(tmp_path)
    assert cli("--overwrite", *arguments, *CROSSING[:-1], "5")[0] == 0
    after = contents(tmp_path)
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {f"{tiny.name}+steps-5.json"} and set(after) == set(before)
    assert cli("--overwrite", *arguments, *CROSSING[:-1], "6")[0] == 0  # none yet
    assert after.items() <= contents(tmp_path).items()


def test_a_record_beside_is_found_whatever_became_of_the_first(cli, tiny, tmp_path):
    arguments = tiny.arguments(tmp_path)
    cli(*arguments, *CROSSING)
    cli(*arguments, *CROSSING[:-1], "5", "--seed", "1")
    (first,) = tmp_path.glob(f"records/*/*/{tiny.name}.json")
    first.unlink()
    first.with_suffix(".csv").unlink()
    assert "read from its record" in cli(*arguments, *CROSSING[:-1], "5", "--seed", "1")[1]
    cli(*arguments, *CROSSING[:-1], "5")  # the first, again
    status, out, _ = cli(*arguments, *CROSSING, "--seed", "1")
    assert status == 0 and "steps-4+seed-1.csv" in out.replace("seed-1+steps-4", "steps-4+seed-1")
    assert len(contents(tmp_path)) == 6


def test_a_record_beside_goes_on_and_grows(cli, tiny, tmp_path):
    arguments = [*tiny.arguments(tmp_path), "--workers", "0"]
    other = ["L2", "--protocol", "crossing", "--steps", "5"]
    cli(*arguments, *CROSSING)
    assert cli(*arguments, "-s", "4", "--stop_after", "0", *other)[0] == 85
    assert cli(*arguments, "-s", "6", *other)[0] == 2  # unfinished
    assert cli(*arguments, "-s", "4", *other)[0] == 0
    assert cli(*arguments, "-s", "6", *other)[0] == 0
    info = run_file(tmp_path, f"{tiny.name}+steps-5")
    assert info["images"] == 6 and info["grown"][0]["images"] == 4
    assert run_file(tmp_path, tiny.name)["images"] == 3
    assert len(merge_records(tmp_path, log=print)) == 2  # each with images of its own


def test_a_run_that_ended_without_a_row_gives_its_name_away(cli, tiny, tmp_path, monkeypatch):
    """To other settings and other images; the same request goes on."""
    arguments = tiny.arguments(tmp_path)

    def stopped(*request) -> int:
        with monkeypatch.context() as patch:
            patch.setattr("alignment_security.evaluation.run.check_before_attack", raise_stopped)
            return cli(*arguments, *request)[0]

    assert stopped(*LINF) == stopped(*LINF) == 85
    assert len(run_file(tmp_path, tiny.name)["sessions"]) == 2
    assert cli(*arguments, *LINF, "--steps", "5", "-s", "2")[0] == 0
    info = run_file(tmp_path, tiny.name)
    assert info["settings"]["run"]["steps"] == 5 and len(info["sessions"]) == 1
    assert stopped(*LINF, "--steps", "6") == 85
    assert cli(*arguments, *LINF, "--steps", "6", "-s", "1")[0] == 0  # beside, of other images
    assert set(contents(tmp_path)) == {
        f"{tiny.name}{suffix}.{ending}" for suffix in ("", "+steps-6") for ending in ("csv", "json")
    }


def test_an_empty_record_that_a_process_is_at_keeps_its_name(tiny_record, open_run, tmp_path):
    """Or one that another machine may be at, whose lock this one does not see."""
    apart = {"steps"}
    with open_run(model="net") as run:
        request = {"model": {}, "run": run.settings["run"] | {"steps": 20}}
        assert settings_beside(run.csv.parent, "net", request, apart) == {"steps": 20}
    assert settings_beside(run.csv.parent, "net", request, apart) == {}
    info = json.loads(run.json.read_text())
    info["sessions"][-1]["host"] = "elsewhere"
    run.json.write_text(json.dumps(info))
    assert settings_beside(run.csv.parent, "net", request, apart) == {"steps": 20}
    with pytest.raises(UserError, match="unfinished|begun"):
        open_run(model="net", steps=20)
    run.json.write_text(json.dumps(info | {"status": "checkpointed"}))
    assert settings_beside(run.csv.parent, "net", request, apart) == {}
    with open_run(model="net", steps=20) as run:
        assert run.info["settings"]["run"]["steps"] == 20 and len(run.info["sessions"]) == 1


def test_weights_that_no_row_is_of_leave_their_name_to_others(tiny_record, tmp_path):
    row = {"image_id": "a", "label": 0, "clean_pred": 0}
    tiny_record([], done=False, weights="first")
    assert name_of_weights(tmp_path, "net", "second") == "net"
    tiny_record([row], done=False, weights="first")
    assert name_of_weights(tmp_path, "net", "second") == "net.weights_second"
    assert name_of_weights(tmp_path, "net", "first") == "net"


def test_a_record_of_an_earlier_name_is_found(tiny_record, tmp_path):
    """Whose list of attacks stands in its name with its brackets and a hash."""
    row = {"image_id": "a", "label": 0, "clean_pred": 0}
    tiny_record([row], done=False, attacks=["square"])
    beside = {"attacks": ["apgd-ce", "apgd-t"]}
    old = tiny_record([row], done=False, beside=beside, **beside)
    assert old.csv.name == "net+attacks---apgd-ce--apgd-t---8448b402.csv"
    request = {"model": {}, "run": old.settings["run"]}
    assert settings_beside(old.csv.parent, "net", request, {"attacks"}) == beside
    request["run"] = request["run"] | {"attacks": ["apgd-ce", "square"]}
    new = settings_beside(old.csv.parent, "net", request, {"attacks"})
    assert record_stem("net", new) == "net+attacks-apgd-ce-square"


def test_the_same_weights_from_another_place_go_on(cli, tiny, tmp_path):
    """Their sha256 is compared; the place stays that of the first session."""
    copy = shutil.copy(tiny.checkpoint, tmp_path / "copy.pth")
    arguments = tiny.arguments(tmp_path / "results")
    elsewhere = [*arguments, "--checkpoint", copy]
    assert cli(*arguments, "-s", "3", "clean")[0] == 0
    before = contents(tmp_path / "results")
    assert cli(*elsewhere, "-s", "3", "clean")[0] == 0
    assert contents(tmp_path / "results") == before
    assert cli(*elsewhere, "-s", "5", "clean")[0] == 0  # it grows
    info = run_file(tmp_path / "results", tiny.name)
    assert (info["images"], info["settings"]["model"]["weights"]) == (5, "file:net.pth")
    assert cli(*elsewhere, *CROSSING)[0] == 0
    assert len(merge_records(tmp_path / "results", log=print)) == 2
    assert "not the model of" not in "".join(audit(tmp_path / "results"))


def test_a_second_checkpoint_under_one_name_is_another_model(cli, tiny, tmp_path):
    checkpoint = tmp_path / "second.pth"
    weights = torch.load(tiny.checkpoint, weights_only=True)
    torch.save(
        {
            name: 1.01 * value if value.is_floating_point() else value
            for name, value in weights.items()
        },
        checkpoint,
    )
    arguments = tiny.arguments(tmp_path / "results")
    second = [*arguments, "--checkpoint", checkpoint]
    assert cli(*arguments, "-s", "3", "clean")[0] == 0
    before = contents(tmp_path / "results")
    status, out, _ = cli(*second, "-s", "3", "clean")
    assert status == 0 and "records of other weights here" in out
    assert cli(*second, *CROSSING)[0] == 0  # a threat that the first was never under
    assert before.items() <= contents(tmp_path / "results").items()
    summary = merge_records(tmp_path / "results", log=print)
    names = summary.groupby("model")["weights_sha256"].nunique()
    assert len(names) == 2 and (names == 1).all()
    assert {name.partition(".weights_")[0] for name in names.index} == {tiny.name}
    assert "not the model of" not in "".join(audit(tmp_path / "results"))


@pytest.fixture
def crowded(tiny_record, tmp_path):
    """Two models whose first records have different heads, each with the other head beside."""
    rows = [
        {
            "image_id": f"{i}.jpg",
            "label": 1,
            "clean_pred": 1,
            "clean_correct": 1,
            "success": 1,
            "adv_pred": 2,
            "l2": 1.0 + i,
            "linf": 0.1,
            "forwards": 1,
            "backwards": 1,
        }
        for i in range(4)
    ]
    for model, first, other in (("a", "none", "animate"), ("b", "animate", "none")):
        tiny_record(rows, model=model, head=first)
        tiny_record(rows, model=model, head=other, beside={"head": other})
    tiny_record(rows, model="a", head="none", seed=1, beside={"seed": 1})
    return tmp_path


def test_the_summary_has_a_row_for_each(crowded):
    """Strict, too: none is the odd one of its folder."""
    summary = merge_records(crowded)
    assert summary["attack"].tolist()[:3] == [
        "FMN 10 steps",  # the first record of a model is first
        "FMN 10 steps, head animate",
        "FMN 10 steps, seed 1",
    ]
    attacks = summary.groupby("attack")["model"].apply(list).to_dict()
    assert attacks == {
        "FMN 10 steps": ["a", "b"],
        "FMN 10 steps, head animate": ["a", "b"],
        "FMN 10 steps, seed 1": ["a"],
    }
    assert not stale_records(load_results(crowded))
    problems = audit(crowded)
    assert not [line for line in problems if "comparable" in line or SUMMARY_NAME in line]


def test_figures_take_one_record_of_a_model_each(crowded):
    merge_records(crowded)
    results = load_results(crowded)
    tables = {
        table.name.split("\n")[1]: list(table.rows["model"]) for table in norm_tables(results)
    }
    assert tables == {
        "FMN 10 steps": ["a", "b"],
        "FMN 10 steps, head animate": ["a", "b"],
        "FMN 10 steps, seed 1": ["a"],
    }


def test_the_page_and_trace_name_the_right_record(crowded, capsys):
    merge_records(crowded)
    figures = crowded / "figures"
    arguments = ["--results_dir", crowded, "--figures_dir", figures, "--plots", "accuracy_vs_norm"]
    plotting.main([*map(str, arguments), "--report"])
    page = (figures / "report.html").read_text()
    for stem in ("a", "a%2Bhead-animate", "a%2Bseed-1", "b", "b%2Bhead-none"):
        assert f"/{stem}.csv" in page
    table = pd.read_csv(next(figures.glob("*.csv")))
    line = int(table.index[(table["model"] == "a") & table["budget"].str.endswith("seed 1")][0]) + 2
    capsys.readouterr()
    trace = ["trace", str(next(figures.glob("*.csv"))), "--line", str(line)]
    arguments = utilities.get_args_parser().parse_args([*trace, "--results_dir", str(crowded)])
    utilities.main(arguments)
    assert re.findall(r"record +\S+/(\S+?\.csv)", capsys.readouterr().out) == ["a+seed-1.csv"]


@pytest.mark.parametrize(
    "old, new, beside",
    [
        ({}, {"border": 2}, {}),  # of the images: refused, as ever
        ({"human_map": "ClickMe", "human_ceiling": 0.6}, {"human_map": "mine"}, {}),
        ({}, {"human_map": "mine", "map_reduce": "max"}, {}),
        ({"map_reduce": "max"}, {"map_reduce": "l2"}, {"map_reduce": "l2"}),
        ({"eps": [1.0]}, {"eps": [2.0], "list_sha256": "other"}, {}),
        ({}, {"attack": "FMN 20 steps", "steps": 20, "slice": [0, 2]}, {"steps": 20}),
        ({}, {"attack": "another"}, {"attack": "another"}),
        ({"step_unit": "pixels"}, {}, {"step_unit": None}),
    ],
)
def test_settings_of_the_images_give_no_record_beside(tiny_record, tmp_path, old, new, beside):
    run = tiny_record([{"image_id": "a", "label": 0, "clean_pred": 0}], done=False, **old)
    settings = {"model": {}, "run": run.settings["run"] | new}
    if beside == {"step_unit": None}:
        del settings["run"]["step_unit"]
    apart = {"attack", "steps", "seed", "map_reduce", "eps", "step_unit"}
    assert settings_beside(run.csv.parent, "net", settings, apart) == beside


def test_a_moved_record_beside_is_refused(crowded):
    (path,) = crowded.glob("records/*/*/a+seed-1.json")
    path.rename(path.with_name("a+seed-2.json"))
    assert any("move it and its record back" in line for line in audit(crowded))
