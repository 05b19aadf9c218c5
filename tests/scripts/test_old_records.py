"""Records that an older version began: today's code goes on with them and finds the same."""

from __future__ import annotations

import shutil

import pandas as pd
import pytest
from conftest import DATA, ROOT

from alignment_security.records.audit import audit
from alignment_security.records.record import read_record

OLD = DATA / "records_of_e1695b4"
TORN = "imagenet_12_741.jpg"  # its row at the larger eps is missing
SMALL = ["--attacks", "apgd-ce", "apgd-t", "fab-t", "square"]
THREATS = {
    "clean": ["clean"],
    "Linf": ["Linf", "--eps", "0.25/255", "1/255", *SMALL, "--steps", "5", "--targets", "2"],
    "L2-crossing": ["L2", "--protocol", "crossing", "--steps", "10"],
    "L2-fmn": ["--head", "animate", "L2", "--protocol", "fmn", "--steps", "10"],
}
THREATS["Linf"] += ["--queries", "20"]


@pytest.mark.parametrize("threat", THREATS)
def test_a_record_begun_by_the_flat_layout_is_finished(cli, tmp_path, threat):
    """Same verdicts and predictions; the norms that are sought within 1 %: batches are others."""
    shutil.copytree(OLD / "begun", tmp_path, dirs_exist_ok=True)
    path = tmp_path / "records/sample" / threat / "tf_efficientnet_lite0.csv"
    begun = path.read_text()
    want = read_record(OLD / "finished" / path.relative_to(tmp_path))
    status, _, err = cli(
        *["--model_name", "tf_efficientnet_lite0", "-s", "8", "--batch_size", "3"],
        *["--device", "cpu", "--results_dir", tmp_path],
        *THREATS[threat],
    )
    assert status == 0, err
    assert path.read_text().startswith(begun[: begun.rindex("\n", 0, -1)])
    rows = read_record(path)
    exact = ["image_id", "label", "clean_pred", "clean_correct"]
    exact += [name for name in ("eps", "robust", "success") if name in rows]
    pd.testing.assert_frame_equal(rows[exact], want[exact])
    norms = [] if threat == "clean" else [threat.partition("-")[0].lower()]
    # of the image that lacked an eps, another attack breaks it: FAB's memory ended with the process
    whole = rows["image_id"] != TORN if threat == "Linf" else rows["image_id"] != ""
    pd.testing.assert_frame_equal(rows.loc[whole, norms], want.loc[whole, norms], rtol=0.01)


def test_the_committed_records_are_audited_clean():
    assert audit(ROOT / "results/sample") == []
