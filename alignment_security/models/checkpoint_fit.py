"""Fit a state dict to an architecture: names, shapes, kinds of numbers and number of classes."""

from __future__ import annotations

import inspect
import re
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from alignment_security.models.checkpoint_files import IN_DICT
from alignment_security.models.heads import ModelError

# The robustness package saves the network under `module.model.`, next to a second copy for its
# attacker and a normaliser; torch's AveragedModel counts in `n_averaged`.
NOT_THE_NET = re.compile(r"attacker\.|(normalizer|normalize)\.|n_averaged$")
# BatchNorm counters, unused in eval mode; torch has saved them since 0.4.1
BATCH_NORM_COUNTER = "num_batches_tracked"
# what timm's checkpoint filters raise for files of another origin
FILTER_ERRORS = (KeyError, RuntimeError, AttributeError, TypeError, ValueError, IndexError)
# A tensor may repeat stored values (stride 0); a file of a kilobyte may so claim terabytes.
MOST_REPEATED = 1_000_000
PROBE_CLASSES = 997  # two counts show which dimensions of a network are its classes
CreateNet = Callable[..., nn.Module]  # (num_classes=None) -> the architecture with random weights


@dataclass(frozen=True)
class Candidate:
    """An entry as the state dict of a network, and why it does not fit; "" if it does.

    state   under timm's names if it fits, else as in the file
    """

    net: nn.Module
    state: dict[str, Tensor]
    misfit: str


def fit(create_net: CreateNet, net: nn.Module, tensors: dict[str, Tensor]) -> Candidate:
    """The tensors of an entry under timm's names, with a network of as many classes."""
    state = {name: x for name, x in tensors.items() if not NOT_THE_NET.match(name)}
    dicts = Counter(name.rpartition(IN_DICT)[0] for name in state if IN_DICT in name)
    if dicts:
        (largest, count), wanted = dicts.most_common(1)[0], len(net.state_dict())
        where = largest.replace(IN_DICT, ".")
        misfit = f"has {count} tensors in {where!r}, its largest dict, where {wanted} are wanted"
        return Candidate(net, {}, misfit)
    if problem := unusable(state):
        return Candidate(net, state, problem)
    renamed = rename_for_timm(net, state)
    misfit = find_misfit(net, renamed)
    if misfit and (classes := count_classes(create_net, net, renamed)):
        other = create_net(num_classes=classes)
        renamed_for_other = rename_for_timm(other, state)
        if not find_misfit(other, renamed_for_other):
            return Candidate(other, renamed_for_other, "")
    return Candidate(net, state if misfit else renamed, misfit)


def unusable(state: dict[str, Tensor]) -> str:
    """What is wrong with the first tensor that is no plain array of numbers; "" for none."""
    for name, tensor in state.items():
        if tensor.is_quantized or tensor.layout != torch.strided or tensor.is_meta:
            kind = "meta" if tensor.is_meta else str(tensor.layout).removeprefix("torch.")
            return f"has {'quantised' if tensor.is_quantized else kind} values in {name!r}"
        stored = tensor.untyped_storage().nbytes()
        if tensor.numel() > MOST_REPEATED and tensor.numel() * tensor.element_size() > stored:
            return f"has {tensor.numel():,} values in {name!r} of which {stored:,} bytes are stored"
    return ""


def find_misfit(net: nn.Module, state: dict[str, Tensor]) -> str:
    """How a state dict differs from that of the network, naming a tensor; "" where it fits."""
    want = net.state_dict()
    common = [name for name in want if name in state]
    misfits = {
        "lacks": [name for name in want if name not in state],
        "has unknown": [name for name in state if name not in want],
        "has another shape of": [n for n in common if want[n].shape != state[n].shape],
    }
    for problem, names in misfits.items():
        if names:
            return f"{problem} {names[0]!r} ({len(names)} such tensor(s))"
    others = [name for name in common if not same_kind(want[name], state[name])]
    if not others:
        return ""
    name = others[0]
    return (
        f"has {dtype_name(state[name])} values in {name!r} where the network has "
        f"{dtype_name(want[name])} ({len(others)} such tensor(s))"
    )


def same_kind(want: Tensor, got: Tensor) -> bool:
    """Whether values keep their meaning when they are copied: floats of 16 bits and more into
    floats, whole numbers into whole numbers, truth values into truth values."""
    if want.is_floating_point():
        return got.is_floating_point() and got.element_size() >= 2
    if want.dtype == torch.bool or got.dtype == torch.bool:
        return want.dtype == got.dtype
    return not got.is_floating_point() and not got.is_complex()


def dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def count_classes(create_net: CreateNet, net: nn.Module, state: dict[str, Tensor]) -> int | None:
    """The number of classes of a state dict: the sizes that change with timm's num_classes.

    None where they do not agree, or are those that the network has.
    """
    with torch.device("meta"):
        fewer = create_net(num_classes=PROBE_CLASSES).state_dict()
        more = create_net(num_classes=PROBE_CLASSES + 1).state_dict()
    counts = set()
    for name in fewer.keys() & more.keys() & state.keys():
        shapes = zip(fewer[name].shape, more[name].shape, state[name].shape)
        counts |= {k - n + PROBE_CLASSES for n, n_more, k in shapes if n_more == n + 1}
    found = counts.pop() if len(counts) == 1 else None
    return found if found and found > 0 and found != getattr(net, "num_classes", 0) else None


def rename_for_timm(net: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict under timm's names for `net`.

    Names of the authors' or torchvision's layout are converted by timm's checkpoint filter, unless
    that would drop tensors or values. In that case the names stay as they are. Missing BatchNorm
    counters are filled in.
    """
    want = net.state_dict()
    counters = {name: want[name] for name in want if name.endswith(BATCH_NORM_COUNTER)}
    state = {name: counters[name] for name in counters if name not in state} | state
    if want.keys() == state.keys():
        return state
    converted = _filtered_by_timm(net, state)
    if converted is None or converted.keys() != want.keys():
        return state
    return converted if _count_values(converted) == _count_values(state) else state


def _filtered_by_timm(net: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """`state` through the checkpoint filter in the network's module of timm; None without one."""
    module = sys.modules[type(net).__module__]
    convert = getattr(module, "checkpoint_filter_fn", None) or getattr(module, "_filter_fn", None)
    if convert is None:
        return None
    try:
        takes_net = len(inspect.signature(convert).parameters) > 1
        return convert(dict(state), net) if takes_net else convert(dict(state))
    except FILTER_ERRORS:
        return None


def _count_values(state: dict[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in state.values())


def advice(misfit: str) -> str:
    """What to do about a misfit of `unusable` or `find_misfit`."""
    if " values in " in misfit:
        return "give plain tensors, floats in float32"
    return "check --architecture, or --model_name where it names the architecture"


def load_strictly(net: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load a state dict that has to fit exactly. Raises ModelError, naming the first misfit."""
    misfit = unusable(state) or find_misfit(net, state)
    if misfit:
        raise ModelError(f"{source}: does not fit this architecture, it {misfit}; {advice(misfit)}")
    net.load_state_dict(state)
