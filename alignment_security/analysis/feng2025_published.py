"""The public numbers of Feng et al. (2025), and public accuracies of the models they measured.

Read from the folder of --published (PUBLISHED_DIR of .env); results/README.md says where each file
is from.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pandas as pd

from alignment_security.analysis.norm_table import (
    MULTILABEL,
    NORM_TABLE_COLUMNS,
    NOT_STANDARD,
    PUBLISHED,
    NormTable,
)
from alignment_security.analysis.results import Results
from alignment_security.common.files import UserError
from alignment_security.common.folders import glob_visible
from alignment_security.common.public_nets import public_nets
from alignment_security.common.tables import read_table, to_numbers
from alignment_security.models.families import family
from alignment_security.models.lists import read_model_list
from alignment_security.records.summary_rows import per_pixel, size_text

DOWNLOAD = "download it again, from where results/README.md says"
ROBUST_NAME = re.compile(r"(?P<net>.+)_(?P<norm>l2|linf)_eps(?P<eps>[\d.]+)(_255)?$")
TIMM_TOP1_TABLES = "timm/results-imagenet_*.csv"
TORCHVISION_TAG = ".tv_in1k"  # timm's name for the first weights of torchvision
# names of eth-sri/automated-error-analysis that are neither `timm--NAME` nor `torchvision--NAME`
MULTILABEL_NAMES = {
    "regnetx_004_tv.tv2_in1k": "torchvision--regnet_x_400mf",
    "regnetx_008.tv2_in1k": "torchvision--regnet_x_800mf",
    "regnetx_016.tv2_in1k": "torchvision--regnet_x_1_6gf",
    "regnety_004.tv2_in1k": "torchvision--regnet_y_400mf",
    "regnety_008_tv.tv2_in1k": "torchvision--regnet_y_800mf",
    "regnety_016.tv2_in1k": "torchvision--regnet_y_1_6gf",
    "resnet18.fb_ssl_yfcc100m_ft_in1k": "facebook--resnet18_ssl",
    "resnet18.fb_swsl_ig1b_ft_in1k": "facebook--resnet18_swsl",
    "convnext_base.fb_in22k_ft_in1k": "facebook--convnext-base-224-22k-1k",
    "convnext_base.fb_in22k_ft_in1k_384": "facebook--convnext-base-384-22k-1k",
    "convnext_large.fb_in22k_ft_in1k_384": "facebook--convnext-large-384-22k-1k",
}
# of all 702 published errors: SD / error is sqrt(240), though the text speaks of 960 images
PUBLISHED_ERRORS = (
    "its standard errors are SD / √240, whatever the number of images (960 in the text)"
)
PUBLISHED_SIZE = (224, 224)  # of the attacked images, whatever the net's own size
SAME_WEIGHTS = 1.0  # percent of top-1 by which two tables may differ on the same weights
# top-1 of the linear heads in percent (Oquab et al. 2023, DINOv2, table 4), absent in timm's tables
DINOV2_TOP1 = {
    "vit_small_patch14_dinov2.lvd142m": 81.1,
    "vit_base_patch14_dinov2.lvd142m": 84.5,
    "vit_large_patch14_dinov2.lvd142m": 86.3,
    "vit_giant_patch14_dinov2.lvd142m": 86.5,
}


def published_table(
    results: Results, pattern: str, names: list[str], numbers: list[str]
) -> pd.DataFrame | None:
    """All public files of a pattern in one table, the oldest first; None if there is none.

    names, numbers   columns that each file has to have: text, and numbers
    Raises UserError if the folder does not exist or a file cannot be read.
    """
    folder = results.published
    if folder is None:
        return None
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such folder; --published (or PUBLISHED_DIR of .env) names it"
        )
    tables = [
        to_numbers(path, read_table(path, [*names, *numbers], DOWNLOAD), numbers, DOWNLOAD)
        for path in glob_visible(folder, pattern)
    ]
    return pd.concat(tables, ignore_index=True) if tables else None


def model_groups(public: pd.Series) -> pd.Series:
    """Group of public nets in Feng 2025 (SSL, CNN, ViT, Hybrid, robust); missing if not in it."""
    table = read_model_list("feng2025")
    return public.map(dict(zip(table["name"], table["group"])))


def own_groups(rows: pd.DataFrame) -> pd.Series:
    """Group of each row of the summary: the study's, else the run file's, else "Other".

    A file of the name that the study's list gives to its robust nets gets the list's group, even
    though its sha256 is not known: it is no standard model.
    """
    listed = read_model_list("feng2025").set_index("name")
    has_listed_file = rows["weights"] == rows["model"].map(listed["weights"])
    of_file = rows["model"].where(has_listed_file).map(listed["group"])
    recorded = rows["group"].replace({"": np.nan, "plain": "Other"})
    return model_groups(public_nets(rows)).fillna(of_file).fillna(recorded).fillna("Other")


def run_groups(runs: list[dict]) -> list[str]:
    """`own_groups` of some runs, read from their run files."""
    columns = ["model", "weights", "weights_sha256", "group"]
    facts = [run["settings"].get("model", {}) | {"model": run["model"]} for run in runs]
    rows = pd.DataFrame(facts, columns=columns)
    return own_groups(rows.fillna({"weights": "", "weights_sha256": ""})).tolist()


# ---- accuracies ----------------------------------------------------------------------------------


def top1_accuracies(results: Results) -> dict[str, float]:
    """ImageNet top-1 in percent by model name: DINOv2's, timm's, and that of robust checkpoints.

    The oldest of timm's tables comes first, since the models of Feng 2025 are from its time.
    """
    dinov2 = pd.DataFrame({"model": list(DINOV2_TOP1), "top1": list(DINOV2_TOP1.values())})
    timm = published_table(results, TIMM_TOP1_TABLES, ["model"], ["top1"])
    robust = published_table(results, "feng2025/robust_checkpoints_top1.csv", ["model"], ["top1"])
    tables = [table[["model", "top1"]] for table in (dinov2, timm, robust) if table is not None]
    first = pd.concat(tables).drop_duplicates("model")
    return dict(zip(first["model"], first["top1"]))


def multilabel_name(model: str, known: pd.Index) -> str:
    """Name of a timm model in eth-sri/automated-error-analysis; "" if it is not there."""
    names = [f"timm--{model}", MULTILABEL_NAMES.get(model, "")]
    if model.endswith(TORCHVISION_TAG):
        names.append(f"torchvision--{model.removesuffix(TORCHVISION_TAG)}")
    return next((name for name in names if name in known), "")


def multilabel_accuracy(results: Results, models: pd.Series) -> pd.DataFrame:
    """Multi-label accuracy in percent (`accuracy`) of public nets, and whether it is `estimated`.

    models   names of public nets (`public_net`); "" has no accuracy
    Measured: eth-sri/automated-error-analysis. Its torchvision names may be newer weights than
    timm's, so those count only if the top-1 of both agree within SAME_WEIGHTS. Estimated: a cubic
    in top-1, fitted to all models of that table, at the model's top-1. Neither: nan.
    """
    table = published_table(
        results,
        "multilabel/stats-imagenet*.csv",
        ["model_dir_id"],
        ["top1_val_acc", "imagenet_mla_val_acc"],
    )
    if table is None:
        return pd.DataFrame({"accuracy": np.nan, "estimated": False}, index=models.index)
    top1 = models.map(top1_accuracies(results)).astype(float)
    known = table.drop_duplicates("model_dir_id").set_index("model_dir_id")
    rows = known.reindex([multilabel_name(model, known.index) for model in models])
    rows.index = models.index
    differs = (rows["top1_val_acc"] - top1).abs() > SAME_WEIGHTS
    other_weights = models.str.endswith(TORCHVISION_TAG) & differs
    measured = rows["imagenet_mla_val_acc"].mask(other_weights)
    cubic = np.polyfit(table["top1_val_acc"], table["imagenet_mla_val_acc"], 3)
    estimate = pd.Series(np.polyval(cubic, top1), models.index)
    return pd.DataFrame(
        {
            "accuracy": measured.fillna(estimate),
            "estimated": measured.isna() & estimate.notna(),
        }
    )


# ---- norms and alignments ------------------------------------------------------------------------


def paper_tables(results: Results) -> pd.DataFrame | None:
    """Tables 1 (harmonized nets) and 2 (robust nets) of Feng 2025 as printed.

    Columns table, model, pt, pt_sem, alignment, alignment_sem (the last two as fractions). None
    without the file.
    """
    table = published_table(
        results, "feng2025/seed_tables_1_2.csv", ["model"], ["pt", "ps", "aa", "as_"]
    )
    if table is None:
        return None
    robust = table["model"].str.match(ROBUST_NAME.pattern)
    return pd.DataFrame(
        {
            "table": np.where(robust, 2, 1),
            "model": table["model"].str.removesuffix("_255").where(robust, table["model"]),
            "pt": table["pt"],
            "pt_sem": table["ps"],
            "alignment": table["aa"] / 100,
            "alignment_sem": table["as_"] / 100,
        }
    )


def published_norms(results: Results) -> Iterator[NormTable]:
    """The 351 models of Feng 2025's public file, and the harmonized nets of its Table 1.

    The harmonized nets have no accuracy: it is not public.
    """
    table = published_table(
        results,
        "feng2025/adversarial_alignment*.csv",
        ["model"],
        ["pt", "aa", "pt_sem", "aa_sem"],
    )
    if table is None:
        return
    rows = table.drop_duplicates("model").rename(
        columns={"aa": "alignment", "aa_sem": "alignment_sem"}
    )
    rows = rows.assign(public=rows["model"], group=model_groups(rows["model"]).fillna("Other"))
    printed = paper_tables(results)
    if printed is not None:
        nets = printed[printed["table"] == 1].assign(group="harmonized", public="")
        nets["model"] += " (harmonized)"  # so that it joins with no timm model
        rows = pd.concat([rows, nets], ignore_index=True)
    with_accuracy = rows.loc[rows["group"] != "harmonized", "model"]
    rows = rows.join(multilabel_accuracy(results, with_accuracy))
    standard = ~rows["group"].isin(NOT_STANDARD)
    rows = rows.assign(
        source=PUBLISHED,
        weights=("timm:" + rows["model"]).where(standard, ""),
        weights_sha256="",
        list_sha256="",
        size=size_text(PUBLISHED_SIZE),
        pt_per_pixel=[per_pixel(pt, PUBLISHED_SIZE) for pt in rows["pt"]],
        family=rows["model"].map(family),
        estimated=rows["estimated"].fillna(False).astype(bool),
        n_norm=pd.array([pd.NA] * len(rows), "Int64"),
        n_alignment=pd.array([pd.NA] * len(rows), "Int64"),
    )
    note = published_note(rows)
    yield NormTable(PUBLISHED, rows[NORM_TABLE_COLUMNS], MULTILABEL, note, head="animate")


def published_note(rows: pd.DataFrame) -> str:
    """Facts on the public numbers, for a caption."""
    standard = rows[~rows["group"].isin(NOT_STANDARD)]
    return (
        f"{PUBLISHED} (TonyFPY/Adversarial_Alignment@597da67, Tables 1 and 2): {len(standard)} "
        f"standard, {rows['group'].eq('robust').sum()} robust, "
        f"{rows['group'].eq('harmonized').sum()} harmonized nets; protocol feng2025 (its norms are "
        f"not minimal); {PUBLISHED_ERRORS}. Multi-label accuracy of "
        f"eth-sri/automated-error-analysis: of {len(standard)} standard models "
        f"{standard['estimated'].sum()} are estimated from their top-1, as all robust ones are; "
        f"{rows['accuracy'].isna().sum()} models have none."
    )
