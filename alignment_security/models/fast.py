"""The pass made cheap without changing what it computes: folded batch norm, channels_last, reduced precision, compile.

What the attacks run is the fast module; what confirms a finding is always the plain float32 one.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

PRECISIONS = ("float32", "tf32", "bf16")
FOLD_TOLERANCE = 1e-4  # of the largest logit; folding that changes more than rounding is taken back


class WithoutTF32(nn.Module):
    """A module whose forward pass never uses TF32; for confirming, so without gradients."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        try:
            return self.module(x)
        finally:
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


class BFloat16(nn.Module):
    """A module under bfloat16 autocast; logits come back as float32."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            return self.module(x).float()


def fast_copy(
    module: nn.Module, example: Tensor, precision: str = "float32", compiled: bool = False
) -> nn.Module:
    """A copy of a frozen module in eval mode that gives the same logits, to rounding, in less time.

    example    (B, 3, H, W) in [0, 1] on the module's device: folding is checked on it, and taken back if it fails
    precision  float32, tf32 (process-wide, see tune_process), or bf16 (autocast)
    """
    fast = copy.deepcopy(module).to(memory_format=torch.channels_last)
    folded = fold_batch_norm(copy.deepcopy(fast), example)
    with torch.no_grad():
        want, got = fast(example), folded(example)
    if (want - got).abs().max() <= FOLD_TOLERANCE * want.abs().max():
        fast = folded.to(memory_format=torch.channels_last)
    fast = BFloat16(fast) if precision == "bf16" else fast
    if compiled:
        fast.compile()
    return fast


def fold_batch_norm(module: nn.Module, example: Tensor) -> nn.Module:
    """Fold every batch norm whose input is, unchanged, the output of a convolution into that convolution's weights.

    Which one follows which is seen in a forward pass of `example`, so nets that cannot be traced symbolically fold
    too. An activation inside the batch norm (timm's BatchNormAct2d) stays. Changes and returns `module`.
    """
    for convolution, norm in followed_by_norm(module, example):
        mean, var = norm.running_mean, norm.running_var
        assert mean is not None and var is not None  # followed_by_norm takes no other
        convolution.weight, convolution.bias = fuse_conv_bn_weights(
            convolution.weight, convolution.bias, mean, var, norm.eps, norm.weight, norm.bias
        )
        kept = [
            part
            for part in (getattr(norm, "drop", None), getattr(norm, "act", None))
            if part is not None
        ]
        for parent in module.modules():
            for name, child in parent.named_children():
                if child is norm:
                    setattr(parent, name, nn.Sequential(*kept))
    return module.requires_grad_(False)


def followed_by_norm(module: nn.Module, example: Tensor) -> list[tuple[nn.Conv2d, _BatchNorm]]:
    """(convolution, batch norm) pairs of layers that each run once, the one's output object being the other's input."""
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}
    pairs: list[tuple[nn.Conv2d, _BatchNorm]] = []
    hooks = []
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            hooks.append(
                part.register_forward_hook(lambda m, i, out: made.update({id(out): (m, out)}))
            )
        elif isinstance(part, _BatchNorm) and part.running_mean is not None:
            hooks.append(
                part.register_forward_pre_hook(
                    lambda m, i: pairs.append((made[id(i[0])][0], m)) if id(i[0]) in made else None
                )
            )
    try:
        with torch.no_grad():
            module(example)
    finally:
        for hook in hooks:
            hook.remove()
    once = [part for pair in pairs for part in pair]
    return [pair for pair in pairs if all(once.count(part) == 1 for part in pair)]
