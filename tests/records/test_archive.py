"""Archives of a results folder: what they hold, and every way in which one can be wrong."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import ROOT, run_utilities
from norm_tables import without_l1

from alignment_security.common.files import sha256_file
from alignment_security.common.settings import VERSION
from alignment_security.models.forward import session_facts
from alignment_security.records.dataset_card import contents_table
from alignment_security.records.record import read_record
from alignment_security.records.summary import SUMMARY_NAME

parquet = pytest.importorskip("pyarrow.parquet", reason="pip install -r requirements-publish.txt")
SAMPLE = ROOT / "results" / "sample"
RECORD = Path("records/sample/Linf/tf_efficientnet_lite0.csv")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    archive = tmp_path_factory.mktemp("published") / "archive"
    assert run_utilities("publish", "--results_dir", SAMPLE, "--out", archive) == 0
    return archive


@pytest.fixture(scope="module")
def published_without_csv(tmp_path_factory):
    archive = tmp_path_factory.mktemp("published") / "archive"
    assert run_utilities("publish", "--results_dir", SAMPLE, "--out", archive, "--without_csv") == 0
    return archive


@pytest.mark.parametrize("options", [[], ["--without_csv"]])
def test_records_beside_each_other_stay_apart(tmp_path, options):
    results = Path(shutil.copytree(SAMPLE, tmp_path / "results"))
    run_file = next(results.glob("records/*/L2-crossing/tf_efficientnet_lite0.json"))
    info = json.loads(run_file.read_text()) | {"beside": {"steps": 51}}
    info["settings"]["run"] |= {"attack": "crossing 51 steps", "steps": 51}
    for session in info["sessions"]:
        session["examples"] = 0
    stem = "tf_efficientnet_lite0+steps-51"
    run_file.with_name(f"{stem}.json").write_text(json.dumps(info))
    shutil.copy(run_file.with_suffix(".csv"), run_file.with_name(f"{stem}.csv"))
    assert run_utilities("merge", "--results_dir", results) == 0
    archive = tmp_path / "archive"
    assert run_utilities("publish", "--results_dir", results, "--out", archive, *options) == 0
    table = pd.read_parquet(archive / "tables" / "sample" / "L2-crossing.parquet")
    counts = table["model"].value_counts()
    assert counts[stem] == counts["tf_efficientnet_lite0"] == 20
    assert run_utilities("verify", archive) == 0


@pytest.mark.parametrize("options", [[], ["--without_csv"]])
def test_passes_that_are_fractions_come_back(tmp_path, options):
    """As an attack of a library shares those of its batch: in one of two records of a table."""
    results = Path(shutil.copytree(SAMPLE, tmp_path / "results"))
    record = next(results.glob("records/*/Linf/*.csv"))
    rows = pd.read_csv(record, dtype=str, keep_default_na=False)
    rows["forwards"] = [f"{count}.25" for count in rows["forwards"]]
    rows.to_csv(record, index=False)
    info = json.loads(record.with_suffix(".json").read_text())
    info |= {"record_sha256": sha256_file(record)}
    record.with_suffix(".json").write_text(json.dumps(info))
    assert run_utilities("merge", "--results_dir", results) == 0
    archive, back = tmp_path / "archive", tmp_path / "back"
    assert run_utilities("publish", "--results_dir", results, "--out", archive, *options) == 0
    assert run_utilities("verify", archive, "--out", back) == 0
    for path in results.glob("records/*/*/*.csv"):
        assert (back / path.relative_to(results)).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("options", [[], ["--without_csv"]])
def test_l1_records_with_and_without_l1_norms_come_back(tmp_path, options):
    results = Path(shutil.copytree(SAMPLE, tmp_path / "results"))
    shutil.rmtree(results / "examples" / "sample" / "L2-crossing")
    folder = results / "records" / "sample" / "L1-fmn"
    (folder.parent / "L2-crossing").rename(folder)
    for record in folder.glob("*.csv"):
        rows = pd.read_csv(record, dtype=str, keep_default_na=False)
        l1 = (10 * pd.to_numeric(rows["l2"])).astype(str).replace("nan", "")
        rows.insert(rows.columns.get_loc("linf") + 1, "l1", l1)
        rows.to_csv(record, index=False)
        info = json.loads(record.with_suffix(".json").read_text()) | {"threat": "L1-fmn"}
        info |= {"record_sha256": sha256_file(record)}
        info["settings"]["run"] |= {"norm": "L1", "protocol": "fmn", "attack": "FMN 50 steps"}
        for session in info["sessions"]:
            session["examples"] = 0
        record.with_suffix(".json").write_text(json.dumps(info))
    without_l1(folder / "tf_efficientnet_lite1.csv")
    assert run_utilities("merge", "--results_dir", results) == 0
    archive, back = tmp_path / "archive", tmp_path / "back"
    assert run_utilities("publish", "--results_dir", results, "--out", archive, *options) == 0
    assert (
        run_utilities("verify", archive) == 0
        and run_utilities("verify", archive, "--out", back) == 0
    )
    for record in results.glob("records/*/*/*.csv"):
        assert (back / record.relative_to(results)).read_bytes() == record.read_bytes()
    l1_means = pd.read_csv(back / SUMMARY_NAME).query("threat == 'L1-fmn'")["l1_mean"]
    assert l1_means.notna().tolist() == [True, False]


@pytest.fixture
def archive(published, tmp_path):
    """A copy to spoil."""
    return Path(shutil.copytree(published, tmp_path / "archive"))


@pytest.fixture(params=["published", "published_without_csv"])
def any_archive(request, tmp_path):
    """A copy to spoil, with and without CSV."""
    return Path(shutil.copytree(request.getfixturevalue(request.param), tmp_path / "archive"))


def test_a_card_counts_models_of_two_seeds_once():
    run = {"model": "a", "image_set": "mine", "threat": "Linf", "images": 4}
    runs = [run | {"settings": {"run": {"attack": "AutoAttack", "seed": seed}}} for seed in (0, 1)]
    assert contents_table(runs).splitlines() == [
        "| mine | Linf | 1 | 4 | AutoAttack |",
        "| mine | Linf | 1 | 4 | AutoAttack, seed 1 |",
    ]


def write_sums(archive: Path) -> None:
    """SHA256SUMS as somebody would write it who hides a change."""
    sums = archive / "SHA256SUMS"
    files = sorted(path for path in archive.rglob("*") if path.is_file() and path != sums)
    lines = [f"{sha256_file(path)}  {path.relative_to(archive).as_posix()}\n" for path in files]
    sums.write_text("".join(lines))


def test_an_archive_is_the_same_twice_and_verifies(published, tmp_path, capsys):
    assert run_utilities("publish", "--results_dir", SAMPLE, "--out", tmp_path / "again") == 0
    files = sorted(path for path in published.rglob("*") if path.is_file())
    assert len(files) == 21
    for path in files:
        assert (tmp_path / "again" / path.relative_to(published)).read_bytes() == path.read_bytes()
    assert run_utilities("verify", published) == 0 and "nothing found" in capsys.readouterr().out
    done = subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=published)
    assert done.returncode == 0


def test_tables_hold_the_rows_of_the_records(published):
    for threat in ("Linf", "L2-crossing", "clean"):
        table = pd.read_parquet(published / "tables" / "sample" / f"{threat}.parquet")
        assert table["model"].nunique() == 2
        for model, rows in table.groupby("model"):
            record = read_record(SAMPLE / "records" / "sample" / threat / f"{model}.csv")
            rows = rows.drop(columns="model").reset_index(drop=True)
            pd.testing.assert_frame_equal(rows[[*record]], record, check_dtype=False)
    summary = pd.read_parquet(published / "tables" / "summary.parquet")
    pd.testing.assert_frame_equal(
        summary, pd.read_csv(SAMPLE / SUMMARY_NAME, float_precision="round_trip"), check_dtype=False
    )


def test_an_archive_without_csv_gives_the_records_back(published_without_csv, capsys):
    assert run_utilities("verify", published_without_csv) == 0
    assert not list(published_without_csv.rglob("tf_*.csv"))
    card = (published_without_csv / "README.md").read_text()
    assert "the tables hold its rows" in card


@pytest.mark.parametrize("command", ["audit", "merge", "plotting"])
def test_an_archive_without_csv_says_how_to_use_it(
    published_without_csv, tmp_path, capsys, command
):
    import plotting

    if command == "plotting":
        words = ["--results_dir", published_without_csv, "--figures_dir", tmp_path]
        assert plotting.main([str(word) for word in words]) == 2
    else:
        options = ["--results_dir"] if command == "merge" else []
        assert run_utilities(command, *options, published_without_csv) in (1, 2)
    shown = "".join(capsys.readouterr())
    words = re.search(r"utilities\.py (verify \S+ --out )DIR` writes its results", shown)
    assert "is an archive without CSV" in shown and "sha256" not in shown
    assert run_utilities(*words[1].split(), tmp_path / "results") == 0
    for path in (published_without_csv / "records").rglob("*.json"):
        place = path.relative_to(published_without_csv).with_suffix(".csv")
        assert (tmp_path / "results" / place).read_bytes() == (SAMPLE / place).read_bytes()
    assert run_utilities(*words[1].split(), tmp_path / "results") == 2  # it is there already


def test_an_archive_with_csv_is_unpacked_too(published, tmp_path):
    assert run_utilities("verify", published, "--out", tmp_path / "results") == 0
    assert (tmp_path / "results" / RECORD).read_bytes() == (SAMPLE / RECORD).read_bytes()
    assert not (tmp_path / "results" / "SHA256SUMS").exists()


def test_a_record_with_cells_of_its_own_is_published_with_csv_only(tmp_path, capsys):
    """A column that this project does not know is in the CSV, and in no table."""
    results = Path(shutil.copytree(SAMPLE, tmp_path / "results"))
    record = results / "records" / "sample" / "clean" / "tf_efficientnet_lite0.csv"
    header, *lines = record.read_text().splitlines()
    record.write_text("\n".join([f"{header},mine", *(f"{line},1" for line in lines), ""]))
    run_file = record.with_suffix(".json")
    settings = json.loads(run_file.read_text())
    run_file.write_text(json.dumps(settings | {"record_sha256": sha256_file(record)}))
    command = ["publish", "--results_dir", results, "--out", tmp_path / "archive"]
    assert run_utilities(*command, "--without_csv") == 2
    assert "publish it with CSV" in capsys.readouterr().err
    assert not (tmp_path / "archive").exists()
    assert run_utilities(*command) == 0 and run_utilities("verify", tmp_path / "archive") == 0


def test_an_archive_is_a_results_folder(published, tmp_path):
    import plotting

    command = ["--results_dir", published, "--figures_dir", tmp_path, "--plots", "broken_by"]
    assert plotting.main([str(word) for word in command]) == 0


def test_the_card_is_one_that_the_hub_reads(published):
    card = pytest.importorskip("huggingface_hub").DatasetCard.load(published / "README.md")
    files = [config["data_files"] for config in card.data.to_dict()["configs"]]
    assert len(files) == 4 and all((published / file).is_file() for file in files)
    assert card.data.license == "unknown" and VERSION in card.text
    commit = re.search(r"at commit ([0-9a-f]{40})", card.text)
    assert commit and commit[1] in (SAMPLE / SUMMARY_NAME).read_text()


@pytest.mark.parametrize("licence", ["cc-by-4.0", "other: 'mine' # of 2026", "no", "- [a"])
def test_the_card_gives_a_licence_as_it_was_written(tmp_path, licence):
    command = ["publish", "--results_dir", SAMPLE, "--out", tmp_path / "archive"]
    assert run_utilities(*command, "--licence", licence) == 0
    text = (tmp_path / "archive" / "README.md").read_text()
    assert yaml.safe_load(text.split("---")[1])["license"] == licence


# ---- refusals ------------------------------------------------------------------------------------


def test_results_with_findings_are_not_published(tmp_path, capsys):
    results = Path(shutil.copytree(SAMPLE, tmp_path / "results"))
    record = results / RECORD
    record.write_text(record.read_text().replace(",0,242,apgd-ce", ",1,242,apgd-ce", 1))
    assert run_utilities("publish", "--results_dir", results, "--out", tmp_path / "archive") == 2
    error = capsys.readouterr().err
    assert "not published" in error and "sha256 differs" in error and len(error.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_an_archive_is_not_written_over_another(archive, capsys):
    assert run_utilities("publish", "--results_dir", SAMPLE, "--out", archive) == 2
    assert f"{archive}: is there already" in capsys.readouterr().err


def test_without_pyarrow_one_line_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert run_utilities("publish", "--results_dir", SAMPLE, "--out", tmp_path / "archive") == 2
    assert "pip install -r requirements-publish.txt" in capsys.readouterr().err


def test_a_folder_that_is_no_archive(tmp_path, capsys):
    assert run_utilities("verify", tmp_path) == 2
    assert "SHA256SUMS: no such file" in capsys.readouterr().err


# ---- archives that are wrong ---------------------------------------------------------------------


def test_files_that_are_changed_missing_or_added_are_named(archive, capsys):
    (archive / RECORD).write_text((archive / RECORD).read_text() + "\n")
    (archive / "tables" / "sample" / "Linf.parquet").unlink()
    (archive / "records" / "sample" / "Linf" / "another.json").write_text("{}")
    assert run_utilities("verify", archive) == 1
    found = capsys.readouterr().out.splitlines()
    assert [line.rpartition(": ")[2].split(" ")[0] for line in found] == ["not", "missing", "not"]
    assert "another.json" in found[2]


@pytest.mark.parametrize("again", ["{line}", "{sum}  ./{name}", "{sum}  records//../{name}"])
def test_a_file_is_named_once_in_the_checksums(archive, capsys, again):
    """Of two checksums of one file, one is not its own, or somebody has edited the list."""
    sums = archive / "SHA256SUMS"
    line = sums.read_text().splitlines()[0]
    checksum, _, name = line.partition("  ")
    with open(sums, "a", encoding="utf-8") as file:
        file.write(again.format(line=line, sum=checksum, name=name) + "\n")
    assert run_utilities("verify", archive) == 1
    assert "SHA256SUMS, line " in capsys.readouterr().out


@pytest.mark.parametrize("name", ["README.md", "records", RECORD])
def test_a_link_is_no_file_of_the_archive(archive, tmp_path, capsys, name):
    """Its target has the right bytes, and does not go where the archive goes."""
    moved = (archive / name).rename(tmp_path / "moved")
    (archive / name).symlink_to(moved)
    assert run_utilities("verify", archive) == 1
    assert "a link, not the file that was published" in capsys.readouterr().out


def test_checksums_that_lead_out_of_the_archive_are_not_followed(archive, capsys):
    sums = archive / "SHA256SUMS"
    sums.write_text(sums.read_text() + f"{'0' * 64}  ../../etc/passwd\n{'0' * 64}  /etc/passwd\n")
    assert run_utilities("verify", archive) == 1
    assert capsys.readouterr().out.count("no checksum and name of a file of the archive") == 2


def test_a_record_that_was_changed_with_its_checksum_is_found(archive, capsys):
    record = archive / RECORD
    record.write_text(record.read_text().replace(",0,242,apgd-ce", ",1,242,apgd-ce", 1))
    write_sums(archive)
    assert run_utilities("verify", archive) == 1
    assert "not the file that the run finished with" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("table", "column"),
    [
        ("sample/Linf", "robust"),
        ("sample/Linf", "adv_pred"),
        ("sample/L2-crossing", "l2"),
        ("sample/clean", "label"),
        ("summary", "clean_acc"),
    ],
)
def test_a_table_that_is_not_of_the_records_is_found(any_archive, capsys, table, column):
    path = any_archive / "tables" / f"{table}.parquet"
    rows = parquet.read_table(path).to_pandas()
    rows.loc[0, column] = 1 - rows.loc[0, column]
    rows.to_parquet(path, index=False, row_group_size=len(rows) // 2)
    write_sums(any_archive)
    assert run_utilities("verify", any_archive) == 1
    assert capsys.readouterr().out.startswith(str(any_archive))


def test_a_model_that_no_table_has_is_found(archive, capsys):
    path = archive / "tables" / "sample" / "Linf.parquet"
    table = parquet.read_table(path)
    parquet.write_table(table.slice(0, table.num_rows // 2), path)
    write_sums(archive)
    assert run_utilities("verify", archive) == 1
    assert "tf_efficientnet_lite1.json: its record is in no table" in capsys.readouterr().out


def test_rows_of_a_model_that_has_no_run_file_are_found(any_archive, capsys):
    for path in any_archive.glob("records/sample/Linf/tf_efficientnet_lite1.*"):
        path.unlink()
    write_sums(any_archive)
    assert run_utilities("verify", any_archive) == 1
    assert "has rows of tf_efficientnet_lite1, which has no run file" in capsys.readouterr().out


def test_a_table_that_is_no_parquet_is_one_line(archive, capsys):
    (archive / "tables" / "sample" / "Linf.parquet").write_bytes(b"PAR1 and nothing more")
    write_sums(archive)
    assert run_utilities("verify", archive) == 1
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 1 and "no parquet table" in out[0]


# ---- the version ---------------------------------------------------------------------------------


def test_one_version_in_the_changes_the_citation_and_the_run_file():
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\S+)", changes, re.M)[0] == VERSION
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (\S+)", citation, re.M) == [VERSION]
    torch = pytest.importorskip("torch")
    assert session_facts(torch.device("cpu"), 1)["version"] == VERSION
