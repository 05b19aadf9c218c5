"""The images of Feng 2025: every net is attacked on 224 pixels and resizes them itself.

TonyFPY/Adversarial_Alignment@597da67, scripts/dataset.py and scripts/model_loader.py: the study
looks the preprocessing up by the model's name, which gives timm's default for every net, and the
attacked function interpolates to the net's own size before it normalises.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn
from torch.nn import functional

from alignment_security.models.heads import Model

PUBLISHED_PREPROCESSING = {
    "input_size": (3, 224, 224),
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "crop_mode": "center",
}
GEOMETRY = "224 px, crop 0.875, resized to the net's size inside the attacked function"


class ResizedInput(nn.Module):
    """A module on images (B, 3, H, W) of any size, which it gets interpolated to its own.

    size   (height, width) of the module's input
    mode   bicubic, bilinear or nearest: the net's own interpolation, else bilinear
    """

    def __init__(self, module: nn.Module, size: tuple[int, int], mode: str):
        super().__init__()
        self.module, self.size = module, size
        self.mode = mode if mode in ("bicubic", "bilinear", "nearest") else "bilinear"

    def forward(self, x: Tensor) -> Tensor:
        align = None if self.mode == "nearest" else False
        x = functional.interpolate(x, size=self.size, mode=self.mode, align_corners=align)
        return self.module(x)


def on_published_images(model: Model) -> Model:
    """The model on the study's images: norms, perturbations and human maps are of 224 pixels."""
    own = model.preprocessing
    height, width = own["input_size"][1:]
    module = ResizedInput(model.module, (height, width), own["interpolation"]).eval()
    return replace(model, module=module, preprocessing=PUBLISHED_PREPROCESSING)
