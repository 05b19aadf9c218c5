"""Kept examples put before their models once more: does the perturbation of the record still fool the model?

Used by `python utilities.py audit --reattack K`. An example holds the pixels that the model saw (exactly: they are 8-bit) and
the perturbation in float16. That rounding moves each pixel by up to 2^-11 of its change, enough to put a point that lies on
the decision boundary back; so a point may be moved out by up to a hundredth of its length, and no further.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from alignment_security.attacks.libraries import stretch
from alignment_security.common.files import UserError, safe_file_name
from alignment_security.models.heads import Model, ModelError
from alignment_security.models.loading import load_model
from alignment_security.records.adversarial_examples import load_example
from alignment_security.records.record import read_record, read_run_file

FURTHER = (1.0, 1.001, 1.01)  # lengths of a perturbation at which it may fool
CLOSE = 2e-3  # of a norm: what float16 may change of it, with room


def confirm_examples(
    results_dir: Path, count: int, seed: int = 0, checkpoint_dir: Path | None = None
) -> tuple[list[str], str]:
    """Findings about `count` examples drawn at random from results_dir/examples, and a sentence on what was confirmed."""
    paths = sorted((results_dir / "examples").glob("*/*/*/*.npz"))
    drawn = sorted(np.random.default_rng(seed).permutation(len(paths))[:count])
    found, confirmed, absent = [], 0, {}
    for folder, chosen in by_folder([paths[i] for i in drawn]).items():
        csv = (
            results_dir
            / "records"
            / folder.relative_to(results_dir / "examples").with_name(f"{folder.name}.csv")
        )
        try:
            run = read_run_file(csv.with_suffix(".json"))
            rows = read_record(csv).set_index("image_id", drop=False)
            model = model_of(run, checkpoint_dir)
        except ModelError as error:
            absent[folder.name] = str(error)
            continue
        except UserError as error:
            found.append(f"{folder}: examples of a record that cannot be read ({error})")
            continue
        lines = [line for path in chosen for line in check_example(path, run, rows, model)]
        found, confirmed = found + lines, confirmed + len(chosen) - len(lines)
    told = f"{confirmed} of {len(drawn)} examples confirmed ({len(paths)} are kept)"
    return found, "; ".join(
        [told, *(f"{name} is not at hand: {why}" for name, why in absent.items())]
    )


def by_folder(paths: list[Path]) -> dict[Path, list[Path]]:
    return {
        folder: [path for path in paths if path.parent == folder]
        for folder in dict.fromkeys(path.parent for path in paths)
    }


def model_of(run: dict, checkpoint_dir: Path | None) -> Model:
    """The model of a run with the weights that it names. Raises ModelError where they are not at hand."""
    settings = run["settings"]["model"]
    kind, _, name = str(settings.get("weights")).partition(":")
    if kind == "file" and checkpoint_dir is None:
        raise ModelError(
            f"its weights are in {name}; give --checkpoint_dir, or CHECKPOINT_DIR of .env"
        )
    checkpoint = checkpoint_dir / name if kind == "file" and checkpoint_dir else None
    model = load_model(
        run["model"],
        checkpoint,
        head=settings.get("head", "none"),
        architecture=settings.get("architecture"),
        source="brainscore" if kind == "brainscore" else "timm",
    )
    if model.settings["weights_sha256"] != settings.get("weights_sha256"):
        raise ModelError(
            f"the weights at hand ({model.settings['weights']}) are others than those of its run"
        )
    return model


def check_example(path: Path, run: dict, rows, model: Model) -> Iterator[str]:
    """One sentence if an example is not what its record says, or does not fool the model; none if it does."""
    try:
        kept = load_example(path)
    except UserError as error:
        yield str(error)
        return
    x, delta = (
        torch.from_numpy(kept[name].astype(np.float32)).permute(2, 0, 1)
        for name in ("image", "delta")
    )
    l2 = kept["l2"]
    mine = rows[[safe_file_name(name) == path.stem for name in rows["image_id"]]]
    fooled = mine[np.isclose(mine["l2"], l2, rtol=1e-9)]
    if fooled.empty or abs(float(delta.norm()) - l2) > CLOSE * l2:
        yield (
            f"{path}: not the perturbation of its record (L2 norm {float(delta.norm()):.6g}); evaluate the model again with "
            "--examples"
        )
        return
    row, x = fooled.iloc[0], x / 255
    if run["settings"]["run"].get("pixels"):
        x = stretch(x[None])[0]
    clean, *preds = predicted_classes(
        model, torch.stack([x, *((x + further * delta).clamp(0, 1) for further in FURTHER)])
    )
    if clean != row["clean_pred"] and not run["settings"]["run"].get("restricted_to"):
        yield f"{path}: the clean image is class {clean} now, its record says {int(row['clean_pred'])}; evaluate the model again"
    elif all(pred == row["label"] for pred in preds):
        yield f"{path}: does not fool {run['model']}, its record says that it does; evaluate the model again with --overwrite"


def predicted_classes(model: Model, x: torch.Tensor) -> list[int]:
    """Predicted class of each of x (B, 3, H, W), one by one: what shares a batch changes nothing."""
    with torch.no_grad():
        return [int(model.module(one[None]).argmax()) for one in x]
