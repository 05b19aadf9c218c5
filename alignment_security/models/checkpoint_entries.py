"""Find the weights of a network in a checkpoint, however others packed them.

A checkpoint holds a network where some of its tensors, under names that begin alike, fit the
architecture exactly: the same names, shapes and kinds of numbers, none missing and none more.
Around them may be dicts (`state_dict`, `model_ema`), wrappers (`module.` of DataParallel, `net.` of
Lightning) and other networks. What is taken is never a guess: where two networks fit, or tensors of
unknown use lie beside the one that does, `--checkpoint_key` has to name it.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from alignment_security.models.checkpoint_files import IN_DICT, read_checkpoint
from alignment_security.models.checkpoint_fit import (
    BATCH_NORM_COUNTER,
    NOT_THE_NET,
    Candidate,
    CreateNet,
    advice,
    fit,
)
from alignment_security.models.heads import ModelError

# what torch.compile, FSDP and activation checkpointing put into names, at any depth
WRAPPERS = re.compile(
    r"(?:^|(?<=[./]))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module"
    r"|_forward_module)\."
)
NORMALISER = re.compile(r"(normalizer|normalize)\.(new_)?(mean|std)")
# the same under other names: of nn.Sequential, or buffers of a wrapper
TRIPLE = re.compile(rf"(?P<module>(?:.*[.{IN_DICT}])?)(?P<kind>mean|std|mu|sigma)")
USUAL_KIND = {"mu": "mean", "sigma": "std"}
FIRST_NAME = re.compile(rf"[^.{IN_DICT}]+[.{IN_DICT}]")  # of a path of names, with what follows it


@dataclass(frozen=True)
class FittedNet:
    """A network with the weights of a checkpoint.

    entry           path of names in the file, "" for the whole file
    normalisation   {"mean": ..., "std": ...} of the normaliser beside the network; {} without one
    notes           which entry was taken, what was left out, and weights of half precision; [] for
                    a plain state dict
    """

    net: nn.Module
    entry: str
    normalisation: dict[str, tuple[float, ...]]
    notes: list[str]


def load_checkpoint(
    create_net: CreateNet, path: Path, trust: bool = False, key: str | None = None
) -> FittedNet:
    """The network of a checkpoint file, with as many outputs as its classifier has classes.

    create_net   builds the architecture; num_classes replaces its number of outputs
    trust        let code in the file run
    key          entry of the file to take, where several fit

    Raises ModelError where nothing in the file fits, or more than one thing does.
    """
    path = Path(path)
    tensors = {WRAPPERS.sub("", name): x for name, x in read_checkpoint(path, trust).items()}
    tensors = name_normaliser(tensors)
    candidates = find_candidates(create_net, tensors)
    fitting = {entry: c for entry, c in candidates.items() if not c.misfit}
    if not fitting:
        raise ModelError(_misfit_message(path, candidates))
    entry = _chosen_entry(path, tensors, fitting, key)
    candidate = fitting[entry]
    candidate.net.load_state_dict(candidate.state)
    left_out = [name for name in others_beside(tensors, entry) if tensors[name].numel() > 1]
    normalisation = checkpoint_normalisation(tensors, entry, path)
    return FittedNet(
        candidate.net,
        shown(entry),
        normalisation,
        [
            *([_entry_note(path, entry, normalisation, left_out)] if entry or left_out else []),
            *_precision_note(path, candidate.state),
        ],
    )


# ---- entries -------------------------------------------------------------------------------------


def find_candidates(create_net: CreateNet, tensors: dict[str, Tensor]) -> dict[str, Candidate]:
    """Entries that hold at least half as many tensors as the network, each as a candidate.

    An entry that fits is not searched for further ones.
    """
    net = create_net()
    least = sum(BATCH_NORM_COUNTER not in name for name in net.state_dict()) / 2
    found: dict[str, Candidate] = {}
    waiting = [""]
    while waiting:
        entry = waiting.pop(0)
        inside = {name[len(entry) :]: x for name, x in tensors.items() if name.startswith(entry)}
        found[entry] = fit(create_net, net, inside)
        if found[entry].misfit:
            children = Counter(match[0] for name in inside if (match := FIRST_NAME.match(name)))
            waiting += [
                entry + child
                for child, count in children.items()
                if count >= least and not NOT_THE_NET.match(child)
            ]
    return found


def shown(entry: str) -> str:
    """An entry as messages and --checkpoint_key write it."""
    return entry.replace(IN_DICT, ".").rstrip(".")


def others_beside(tensors: dict[str, Tensor], entry: str) -> list[str]:
    """Names of the tensors that are neither in an entry nor known to belong to a wrapper."""
    ends = [0, *(match.end() for match in re.finditer(rf"[.{IN_DICT}]", entry))]
    parents = [entry[:end] for end in ends]

    def is_known(name: str) -> bool:
        return any(name.startswith(p) and NOT_THE_NET.match(name[len(p) :]) for p in parents)

    return [name for name in tensors if not name.startswith(entry) and not is_known(name)]


def _chosen_entry(
    path: Path, tensors: dict[str, Tensor], fitting: dict[str, Candidate], key: str | None
) -> str:
    """The one entry that may be taken. Raises ModelError."""
    names = {shown(entry): entry for entry in fitting}
    if key is not None:
        if key not in names:
            raise ModelError(
                f"{path}: --checkpoint_key {key}: no such entry that fits this architecture; there "
                f"is {', '.join(map(repr, names))}"
            )
        return names[key]
    if len(fitting) > 1:
        raise ModelError(
            f"{path}: holds {len(fitting)} networks that fit, {', '.join(map(repr, names))}; "
            f"evaluate one with --checkpoint_key {list(names)[-1]} or save it alone (averaged "
            "weights are usually the published ones)"
        )
    entry = next(iter(fitting))
    own_dict = entry[: entry.rfind(IN_DICT) + 1]
    beside = [name for name in others_beside(tensors, entry) if _is_in_dict(name, own_dict)]
    if beside:
        raise ModelError(
            f"{path}: its entry {shown(entry)!r} fits, with {len(beside)} other tensors in the "
            f"same state dict ({shown(beside[0])}, ...); if they do not belong to the network, "
            f"pass --checkpoint_key {shown(entry)}"
        )
    return entry


def _is_in_dict(name: str, own_dict: str) -> bool:
    return name.startswith(own_dict) and IN_DICT not in name[len(own_dict) :]


def _entry_note(path: Path, entry: str, normalisation: dict, left_out: list[str]) -> str:
    note = f"{path.name}: its weights are the entry {shown(entry)!r}"
    if normalisation:
        note += ", its mean and std those of the file"
    if left_out:
        note += f"; {len(left_out)} other tensors are left out ({shown(left_out[0])}, ...)"
    return note


def _precision_note(path: Path, state: dict[str, Tensor]) -> list[str]:
    """A sentence about weights that were stored in fewer bits than the network has."""
    halves = [x.dtype for x in state.values() if x.is_floating_point() and x.element_size() < 4]
    if not halves:
        return []
    kinds = " and ".join(sorted({str(dtype).removeprefix("torch.") for dtype in halves}))
    return [
        f"{path.name}: {len(halves)} tensors are stored in {kinds} and run in float32; the network "
        "before it was rounded may have other accuracies and norms"
    ]


def _misfit_message(path: Path, candidates: dict[str, Candidate]) -> str:
    """Why the entry that resembles the architecture most does not fit."""

    def likeness(entry: str) -> tuple[int, bool]:
        state, net = candidates[entry].state, candidates[entry].net
        return len(state.keys() & net.state_dict().keys()), bool(state)

    entry = max(candidates, key=likeness)
    where = f" (entry {shown(entry)!r})" if entry else ""
    misfit, found = candidates[entry].misfit, ""
    if misfit.startswith("lacks"):
        found = _unknown_name(candidates[entry])
    return f"{path}{where}: does not fit this architecture, it {misfit}{found}; {advice(misfit)}"


def _unknown_name(candidate: Candidate) -> str:
    """What stands in an entry instead of what it lacks, behind a beginning of all its names."""
    beginnings = {name[: name.find(".") + 1] for name in candidate.state}
    prefix = beginnings.pop() if len(beginnings) == 1 else ""
    names = [shown(name.removeprefix(prefix)) for name in candidate.state]
    unknown = [name for name in names if name not in candidate.net.state_dict()]
    if not unknown:
        return ""
    return f" and has {unknown[0]!r}" + (f" after {prefix!r}, which is harmless" if prefix else "")


# ---- normalisation -------------------------------------------------------------------------------


def name_normaliser(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give three means and three stds in one module the names of the robustness package.

    Where several modules hold such a pair, which one normalises is a guess: they stay as they are.
    """
    triples = [
        match for name, x in tensors.items() if x.numel() == 3 and (match := TRIPLE.fullmatch(name))
    ]
    modules = [
        module for module, n in Counter(match["module"] for match in triples).items() if n == 2
    ]
    if len(modules) != 1 or any(NORMALISER.search(name) for name in tensors):
        return tensors
    (module,) = modules
    is_alone = sum(name.startswith(module) for name in tensors) == 2
    parent = re.sub(rf"[^.{IN_DICT}]+[.{IN_DICT}]$", "", module) if is_alone else module
    kinds = {match[0]: match["kind"] for match in triples if match["module"] == module}
    usual = {name: USUAL_KIND.get(kind, kind) for name, kind in kinds.items()}
    return {
        f"{parent}normalizer.{usual[name]}" if name in usual else name: tensor
        for name, tensor in tensors.items()
    }


def checkpoint_normalisation(
    tensors: dict[str, Tensor], entry: str, path: Path
) -> dict[str, tuple[float, ...]]:
    """{"mean": ..., "std": ...} of the normaliser in or around an entry, or {} if it has none.

    The network was trained behind it, so it replaces the normalisation of the timm name. Raises
    ModelError unless it has three means and three positive stds.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        match = re.search(rf"(^|[.{IN_DICT}]){NORMALISER.pattern}$", name)
        if match and entry.startswith(name[: match.start(2)]):
            found[match[4]] = tensor
    if not found:
        return {}
    complete = found.keys() == {"mean", "std"}
    three_values = all(values.numel() == 3 for values in found.values())
    if not complete or not three_values or found["std"].min() <= 0:
        shown_sizes = {kind: tuple(values.shape) for kind, values in found.items()}
        raise ModelError(
            f"{path}: its normaliser is not three means and three positive stds but {shown_sizes}; "
            "save the state dict of the network alone"
        )
    return {
        kind: tuple(round(value, 6) for value in values.flatten().tolist())
        for kind, values in found.items()
    }
