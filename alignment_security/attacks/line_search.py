"""An adversarial point without gradients: bisection along lines from an image to other images.

For images on which a minimum-norm attack finds nothing, such as those whose gradient is all zero.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from alignment_security.attacks.attack import AttackedImage
from alignment_security.attacks.geometry import lp_norm, per_row
from alignment_security.models.forward import Forward

# sides of the grids of random black and white squares, in each channel; `None`: one a pixel
GRIDS = (1, 2, 4, 8, None)
PER_GRID = 4
HALVINGS = 16  # of each line: the boundary to 1/65536 of its length


def adversarial_point(image: AttackedImage, forward: Forward, p: float) -> Tensor | None:
    """The point (C, H, W) of smallest p-norm where a line to another image leaves the class.

    None if the model takes every other image for the class. Each pass counts for the image.
    """
    ends = other_images(image)
    ends = ends[_is_adversarial(image, ends, forward)]
    if not len(ends):
        return None
    low, high = torch.zeros(len(ends)).to(ends), torch.ones(len(ends)).to(ends)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        adversarial = _is_adversarial(image, _on_lines(image, ends, middle), forward)
        low, high = torch.where(adversarial, low, middle), torch.where(adversarial, middle, high)
    points = _on_lines(image, ends, high)
    return points[lp_norm(points - image.x, p).argmin()]


def other_images(image: AttackedImage) -> Tensor:
    """Grey, the negative, and random squares of GRIDS, drawn for this image: (B, C, H, W)."""
    generator, x = image.generator("line-search"), image.x
    channels, *size = x.shape
    ends = [torch.full_like(x, 0.5), 1 - x]
    for side in GRIDS:
        grid = (channels, side, side) if side else x.shape
        squares = (torch.rand(PER_GRID, *grid, generator=generator) > 0.5).to(x)
        ends += F.interpolate(squares, size=size, mode="nearest")
    return torch.stack(ends)


def _on_lines(image: AttackedImage, ends: Tensor, share: Tensor) -> Tensor:
    return image.x + per_row(share) * (ends - image.x)


def _is_adversarial(image: AttackedImage, points: Tensor, forward: Forward) -> Tensor:
    image.forwards += len(points)
    return forward.logits(points).argmax(1) != image.label
