"""Which runs may share a panel: those whose settings are the same, so that the models alone differ.

Nothing is pooled: another slice, head, seed, budget or list of images is another panel.
"""

from __future__ import annotations

import json

BUDGET_NAMES = ("attack", "attacks", "eps")  # settings that a panel's title gives as its budget


def comparable_settings(run: dict) -> tuple[str, str, str]:
    """Key of the runs of one panel: every setting but the list of eps."""
    settings = run["settings"]["run"] | {"eps": None}
    return run["image_set"], run["threat"], json.dumps(settings, sort_keys=True)


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
    A head is always named.
    """
    settings = run["settings"]["run"]
    others = [settings | {"head": "none"}]
    others += [group[0]["settings"]["run"] for group in groups if is_beside(group[0], run)]
    return [
        f"{name} {str(value)[:12]}"
        for name, value in settings.items()
        if name not in BUDGET_NAMES and any(other.get(name) != value for other in others)
    ]


def is_beside(run: dict, other: dict) -> bool:
    """Whether two runs have the same image set and threat."""
    return (run["image_set"], run["threat"]) == (other["image_set"], other["threat"])


def numbered(names: list[str]) -> list[str]:
    """Names of figures, with a number where a name comes more than once."""
    return [
        name if names.count(name) == 1 else f"{name}_{names[:i].count(name) + 1}"
        for i, name in enumerate(names)
    ]
