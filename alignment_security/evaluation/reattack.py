"""Re-run saved adversarial examples: does the perturbation of the record still fool the model?

Used by `python utilities.py audit --reattack K`. An example holds the pixels that the model saw
(exactly: they are 8-bit) and the perturbation in float32; older versions kept it in float16. That
rounding changes each pixel by up to 2^-11 of its perturbation, which can move a point on the
decision boundary to its other side. So a perturbation may be lengthened by up to a hundredth, and
no further.
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from alignment_security.attacks.libraries import stretch
from alignment_security.common.files import UserError, safe_file_name
from alignment_security.common.folders import glob_visible
from alignment_security.evaluation.threats.feng2025 import on_published_images
from alignment_security.models.heads import Model, ModelError
from alignment_security.models.loading import load_model
from alignment_security.models.sources import LOADERS, TIMM
from alignment_security.records.adversarial_examples import load_example
from alignment_security.records.record import network_of, read_record, read_run_file

LENGTHS = (1.0, 1.001, 1.01)  # of a perturbation at which it may fool
RANDOM_DRAWS = 80  # of a random network
NORM_RTOL = 2e-3  # by which float16 may change a norm, with room


def confirm_examples(
    results_dir: Path, count: int, seed: int = 0, checkpoint_dir: Path | None = None
) -> tuple[list[str], str]:
    """Re-run `count` examples drawn at random from results_dir/examples.

    Returns the findings, a sentence each, and a sentence on what was confirmed.
    """
    paths = glob_visible(results_dir / "examples", "*/*/*/*.npz")
    drawn = sorted(np.random.default_rng(seed).permutation(len(paths))[:count])
    findings: list[str] = []
    unavailable: list[str] = []
    confirmed = 0
    for folder, chosen in groupby([paths[i] for i in drawn], lambda path: path.parent):
        relative = folder.relative_to(results_dir / "examples")
        csv = results_dir / "records" / relative.with_name(f"{folder.name}.csv")
        try:
            run = read_run_file(csv.with_suffix(".json"))
            rows = read_record(csv).set_index("image_id", drop=False)
            model = model_of_run(run, checkpoint_dir)
            if run["settings"]["run"].get("geometry"):
                model = on_published_images(model)
        except ModelError as error:
            unavailable.append(f"{folder.name} is not available: {error}")
            continue
        except UserError as error:
            findings.append(f"{folder}: examples of a record that cannot be read ({error})")
            continue
        problems = [check_example(path, run, rows, model) for path in chosen]
        findings += filter(None, problems)
        confirmed += problems.count("")
    sentence = f"{confirmed} of {len(drawn)} examples confirmed ({len(paths)} are kept)"
    return findings, "; ".join([sentence, *dict.fromkeys(unavailable)])


def model_of_run(run: dict, checkpoint_dir: Path | None) -> Model:
    """The model of a run with its weights. Raises ModelError where they are not on this machine."""
    settings = run["settings"]["model"]
    weights = str(settings.get("weights"))
    kind, _, place = weights.partition(":")
    file_name = place if kind == "file" else settings.get("checkpoint")
    source = weights if kind in LOADERS else TIMM
    checkpoint = None
    if (file_name or kind == "python") and checkpoint_dir is None:
        file = place.rpartition(":")[0] if kind == "python" else file_name
        raise ModelError(
            f"it is of the file {file}; give the folder of that file with --checkpoint_dir, or "
            "CHECKPOINT_DIR of .env"
        )
    if file_name:
        checkpoint = Path(str(checkpoint_dir), file_name)
    if kind == "python":
        source = f"python:{checkpoint_dir}/{place}"
    model = load_model(
        settings.get("name", run["model"]),
        checkpoint,
        head=settings.get("head", "none"),
        architecture=settings.get("architecture"),
        source=source,
    )
    if network_of(model.settings) != network_of(settings):
        raise ModelError(
            f"the network on this machine ({model.settings['weights']}) is not that of its run"
        )
    return model


def check_example(path: Path, run: dict, rows: pd.DataFrame, model: Model) -> str:
    """What is wrong with an example, a sentence; "" if it fits its record and fools the model."""
    try:
        example = load_example(path)
    except UserError as error:
        return str(error)
    settings, (image, delta) = run["settings"]["run"], tensors_of(example)
    of_image = rows[[safe_file_name(name) == path.stem for name in rows["image_id"]]]
    matching = of_image[np.isclose(of_image["l2"], example["l2"], rtol=1e-9)]
    length = float(delta.norm())
    if matching.empty or abs(length - example["l2"]) > NORM_RTOL * example["l2"]:
        return (
            f"{path}: not the perturbation of its record (L2 norm {length:.6g}); evaluate the "
            "model again with --examples"
        )
    row, x = matching.iloc[0], image / 255
    if settings.get("pixels"):
        x = stretch(x[None])[0]
    points = torch.stack([x, *((x + factor * delta).clamp(0, 1) for factor in LENGTHS)])
    draws = RANDOM_DRAWS if settings.get("draws") else 1
    clean, *adversarial = predicted_classes(model, points, row["label"], draws)
    if clean != row["clean_pred"] and draws == 1 and not settings.get("restricted_to"):
        return (
            f"{path}: the clean image is class {clean} now, its record says "
            f"{int(row['clean_pred'])}; evaluate the model again"
        )
    if all(prediction == row["label"] for prediction in adversarial):
        return (
            f"{path}: does not fool {run['model']}, its record says that it does; evaluate the "
            "model again with --overwrite"
        )
    return ""


def tensors_of(example: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Image, levels of 255, and perturbation of an example: (3, H, W) float32."""
    arrays = (example[name].astype(np.float32) for name in ("image", "delta"))
    image, delta = (torch.from_numpy(array).permute(2, 0, 1) for array in arrays)
    return image, delta


def predicted_classes(model: Model, x: torch.Tensor, label: int, draws: int = 1) -> list[int]:
    """Predicted class of each of x (B, 3, H, W), one by one: batch composition cannot matter.

    draws   of a random network: the class is `label` unless more than half of them are wrong
    """
    classes = []
    for one in x:
        with torch.no_grad():
            drawn = [int(model.module(one[None]).argmax()) for _ in range(draws)]
        wrong = [prediction for prediction in drawn if prediction != label]
        classes.append(max(wrong, key=wrong.count) if 2 * len(wrong) > draws else label)
    return classes
