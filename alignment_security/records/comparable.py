"""Which runs may share a panel: those whose settings are the same, so that the models alone differ.

Nothing is pooled: another slice, head, seed, budget or list of images is another panel.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable
from pathlib import Path

from alignment_security.records.record import FORMER_SETTINGS, first_difference

# settings that `attack` does not name, and the values that go without saying
DEFAULTS = {
    "head": "none",
    "seed": 0,
    "precision": "float32",
    "map_reduce": "max",
    "engine": "own",
}
# settings that a panel's title gives as its budget
BUDGET_NAMES = ("attack", "attacks", "eps", *DEFAULTS)
# settings that `attack` names, or that follow from those that it names
NAMED_BY_ATTACK = {"attack", "attacks", "steps", "targets", "queries", "draws", "walks"}

# settings that follow from another one, or that are named beside a title; where the other one
# differs they are not named again
FOLLOWING = {
    "images": {"images"},  # n of a panel
    "list_sha256": {"images", "slice"},
    "human_ceiling": {"human_map"},
    "human_map_blur": {"human_map"},
    "head_gradient": {"head"},
    **dict.fromkeys(NAMED_BY_ATTACK, {"attack"}),
}


def attack_text(run: dict) -> str:
    """The attack and its budget, then what is unusual: `FMN 100 steps, head animate, seed 1`.

    Records of one model, threat and image set that stand beside each other have different texts.
    """
    settings = run["settings"]["run"]
    texts = [settings["attack"]] if settings.get("attack") else []
    for name, default in DEFAULTS.items():
        value = settings.get(name)
        if value is not None and value != default:
            texts.append(f"{name} {value}")
    for name, value in run.get("beside", {}).items():
        if name not in NAMED_BY_ATTACK and name not in DEFAULTS:
            texts.append(f"{name} {value}")
    return ", ".join(texts)


def compared_by(runs: Iterable[dict]) -> Callable[[dict], str]:
    """The runs of one image set and threat that have to be alike: those of equal keys.

    All of them, but for an attack with a record that stands beside others: these have their own.
    """
    of_their_own = {(*run_folder(run), attack_text(run)) for run in runs if run.get("beside")}

    def key(run: dict) -> str:
        text = attack_text(run)
        return text if (*run_folder(run), text) in of_their_own else ""

    return key


def comparable_runs(
    runs: dict[Path, dict], one_budget: bool = False
) -> tuple[dict[Path, dict], dict[Path, str]]:
    """(the runs that share the summary's tables, run file -> why each other one does not).

    runs         all of a results folder, by run file
    one_budget   whether budgets and eps have to be alike too, though every row of the summary names
                 its own

    Of the runs of a folder that differ (in images, human maps, head, seed, ...) the larger group
    stays, of equal ones the first.
    """
    settings = {path: compared_settings(run, one_budget) for path, run in runs.items()}
    texts = {path: json.dumps(values, sort_keys=True) for path, values in settings.items()}
    groups: dict[tuple[Path, str], dict[str, list[Path]]] = {}
    table = compared_by(runs.values())
    for path in sorted(runs, key=lambda path: (path.parent, path.stem)):  # net, net+steps-100
        of_table = groups.setdefault((path.parent, table(runs[path])), {})
        of_table.setdefault(texts[path], []).append(path)
    kept: dict[Path, dict] = {}
    left_out: dict[Path, str] = {}
    for of_table in groups.values():
        largest = max(of_table.values(), key=len)
        first = largest[0]
        kept |= {path: runs[path] for path in largest}
        others = [group for group in of_table.values() if group is not largest]
        for path in itertools.chain.from_iterable(others):
            difference = first_difference(settings[first], settings[path])
            left_out[path] = (
                f"{path}: not comparable with {first.name}, whose settings differ ({difference}); "
                f"{why_not_kept(len(largest), len(of_table[texts[path]]))}; evaluate it again with "
                "the settings of those that stay, or remove those (merge --strict refuses instead)"
            )
    return kept, left_out


def why_not_kept(kept: int, left_out: int) -> str:
    """The rule by which one group of comparable runs stays, and how many runs both have."""
    if kept > left_out:
        return f"the most runs that are alike stay, here {kept} against {left_out}"
    return f"of equally many runs that are alike, here {kept}, those of the first name stay"


def compared_settings(run: dict, with_budget: bool) -> dict:
    """The settings in which the runs of a table have to be alike."""
    ignored = {*FORMER_SETTINGS, *(() if with_budget else (*NAMED_BY_ATTACK, "eps"))}
    settings = run["settings"]["run"].items()
    return {name: value for name, value in settings if name not in ignored and value is not None}


def run_folder(run: dict) -> tuple[str, str]:
    """Image set and threat of a run: the folders of its record."""
    return run["image_set"], run["threat"]


def comparable_settings(run: dict) -> tuple[str, str, str]:
    """Key of the runs of one panel: every setting but the list of eps."""
    settings = run["settings"]["run"] | {"eps": None}
    return *run_folder(run), json.dumps(settings, sort_keys=True)


def corruption_settings(run: dict) -> tuple[str, str]:
    """Key of the runs of one figure of corruptions: every setting but type and severity."""
    settings = run["settings"]["run"] | dict.fromkeys(["attack", "protocol"])
    corruption = settings.pop("corruption", None)
    if isinstance(corruption, dict):
        settings["corruption"] = {
            name: value for name, value in corruption.items() if name not in ("type", "severity")
        }
    return run["image_set"], json.dumps(settings, sort_keys=True)


def images_and_head(run: dict) -> tuple[str, str, str]:
    """Key of the runs of one figure of protocols: image set, head, and list of images."""
    settings = run["settings"]["run"]
    images = [settings.get("list_sha256"), settings.get("slice"), run["images"]]
    return run["image_set"], settings.get("head", "none"), json.dumps(images)


def distinguishing_settings(run: dict, groups: list[list[dict]]) -> list[str]:
    """`name value` of each setting in which a run's panel differs from the others of its threat.

    groups   the runs of all panels
    What `attack_text` gives is not named again, nor what follows from another setting.
    """
    settings = run["settings"]["run"]
    beside = [group[0] for group in groups if run_folder(group[0]) == run_folder(run)]
    others = [one["settings"]["run"] for one in beside]
    differing = {
        name
        for name, value in settings.items()
        if any(other.get(name) != value for other in others)
    }
    return [
        f"{name} {str(value)[:12]}"
        for name, value in settings.items()
        if name in differing
        and name not in BUDGET_NAMES
        and not FOLLOWING.get(name, set()) & differing
    ]


def numbered(names: list[str]) -> list[str]:
    """Names of figures, with a number where a name comes more than once."""
    return [
        name if names.count(name) == 1 else f"{name}_{names[:i].count(name) + 1}"
        for i, name in enumerate(names)
    ]
