"""Grouped convolution with a fast second derivative, for the harmonizer's loss.

torch differentiates a grouped convolution twice group by group. In EfficientNet-Lite0 that is 9,000
small convolutions per step, and a step takes 7 times as long as a plain one.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


def unreached_pixels(x, weight, gradient, stride, padding, dilation) -> list[int]:
    """Rows and columns at the end of x that the stride skips: output_padding of the transpose."""
    left_over = []
    for n, out, kernel, s, p, d in zip(
        x.shape[2:], gradient.shape[2:], weight.shape[2:], stride, padding, dilation
    ):
        reached = (out - 1) * s - 2 * p + d * (kernel - 1) + 1
        left_over.append(n - reached)
    return left_over


class GroupedConv2d(torch.autograd.Function):
    """conv2d without bias whose backward is made of convolutions that torch differentiates fast.

    mode   the TwiceDifferentiableConvolutions that this call belongs to
    """

    @staticmethod
    def forward(ctx, x, weight, stride, padding, dilation, groups, mode):
        ctx.save_for_backward(x, weight)
        ctx.geometry, ctx.mode = (stride, padding, dilation, groups), mode
        return functional.conv2d(x, weight, None, *ctx.geometry)

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.geometry
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            output_padding = unreached_pixels(x, weight, gradient, stride, padding, dilation)
            of_x = functional.conv_transpose2d(
                gradient, weight, None, stride, padding, output_padding, groups, dilation
            )
        if ctx.needs_input_grad[1] and ctx.mode.weight_gradients:
            of_weight = torch.nn.grad.conv2d_weight(
                x, weight.shape, gradient, stride, padding, dilation, groups
            )
        return of_x, of_weight, None, None, None, None, None


def pair(value: int | tuple[int, ...]) -> tuple[int, ...]:
    """(height, width) of a stride, padding or dilation given as one number or two."""
    return (value, value) if isinstance(value, int) else tuple(value)


class TwiceDifferentiableConvolutions(TorchFunctionMode):
    """Within this mode, functional.conv2d with groups is GroupedConv2d.

    weight_gradients   whether backward computes the gradient of the weights; false saves that time
                       where only the input's gradient is wanted
    """

    weight_gradients = True

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is functional.conv2d:
            func = self.conv2d
        return func(*args, **(kwargs or {}))

    def conv2d(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride=1,
        padding=0,
        dilation=1,
        groups: int = 1,
    ) -> Tensor:
        """functional.conv2d; under autocast its tensors are cast as torch would cast them."""
        if groups == 1 or isinstance(padding, str):
            return functional.conv2d(x, weight, bias, stride, padding, dilation, groups)
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, weight = x.to(dtype), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        out = GroupedConv2d.apply(
            x, weight, pair(stride), pair(padding), pair(dilation), groups, self
        )
        return out if bias is None else out + bias[:, None, None]
