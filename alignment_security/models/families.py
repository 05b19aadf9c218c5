"""Families of vision models by name: defined once for figures, tables and model lists."""

from __future__ import annotations

import re

OTHER = "Other"
# family -> (colour, prefixes). A model belongs to the first family that has a prefix of its bare
# name. The colours are Okabe and Ito's, Tol's wine, indigo, brown and sand, and a light grey. They
# are colour-blind safe: minimum CIELAB distance 17, also under protanopia and deuteranopia.
FAMILIES = {
    "ConvNeXt": ("#0072B2", "convnext inception_next"),
    "EfficientNet": ("#009E73", "efficientnet effnet"),
    "Mobile CNN": (
        "#E69F00",
        "mobilenet mobileone mnasnet semnasnet spnasnet fbnet mixnet tinynet lcnet "
        "ghostnet repghost hardcorenas rexnet shufflenet squeezenet starnet fasternet repvit",
    ),
    "ResNet": (
        "#D55E00",
        "resne wide_resne seresne senet ecaresne skresne res2ne tresne cspresne gcresne "
        "antialias bit-",
    ),
    "RegNet, NFNet": ("#332288", "regnet gernet repvgg byobnet nfnet nf_"),
    "Classic CNN": (
        "#882255",
        "vgg alexnet inception googlenet xception densenet rdnet nasnet pnasnet dpn dla "
        "hrnet vovnet hgnet selecsls darknet cspdarknet cs3 sedarknet cspnext",
    ),
    "Hybrid": (  # convolution and attention
        "#661100",
        "coatnet coatnext maxvit maxxvit levit mobilevit fastvit efficientformer "
        "efficientvit edgenext nextvit tiny_vit visformer vitamin botne halo lambda "
        "lamhalobotnet sebotnet sehalonet swiftformer convit cvt coat_ iformer csatv2 "
        "lowformer cpubone shvit",
    ),
    "ViT": (
        "#CC79A7",
        "vit deit flexivit naflexvit cait xcit tnt volo crossvit pit_ aimv2 samvit dinov2 "
        "qwen3_vit gemma4_vit deepseek_vit",
    ),
    "BEiT, EVA": ("#000000", "beit eva"),
    "Swin, hierarchical": (
        "#56B4E9",
        "swin hiera sam2_hiera mvit pvt twins nest davit focalnet gcvit",
    ),
    "MLP, MetaFormer": (
        "#DDCC77",
        "mixer gmixer gmlp resmlp poolformer caformer convformer convmixer sequencer "
        "mambaout efficientvim",
    ),
    OTHER: ("#C8C8C8", ""),
}
# prefixes for who ported, trained or modified a network: tf_efficientnet, gluon_resnet50, eca_nfnet
MODIFIERS = re.compile(
    r"(?:(?:test|tf|tv|gluon|legacy|ig|ssl|swsl|adv|ens|advprop|at|eca|ese|gc|bat|dm)_)*"
)
# families of dissimilar networks: two of their models are alike only if they share a prefix
MIXED = {
    "Mobile CNN",
    "RegNet, NFNet",
    "Classic CNN",
    "Hybrid",
    "Swin, hierarchical",
    "MLP, MetaFormer",
}


def family(model: str) -> str:
    """The family of a model, from its name without the hub's `owner/` and without MODIFIERS."""
    return family_and_prefix(model)[0]


def family_and_prefix(model: str) -> tuple[str, str]:
    """The family of a model and the prefix that decided it; ("Other", "") for none."""
    name = MODIFIERS.sub("", model.lower().split("/")[-1], count=1)
    for key, (_, prefixes) in FAMILIES.items():
        for prefix in prefixes.split():
            if name.startswith(prefix):
                return key, prefix
    return OTHER, ""


def lineage(model: str) -> str:
    """Cluster of a model for the family bootstrap.

    This is the model's family, or its prefix if the family is MIXED. If the name has no family,
    the first of its words that has one decides, and otherwise its first word without digits.
    """
    words = re.findall(r"[a-z][a-z0-9]*", model.lower())
    for candidate in (model, *words):
        name, prefix = family_and_prefix(candidate)
        if name != OTHER:
            return prefix if name in MIXED else name
    return re.sub(r"[0-9].*", "", words[0]) if words else model
