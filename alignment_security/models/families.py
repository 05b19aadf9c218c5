"""Families of vision models, by name: defined once, for figures, tables and model lists."""

from __future__ import annotations

import re

# Okabe and Ito's colours, Tol's wine, indigo, brown and sand, and a light grey: no two closer than 17 (CIELAB) to anyone,
# colour-blind or not. A model belongs to the first family that has a prefix of its bare name.
FAMILIES = {
    "ConvNeXt": ("#0072B2", ("convnext", "inception_next")),
    "EfficientNet": ("#009E73", ("efficientnet", "effnet")),
    "Mobile CNN": (
        "#E69F00",
        (
            "mobilenet",
            "mobileone",
            "mnasnet",
            "semnasnet",
            "spnasnet",
            "fbnet",
            "mixnet",
            "tinynet",
            "lcnet",
            "ghostnet",
            "repghost",
            "hardcorenas",
            "rexnet",
            "shufflenet",
            "squeezenet",
            "starnet",
            "fasternet",
            "repvit",
        ),
    ),
    "ResNet": (
        "#D55E00",
        (
            "resne",
            "wide_resne",
            "seresne",
            "senet",
            "ecaresne",
            "skresne",
            "res2ne",
            "tresne",
            "cspresne",
            "gcresne",
            "antialias",
            "bit-",
        ),
    ),
    "RegNet, NFNet": ("#332288", ("regnet", "gernet", "repvgg", "byobnet", "nfnet", "nf_")),
    "Classic CNN": (
        "#882255",
        (
            "vgg",
            "alexnet",
            "inception",
            "googlenet",
            "xception",
            "densenet",
            "rdnet",
            "nasnet",
            "pnasnet",
            "dpn",
            "dla",
            "hrnet",
            "vovnet",
            "hgnet",
            "selecsls",
            "darknet",
            "cspdarknet",
            "cs3",
            "sedarknet",
            "cspnext",
        ),
    ),
    "Hybrid": (
        "#661100",
        (  # convolution and attention
            "coatnet",
            "coatnext",
            "maxvit",
            "maxxvit",
            "levit",
            "mobilevit",
            "fastvit",
            "efficientformer",
            "efficientvit",
            "edgenext",
            "nextvit",
            "tiny_vit",
            "visformer",
            "vitamin",
            "botne",
            "halo",
            "lambda",
            "lamhalobotnet",
            "sebotnet",
            "sehalonet",
            "swiftformer",
            "convit",
            "cvt",
            "coat_",
            "iformer",
            "csatv2",
            "lowformer",
            "cpubone",
            "shvit",
        ),
    ),
    "ViT": (
        "#CC79A7",
        (
            "vit",
            "deit",
            "flexivit",
            "naflexvit",
            "cait",
            "xcit",
            "tnt",
            "volo",
            "crossvit",
            "pit_",
            "aimv2",
            "samvit",
            "dinov2",
            "qwen3_vit",
            "gemma4_vit",
            "deepseek_vit",
        ),
    ),
    "BEiT, EVA": ("#000000", ("beit", "eva")),
    "Swin, hierarchical": (
        "#56B4E9",
        (
            "swin",
            "hiera",
            "sam2_hiera",
            "mvit",
            "pvt",
            "twins",
            "nest",
            "davit",
            "focalnet",
            "gcvit",
        ),
    ),
    "MLP, MetaFormer": (
        "#DDCC77",
        (
            "mixer",
            "gmixer",
            "gmlp",
            "resmlp",
            "poolformer",
            "caformer",
            "convformer",
            "convmixer",
            "sequencer",
            "mambaout",
            "efficientvim",
        ),
    ),
    "Other": ("#C8C8C8", ("",)),
}
# who ported, trained or modified a net: tf_efficientnet, gluon_resnet50, eca_nfnet, bat_resnext
MODIFIERS = re.compile(
    r"(?:(?:test|tf|tv|gluon|legacy|ig|ssl|swsl|adv|ens|advprop|at|eca|ese|gc|bat|dm)_)*"
)


# families of unlike nets: models of one of their prefixes resemble each other, models of two do not
MIXED = {
    "Mobile CNN",
    "RegNet, NFNet",
    "Classic CNN",
    "Hybrid",
    "Swin, hierarchical",
    "MLP, MetaFormer",
}


def family(model: str) -> str:
    """The family of a model, by the prefix of its name without its hub's `owner/` and MODIFIERS."""
    return family_and_prefix(model)[0]


def family_and_prefix(model: str) -> tuple[str, str]:
    name = MODIFIERS.sub("", model.lower().split("/")[-1], count=1)
    return next(
        (key, prefix)
        for key, (_, prefixes) in FAMILIES.items()
        for prefix in prefixes
        if name.startswith(prefix)
    )


def lineage(model: str) -> str:
    """Whom a model resembles, for resampling: its family (of a mixed one, its prefix), else that of a later word of its name,
    else its first word."""
    words = re.findall(r"[a-z][a-z0-9]*", model.lower())
    found = [family_and_prefix(name) for name in (model, *words)]
    named = [prefix if name in MIXED else name for name, prefix in found if name != "Other"]
    return (named or [re.sub(r"[0-9].*", "", word) for word in words] or [model])[0]
