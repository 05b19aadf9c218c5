"""The files that this project writes and reads again: what each column and key may hold.

results/README.md says what they mean. A column or key may be added; none is renamed.
"""

from __future__ import annotations

import re

from alignment_security.common.schema import FOLDER_NAME, NAME, NUMBER, TEXT, WHOLE, Column

NONE = type(None)
COUNT = Column(WHOLE)
PASSES = Column(WHOLE, empty=True, shared=True)  # attacks of libraries share those of a batch
CLASS, FLAG = Column(WHOLE), Column(WHOLE, high=1)
SHARE = Column(NUMBER, high=1, empty=True)
ANY_NUMBER = Column(NUMBER, low=-1e30, high=1e30, empty=True)
LARGEST_L2 = 2e4  # of a perturbation of 1 at each of 3 x 10,000 x 10,000 values, rounded up
LARGEST_LINF = 1 + 1e-6
NORM_L2, NORM_LINF = (Column(NUMBER, high=high, empty=True) for high in (LARGEST_L2, LARGEST_LINF))

NORM_L1 = Column(NUMBER, high=LARGEST_L2**2, empty=True)


def optional(column: Column) -> Column:
    """The same column, whose cells may be empty."""
    return column._replace(empty=True)


# results/records/<image set>/<threat>/<model>.csv
RECORD = {
    "image_id": Column(TEXT),
    "label": CLASS,
    "clean_pred": CLASS,
    "clean_correct": FLAG,
    "clean_top5": optional(FLAG),
    "clean_real": optional(FLAG),
    "clean_multilabel": optional(FLAG),
    "eps": Column(NUMBER, high=LARGEST_L2**2),  # L1 norms are larger
    "robust": optional(FLAG),
    "success": optional(FLAG),
    "adv_pred": optional(CLASS),
    "broken_by": Column(TEXT, empty=True),
    "from_eps": Column(NUMBER, high=LARGEST_L2**2, empty=True),
    "linf": NORM_LINF,
    "l2": NORM_L2,
    "l1": NORM_L1,
    "human_alignment_raw": Column(NUMBER, low=-1, high=1, empty=True),
    "human_alignment": Column(NUMBER, low=-2, high=2, empty=True),
    "forwards": PASSES,
    "backwards": PASSES,
    "draws": optional(COUNT),
    "wrong_share": SHARE,
    "wrong_low": SHARE,
    "wrong_high": SHARE,
    "screen_norm": NORM_L2,
    "stage": Column(NAME),
}

# <results>/evaluation_results.csv, of `utilities.py merge`
SUMMARY = {
    "model": Column(TEXT),
    "threat": Column(NAME),
    "image_set": Column(NAME),
    "eps": Column(NUMBER, high=LARGEST_L2**2, empty=True),
    "protocol": Column(TEXT, empty=True),
    "attack": Column(TEXT, empty=True),
    "n": optional(COUNT),
    "clean_correct": optional(COUNT),
    "clean_acc": SHARE,
    "clean_top5": SHARE,
    "clean_real": SHARE,
    "clean_multilabel": SHARE,
    "robust": optional(COUNT),
    "robust_acc": SHARE,
    "robust_estimate": SHARE,
    "robust_low": SHARE,
    "robust_high": SHARE,
    "n_standing": optional(COUNT),
    "n_top": optional(COUNT),
    "n_sample": optional(COUNT),
    "n_norm": optional(COUNT),
    "success_rate": SHARE,
    "l2_mean": NORM_L2,
    "l2_sem": NORM_L2,
    "l2_median": NORM_L2,
    "l2_per_pixel": NORM_LINF,
    "size": Column(TEXT, empty=True),
    "linf_mean": NORM_LINF,
    "linf_sem": NORM_LINF,
    "linf_median": NORM_LINF,
    "n_without_norm": optional(COUNT),
    "l2_median_all": NORM_L2,
    "linf_median_all": NORM_LINF,
    "l1_mean": NORM_L1,
    "l1_sem": NORM_L1,
    "l1_median": NORM_L1,
    "l1_median_all": NORM_L1,
    "human_alignment": Column(NUMBER, low=-2, high=2, empty=True),
    "human_alignment_sem": Column(NUMBER, high=2, empty=True),
    "n_alignment": optional(COUNT),
    "forwards_per_image": optional(Column(NUMBER)),
    "backwards_per_image": optional(Column(NUMBER)),
    "partial": optional(FLAG),
    "weights": Column(TEXT, empty=True),
    "weights_sha256": Column(TEXT, empty=True),
    "group": Column(TEXT, empty=True),
    "list_sha256": Column(TEXT, empty=True),
    "head": Column(TEXT, empty=True),
    "seed": optional(Column(WHOLE, low=-1e15, high=1e15)),
    "git": Column(TEXT, empty=True),
    "device": Column(TEXT, empty=True),
    "seconds": optional(Column(NUMBER)),
}

