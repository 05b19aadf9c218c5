"""Families of vision models, by name: defined once, for figures, tables and model lists."""
from __future__ import annotations

import re

# Okabe and Ito's colours (and wine for VGG); a model belongs to the first family that has a prefix of its name
FAMILIES = {
    "ConvNeXt": ("#0072B2", ("convnext",)),
    "EfficientNet": ("#009E73", ("efficientnet", "effnet")),
    "MobileNet": ("#E69F00", ("mobilenet",)),
    "ResNet": ("#D55E00", ("resnet", "resnext", "wide_resnet", "seresne", "legacy_seresne")),
    "ViT": ("#CC79A7", ("vit", "deit", "flexivit")),
    "BEiT, EVA": ("#000000", ("beit", "eva")),
    "Swin": ("#56B4E9", ("swin",)),
    "VGG": ("#882255", ("vgg",)),
    "Other": ("#888888", ("",)),
}


def family(model: str) -> str:
    """The family of a model, by the prefix of its name without `hub/` and `tf_`."""
    name = model.lower().split("/")[-1].removeprefix("tf_").removeprefix("tv_")
    return next(key for key, (_, prefixes) in FAMILIES.items() if name.startswith(prefixes))


def lineage(model: str) -> str:
    """Whom a model resembles, for resampling: its family, else that of a later word of its name, else its first word."""
    words = re.findall(r"[a-z][a-z0-9]*", model.lower())
    named = [name for name in map(family, [model, *words]) if name != "Other"]
    return (named or [re.sub(r"[0-9].*", "", word) for word in words] or [model])[0]
