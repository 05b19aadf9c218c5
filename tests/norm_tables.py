"""Made-up and published tables of norms that several tests read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from alignment_security.common.files import sha256_file
from alignment_security.records.run import Run
from alignment_security.records.summary import SUMMARY_NAME

MODELS = ["vgg11.tv_in1k", "resnet50.tv_in1k", "resnet18.a3_in1k", "nobody_knows.it"]


def write_published(folder: Path, cubic=(1e-4, 0, 0, 20.0)) -> Path:
    """Write public files of four models, as downloaded.

    vgg11 is under torchvision's name, resnet50 has other weights there, resnet18 is under timm's
    name, and one is unknown.
    """
    for name in ("feng2025", "multilabel", "timm"):
        (folder / name).mkdir(parents=True)
    robust = ["resnet18_l2_eps0.01", "resnet18_linf_eps8.0"]
    pd.DataFrame(
        {
            "model": MODELS + robust,
            "pt": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
            "aa": np.linspace(0.3, -0.2, 6),
            "pt_sem": 0.1,
            "aa_sem": 0.01,
        }
    ).to_csv(folder / "feng2025" / "adversarial_alignment_x.csv", index=False)
    top1 = np.array([70.0, 80.9, 68.0, 60.0, 90.0, 50.0])
    ids = [
        "torchvision--vgg11",
        "torchvision--resnet50",
        "timm--resnet18.a3_in1k",
        "timm--a",
        "timm--b",
        "timm--c",
    ]
    pd.DataFrame(
        {"model_dir_id": ids, "top1_val_acc": top1, "imagenet_mla_val_acc": np.polyval(cubic, top1)}
    ).to_csv(folder / "multilabel" / "stats-imagenet_x.csv", index=False)
    pd.DataFrame({"model": ["vgg11.tv_in1k", "resnet50.tv_in1k"], "top1": [70.1, 76.0]}).to_csv(
        folder / "timm" / "results-imagenet_x.csv", index=False
    )
    pd.DataFrame(
        {
            "model": ["resnet50", "resnet18_l2_eps0.01", "resnet18_linf_eps8.0_255"],
            "pt": [2.5, 5.0, 6.00004],
            "ps": [0.2, 0.1, 0.1],
            "aa": [40.0, -10.0, -20.0],
            "as_": [2.0, 1.0, 1.0],
        }
    ).to_csv(folder / "feng2025" / "seed_tables_1_2.csv", index=False)
    return folder


def write_summary(folder: Path, rows: list[dict]) -> Path:
    """A summary of made-up numbers."""
    common = {
        "threat": "L2-crossing",
        "eps": None,
        "image_set": "mine",
        "protocol": "crossing",
        "attack": "crossing 9 steps",
        "n": 20,
        "clean_acc": 0.5,
        "partial": 0,
    }
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame([common | row for row in rows]).to_csv(folder / SUMMARY_NAME, index=False)
    return folder


def make_norms(
    results,
    model,
    norms,
    threat="L2-crossing",
    image_set="mine",
    finish=True,
    beside=None,
    **settings,
):
    """A record of minimal norms: None is a misclassified image, inf one that nothing fools.

    beside   settings that name it beside the model's first record
    """
    settings = {
        "protocol": threat.split("-")[1],
        "norm": threat.split("-")[0],
        "attack": f"{threat} 9 steps",
        **settings,
    }
    column = threat.split("-")[0].lower()
    with Run(
        results,
        image_set,
        threat,
        model,
        "minimum_norm",
        {"model": {"name": model}, "run": settings},
        beside=beside,
    ) as run:
        run.append(
            [
                {
                    "image_id": f"{i}.jpg",
                    "label": 0,
                    "clean_pred": 0 if norm else 1,
                    "clean_correct": int(norm is not None),
                    "success": None if norm is None else int(norm < np.inf),
                    "adv_pred": 1,
                    column: norm if norm and norm < np.inf else None,
                }
                for i, norm in enumerate(norms)
            ]
        )
        if finish:
            run.finish([f"{i}.jpg" for i in range(len(norms))])


def without_l1(record: Path) -> None:
    """Make an L1 record one of an earlier version, which has no L1 norms."""
    rows = pd.read_csv(record, dtype=str, keep_default_na=False).drop(columns="l1")
    rows.to_csv(record, index=False)
    run_file = record.with_suffix(".json")
    info = json.loads(run_file.read_text()) | {"record_sha256": sha256_file(record)}
    run_file.write_text(json.dumps(info))
