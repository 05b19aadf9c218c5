"""Captions: what runs behind a figure have in common, and which models it lacks, and why."""

from __future__ import annotations

from alignment_security.analysis.results import run_budget
from alignment_security.common.eps import without_eps
from alignment_security.records.comparable import comparable_settings, run_folder
from alignment_security.records.summary_rows import attacked_size, size_text


def describe_runs(group: list[dict], runs: list[dict], undrawn: str = "") -> str:
    """A line for a caption on runs of one image set and threat that are drawn.

    group     the runs drawn
    runs      all runs, for the models of this image set that are missing, and why
    undrawn   why finished runs of the same settings are not drawn, where some are not
    Returns n, protocol, head, budget and dates of the group, the missing models, and the eps that
    some of the others lack.
    """
    image_set, threat = run_folder(group[0])
    facts = [
        f"{len(group)} model(s)",
        either("n =", [str(run["images"]) for run in group]),
        either("protocol", [str(run["settings"]["run"].get("protocol")) for run in group]),
    ]
    heads = [run["settings"]["run"].get("head", "none") for run in group]
    if set(heads) != {"none"}:
        facts.append(either("head", [head for head in heads if head != "none"]))
    facts += [*size_facts(group), *map_facts(group)]
    facts.append(either("budget", [run_budget(run) for run in group]))
    radii = {run["model"]: set(run["settings"]["run"].get("eps") or ()) - {0} for run in group}
    return (
        f"{image_set}, {threat}: {', '.join(facts)}, evaluated {evaluation_dates(group)}. "
        f"{missing_models(group, runs, undrawn)}{without_eps(radii, threat)}"
    )


def size_facts(group: list[dict]) -> list[str]:
    """The sizes of the images that some runs attacked, for a caption."""
    sizes = {text for run in group if (text := size_text(attacked_size(run)))}
    if len(sizes) < 2 or group[0]["kind"] != "minimum_norm":
        return [either("size", list(sizes))] if sizes else []
    return [f"{either('size', list(sizes))} (compare norms of different sizes per pixel)"]


def map_facts(group: list[dict]) -> list[str]:
    """How ClickMe's maps were read in some runs, for a caption."""
    settings = [run["settings"]["run"] for run in group]
    blurs = [one.get("human_map_blur") for one in settings if one.get("human_map") == "ClickMe"]
    return [either("maps blurred:", [blur or "no" for blur in blurs])] if blurs else []


def either(name: str, values: list[str]) -> str:
    """`name a or b`: the distinct values that some runs have."""
    return f"{name} {' or '.join(sorted(set(values)))}"


def evaluation_dates(runs: list[dict]) -> str:
    """First and last day on which a session of some runs started; one day if they are the same."""
    days = sorted(session["started"][:10] for run in runs for session in run["sessions"])
    first, last = days[0], days[-1]
    return first if first == last else f"{first} to {last}"


def missing_models(group: list[dict], runs: list[dict], undrawn: str = "") -> str:
    """The models without a finished record of a panel's settings, and unfinished other records.

    group     the runs of the panel
    runs      all runs; the models are those of its image set
    undrawn   why finished runs of these settings are not in the group; "": they are
    An unfinished record is named where it lacks: in the panel of its settings, or, where no
    finished record has these, in every panel of its threat.
    """
    image_set, threat = run_folder(group[0])
    of_panel = set(map(comparable_settings, group))
    of_set = [run for run in runs if run["image_set"] == image_set]
    of_threat = [run for run in of_set if run["threat"] == threat]
    with_settings = [run for run in of_threat if comparable_settings(run) in of_panel]
    status = {run["model"]: "not evaluated" for run in of_set}
    status |= {run["model"]: "other settings only" for run in of_threat}
    status |= {run["model"]: run["status"] for run in with_settings}
    done = [run for run in with_settings if run["status"] == "done"]
    drawn = {run["model"] for run in (group if undrawn else done)}
    status |= {run["model"]: "done" if run["model"] in drawn else undrawn for run in done}
    models: dict[str, list[str]] = {}
    for model, why in status.items():
        if why != "done":
            models.setdefault(why, []).append(model)
    sentences = [f"Missing ({why}): {', '.join(names)}." for why, names in models.items()]
    return " ".join([*(sentences or ["No model is missing."]), *unfinished_beside(of_threat)])


def unfinished_beside(runs: list[dict]) -> list[str]:
    """A sentence on the unfinished ones of a threat's runs whose settings no panel has, if any."""
    drawn = {comparable_settings(run) for run in runs if run["status"] == "done"}
    names = [
        f"{run['model']} with {run_budget(run)}, n = {run['settings']['run'].get('images')} "
        f"({run['status']})"
        for run in runs
        if run["status"] != "done" and comparable_settings(run) not in drawn
    ]
    return [f"Unfinished, in no panel: {'; '.join(names)}."] if names else []