# results/training/<name>/log.csv
TRAINING_LOG = {
    "step": COUNT,
    "epoch": Column(NUMBER),
    "lr": Column(NUMBER),
    "loss": ANY_NUMBER,
    "cross_entropy": ANY_NUMBER,
    "harmonizer": ANY_NUMBER,
    "accuracy": SHARE,
    "gradient_norm": optional(Column(NUMBER, high=1e30)),
    "val_accuracy": SHARE,
    "val_robust": SHARE,
    "val_alignment": Column(NUMBER, low=-2, high=2, empty=True),
}
# columns that logs of earlier versions lack
ADDED_TO_TRAINING_LOG = ("val_robust", "val_alignment")

# <staging>/staged.tsv, of `utilities.py prestage`; a row of images has no model
STAGED = {
    "sha256": Column(TEXT),
    "tar": Column(NAME),
    "name": Column(TEXT, empty=True),
    "bytes": COUNT,
    "weights": Column(TEXT, empty=True),
    "weights_sha256": Column(TEXT, empty=True),
    "gpu_memory_mb": Column(WHOLE, low=1, high=1e7, empty=True),
}

SESSION = {
    "started": str,
    "seconds": (float, int),
    "version?": str,
    "git?": (str, NONE),
    "device?": (str, NONE),
    "versions?": dict,
    "examples?": int,
    "example_names?": [str],
}
# results/records/<image set>/<threat>/<model>.json
RUN_FILE = {
    "model": str,
    "image_set": FOLDER_NAME,
    "threat": FOLDER_NAME,
    "kind": FOLDER_NAME,
    "beside?": dict,
    "settings": {
        "model": {
            "weights?": (str, NONE),
            "weights_sha256?": (str, NONE),
            "preprocessing?": {"input_size?": [int]},
        },
        "run": {
            "attack?": (str, NONE),
            "protocol?": (str, NONE),
            "eps?": [(float, int)],
            "head?": FOLDER_NAME,
            "corruption?": {"type": str, "severity": int},
            "geometry?": re.compile(r"[1-9][0-9]{0,4} px.*"),
            "images?": (int, NONE),
            "list_sha256?": (str, NONE),
            "seed?": (int, NONE),
            "norm?": str,
            "attacks?": [str],
            "human_ceiling?": (float, NONE),
        },
    },
    "status": str,
    "sessions": [SESSION],
    "warnings": [str],
    "images?": int,
    "image_files?": {"list_sha256": str, "sizes_sha256": str, "times_sha256": str},
    "record_sha256?": str,
    "error?": (str, NONE),
}
EVALUATION = {"norm": str, "eps": (float, int), "attack": str, "image_set": str, "images": int}
# results/training/<name>/run.json
TRAINING_RUN = {
    "name": str,
    "settings": {"model?": dict, "run": {"epochs": int, "evaluation?": EVALUATION}},
    "status": str,
    "step": int,
    "sessions": [{"started": str}],
    "warnings?": [str],
}
