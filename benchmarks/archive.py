"""Archives and pages of 351 models x 3 eps: their size, and the time to write and read them.

    python benchmarks/archive.py              prints, and writes benchmarks/archive.json

Takes about three minutes on one core. The records of 8 models are made up and measured; sizes and
times grow with the number of models, so those of 351 are 351 / 8 of them. The page is one of 351
models. Needs pyarrow (requirements-publish.txt).
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from alignment_security.analysis.results import load_results
from alignment_security.common.files import sha256_file, utc_now
from alignment_security.common.folders import glob_visible
from alignment_security.common.settings import git_state
from alignment_security.plots.report import write_report
from alignment_security.records.audit import audit
from alignment_security.records.parquet import differing_tables, summary_of_tables, write_tables
from alignment_security.records.record import BALL_COLUMNS, rows_to_csv
from alignment_security.records.summary import SUMMARY_NAME, merge_records
from benchmarks.machine import machine
from benchmarks.output import get_args_parser, output_file, write_results
from benchmarks.records import timed

EPS = np.array([0.5, 1, 2]) / 255
STUDY_MODELS = 351  # of Feng 2025, on the 50,000 images of ImageNet's validation set
GIB = 2**30


@dataclass(frozen=True)
class Size:
    """What is measured: `models` records of `images` images at three eps."""

    models: int = 8
    images: int = 50_000


QUICK = Size(models=2, images=20)


def made_up_record(images: int, random: np.random.Generator) -> pd.DataFrame:
    """Rows as AutoAttack's: 80 % classified correctly, broken from an eps of their own upwards.

    Norms have the digits of float32, as the records of networks do.
    """
    labels = np.repeat(random.integers(0, 1000, images), 3)
    correct = np.repeat(random.random(images) < 0.8, 3)
    other = (labels + np.repeat(random.integers(1, 1000, images), 3)) % 1000
    eps = np.tile(EPS, images)
    distance = np.repeat(random.lognormal(np.log(1 / 255), 0.5, images), 3)
    broken = correct & (distance <= eps)
    linf = np.where(broken, np.minimum(distance, eps), np.nan).astype(np.float32)
    l2 = linf * random.uniform(200, 380, linf.size).astype(np.float32)
    passes = np.where(correct, random.integers(2, 5000, labels.size), 1)
    attacks = random.choice(["apgd-ce", "apgd-t", "fab-t", "square"], labels.size)
    columns = {
        "image_id": np.repeat([f"ILSVRC2012_val_{i:08d}.JPEG" for i in range(1, images + 1)], 3),
        "label": labels,
        "clean_pred": np.where(correct, labels, other),
        "clean_correct": correct.astype(int),
        "eps": eps,
        "robust": (correct & ~broken).astype(int),
        "adv_pred": np.where(broken | ~correct, other, labels),
        "broken_by": np.where(broken, attacks, np.where(correct, "", "clean")),
        "from_eps": eps,
        "linf": np.minimum(linf.astype(float), eps),
        "l2": l2.astype(float),
        "forwards": passes,
        "backwards": passes - 1,
    }
    return pd.DataFrame(columns)[BALL_COLUMNS]


def write_record(folder: Path, model: str, rows: pd.DataFrame) -> None:
    """A finished record and its run file."""
    path = folder / "records" / "imagenet-val" / "Linf" / f"{model}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(rows_to_csv(rows))
    settings = {"protocol": "autoattack", "attack": "standard", "eps": list(EPS), "seed": 0}
    run = {
        "model": model,
        "image_set": "imagenet-val",
        "threat": "Linf",
        "kind": "ball",
        "settings": {"model": {"weights": f"timm:{model}"}, "run": settings},
        "status": "done",
        "sessions": [{"started": utc_now(), "seconds": 1.0, "git": git_state()}],
        "warnings": [],
        "images": len(rows) // len(EPS),
        "record_sha256": sha256_file(path),
    }
    path.with_suffix(".json").write_text(json.dumps(run))


def measure(folder: Path, size: Size) -> dict:
    """Bytes and seconds of the tables of made-up records."""
    random = np.random.default_rng(0)
    for i in range(size.models):
        write_record(folder, f"net{i}", made_up_record(size.images, random))
    records, tables = folder / "records", folder / "tables"
    _, write_seconds = timed(lambda: write_tables(records, tables))
    summary, summary_seconds = timed(lambda: summary_of_tables(records, tables))
    different, compare_seconds = timed(lambda: list(differing_tables(records, tables)))
    merged, merge_seconds = timed(lambda: merge_records(folder))
    _, audit_seconds = timed(lambda: audit(folder))
    pd.testing.assert_frame_equal(summary, merged, check_dtype=False, rtol=1e-12)
    assert not different, different
    return {
        "models": size.models,
        "rows": size.models * size.images * len(EPS),
        "csv_bytes": sum(path.stat().st_size for path in glob_visible(records, "*/*/*.csv")),
        "parquet_bytes": sum(path.stat().st_size for path in glob_visible(tables, "*/*.parquet")),
        "write_tables_seconds": write_seconds._asdict(),
        "summary_of_tables_seconds": summary_seconds._asdict(),
        "compare_with_records_seconds": compare_seconds._asdict(),
        "merge_seconds": merge_seconds._asdict(),
        "audit_seconds": audit_seconds._asdict(),
    }


def scaled(measured: dict) -> dict:
    """What STUDY_MODELS models take, from the clock of this machine."""
    factor = STUDY_MODELS / measured["models"]
    seconds = {
        name: round(factor * value["clock"])
        for name, value in measured.items()
        if name.endswith("seconds")
    }
    return {
        "models": STUDY_MODELS,
        "rows": round(factor * measured["rows"]),
        "csv_gib": round(factor * measured["csv_bytes"] / GIB, 2),
        "parquet_gib": round(factor * measured["parquet_bytes"] / GIB, 2),
        **seconds,
    }


def measure_page(folder: Path, models: int) -> dict:
    """Bytes and seconds of report.html without figures: 3 eps and norms of made-up models."""
    random, rows = np.random.default_rng(0), []
    for i in range(models):
        shared: dict = {"model": f"net{i}", "image_set": "imagenet-val", "n": 50_000}
        shared |= {"clean_acc": random.uniform(0.6, 0.9), "list_sha256": "all", "head": "none"}
        for eps in EPS:
            robust = {"robust_acc": random.uniform(0, 0.5), "eps": eps, "attack": "standard"}
            rows.append(shared | robust | {"threat": "Linf", "protocol": "autoattack"})
        norms: dict = {
            "l2_mean": random.uniform(0.1, 2),
            "l2_sem": 0.01,
            "human_alignment_sem": 0.01,
        }
        norms |= {"human_alignment": random.uniform(-0.1, 0.4), "attack": "crossing 50 steps"}
        rows.append(shared | norms | {"threat": "L2-crossing", "protocol": "crossing"})
    folder.mkdir()
    pd.DataFrame(rows).to_csv(folder / SUMMARY_NAME, index=False)
    path, seconds = timed(lambda: write_report(load_results(folder), {}, folder))
    return {"models": models, "bytes": path.stat().st_size, "seconds": seconds._asdict()}


def main(argv: list[str] | None = None) -> None:
    args = get_args_parser(__doc__).parse_args(argv)
    size = QUICK if args.quick else Size()
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(Path(folder, "results"), size)
        page = measure_page(Path(folder, "page"), size.models if args.quick else STUDY_MODELS)
    results = {
        "date": utc_now(),
        "git": git_state(),
        "machine": machine(),
        "measured": measured,
        "scaled": scaled(measured),
        "page": page,
    }
    write_results(results, output_file(args, __file__))


if __name__ == "__main__":
    main()
