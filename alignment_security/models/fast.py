"""Faster forward passes: folded batch norm, channels_last, bf16, compile.

The logits stay the same up to rounding. Attacks run the fast module; the plain float32 module
confirms what they find.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from alignment_security.common.out_of_memory import is_out_of_memory

PRECISIONS = ("float32", "tf32", "bf16")
# A change is undone if it changes a logit by more than this fraction of the largest one.
LOGIT_TOLERANCE = 1e-4


def allow_tf32(allowed: bool) -> None:
    """Let this process round to TF32 in float32 matrix products and convolutions, or not."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


class Wrapper(nn.Module):
    """A layer around a module, in the module's own mode: train or eval.

    `nn.Module.train` would set the mode of all that it wraps.
    """

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module, self.training = module, module.training

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)


class WithoutTF32(Wrapper):
    """A module whose forward pass never uses TF32, for confirming results in float32.

    TF32 is a process-wide setting, so this module changes it during its forward pass. A backward
    pass would run after the setting is restored: use it without gradients.
    """

    def forward(self, x: Tensor) -> Tensor:
        before = torch.backends.cudnn.allow_tf32
        allow_tf32(False)
        try:
            return self.module(x)
        finally:
            allow_tf32(before)


class BFloat16(Wrapper):
    """A module under bfloat16 autocast; logits are float32."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            return self.module(x).float()


def memory_format_of(device: torch.device, precision: str) -> torch.memory_format:
    """channels_last, but for float32 on a GPU, whose tensor cores do not take float32.

    On an H200 ResNet-50 made 3,670 forward passes a second in float32, with channels_last 3,170.
    """
    if device.type == "cuda" and precision == "float32":
        return torch.contiguous_format
    return torch.channels_last


def set_memory_format(
    module: nn.Module, memory_format: torch.memory_format, example: Tensor
) -> None:
    """Store the weights in a memory format, unless the logits of `example` (B, 3, H, W) change.

    Some networks read how their tensors lie in memory: `x.view(len(x), -1)` fails on channels_last,
    and `as_strided` gives other values. Convolutions in 3 dimensions have no channels_last. The
    logits of a random network differ anyway.
    """
    weights = [weight for weight in module.parameters() if weight.ndim == 4]
    if all(weight.is_contiguous(memory_format=memory_format) for weight in weights):
        return
    try:
        want = exact_logits(module, example)
        got = exact_logits(module.to(memory_format=memory_format), example)
        keeps_logits = are_same(want, got) or not are_same(got, exact_logits(module, example))
    except Exception:  # of the network; one that fails anyway is told by `check_model`
        keeps_logits = False
    if not keeps_logits:
        module.to(memory_format=torch.contiguous_format)


def exact_logits(module: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return WithoutTF32(module)(x)


def are_same(want: Tensor, got: Tensor) -> bool:
    """Whether logits are equal up to rounding; NaN is not."""
    return bool((want - got).abs().max() <= LOGIT_TOLERANCE * want.abs().max())


def fast_copy(
    module: nn.Module, example: Tensor, precision: str = "float32", compiled: bool = False
) -> nn.Module:
    """A faster copy of a frozen module in eval mode, with the same logits up to rounding.

    example    (B, 3, H, W) in [0, 1] on the module's device. Changes are checked on it, and undone
               if the logits change
    precision  float32, tf32 (from now on of this process) or bf16 (autocast)
    compiled   use torch.compile

    A module that cannot be copied, as one with a lock, is taken as it is.
    """
    fast = module
    if (copied := copy_of(module)) is not None:
        fast = folded_copy(copied, example)
        set_memory_format(fast, memory_format_of(example.device, precision), example)
    if precision == "bf16":
        fast = BFloat16(fast)
    allow_tf32(precision == "tf32")
    if compiled:
        fast = Wrapper(fast)  # a module that is no copy stays as it is
        fast.compile()
    return fast


def copy_of(module: nn.Module) -> nn.Module | None:
    """A deep copy; None for a module with parts that cannot be copied."""
    try:
        return copy.deepcopy(module)
    except Exception as error:  # a part of the network may raise anything
        if is_out_of_memory(error):
            raise
        return None


# ---- batch norm ----------------------------------------------------------------------------------


def folded_copy(module: nn.Module, example: Tensor) -> nn.Module:
    """A copy with folded batch norms; the module itself if the logits of `example` would change."""
    folded = fold_batch_norm(copy.deepcopy(module), example)
    same = are_same(exact_logits(module, example), exact_logits(folded, example))
    return folded if same else module


def fold_batch_norm(module: nn.Module, example: Tensor) -> nn.Module:
    """Fold batch norms into the weights of the convolutions in front of them.

    A batch norm is folded if its input is the unchanged output of a convolution. A forward pass of
    `example` shows which ones are, so networks that cannot be traced symbolically are folded too.
    An activation inside the batch norm (timm's BatchNormAct2d) stays. Changes and returns `module`.
    """
    for convolution, norm in followed_by_norm(module, example):
        mean, var = norm.running_mean, norm.running_var
        assert mean is not None and var is not None  # followed_by_norm returns no others
        convolution.weight, convolution.bias = fuse_conv_bn_weights(
            convolution.weight, convolution.bias, mean, var, norm.eps, norm.weight, norm.bias
        )
        inside = [getattr(norm, "drop", None), getattr(norm, "act", None)]
        rest = nn.Sequential(*(part for part in inside if part is not None))
        _replace_child(module, norm, rest)
    return module.requires_grad_(False)


def _replace_child(module: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put `new` in the place of `old`, wherever it is inside `module`."""
    for parent in module.modules():
        for name, child in parent.named_children():
            if child is old:
                setattr(parent, name, new)


def followed_by_norm(module: nn.Module, example: Tensor) -> list[tuple[nn.Conv2d, _BatchNorm]]:
    """(convolution, batch norm) pairs in which the norm's input is the convolution's output object.

    Layers that run more than once in a forward pass of `example` are left out, and convolutions
    whose weight is computed from others in each pass, as weight and spectral norm do.
    """
    # by id of the output; keeping the output makes sure that its id is not used again
    made_by: dict[int, tuple[nn.Conv2d, Tensor]] = {}
    pairs: list[tuple[nn.Conv2d, _BatchNorm]] = []

    def remember_output(convolution, inputs, output) -> None:
        made_by[id(output)] = (convolution, output)

    def pair_with_convolution(norm, inputs) -> None:
        if id(inputs[0]) in made_by:
            pairs.append((made_by[id(inputs[0])][0], norm))

    hooks = []
    for part in module.modules():
        if isinstance(part, nn.Conv2d) and "weight" in dict(part.named_parameters(recurse=False)):
            hooks.append(part.register_forward_hook(remember_output))
        elif isinstance(part, _BatchNorm) and part.running_mean is not None:
            hooks.append(part.register_forward_pre_hook(pair_with_convolution))
    try:
        with torch.no_grad():
            module(example)
    finally:
        for hook in hooks:
            hook.remove()
    layers = [layer for pair in pairs for layer in pair]
    return [(c, norm) for c, norm in pairs if layers.count(c) == 1 and layers.count(norm) == 1]
