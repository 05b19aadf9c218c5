"""Model lists against published numbers, families against timm's names, lists that are refused."""

from __future__ import annotations

import importlib.util
import os
from collections import Counter
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import timm
from conftest import DATA
from matplotlib.colors import to_rgb
from scipy.stats import ttest_ind_from_stats

from alignment_security.analysis.brainscore_plugins import listed_nets
from alignment_security.analysis.brainscore_registry import find_package, read_registry
from alignment_security.cluster.studies import read_study
from alignment_security.common.files import UserError
from alignment_security.common.public_nets import with_tag
from alignment_security.models.families import FAMILIES, family
from alignment_security.models.lists import (
    LIST_COLUMNS,
    available_lists,
    read_model_list,
    read_wanted,
)
from alignment_security.models.names import find_entries

FENG2025 = DATA / "feng2025"
BRAINSCORE_PACKAGE = os.environ.get("BRAINSCORE_VISION_PATH") or None


# ---- the committed lists -------------------------------------------------------------------------


@pytest.mark.parametrize("name", available_lists())
def test_families_of_the_lists_follow_the_rule(name):
    for row in read_model_list(name).itertuples():
        called = row.weights.removeprefix("timm:") if row.weights.startswith("timm:") else row.name
        assert row.family == family(called), row.name


def test_feng2025_has_the_groups_of_the_paper():
    table = read_model_list("feng2025")
    groups = Counter(table["group"])
    assert len(table) == 351 and groups["SSL"] == 54 and groups["robust"] == 42
    robust = table[table["group"] == "robust"]
    assert Counter(source.partition(":")[2] for source in robust["source"]) == {
        "resnet18.tv_in1k": 14,
        "resnet50.tv_in1k": 14,
        "wide_resnet50_2.tv_in1k": 14,
    }
    assert (robust["weights"] == "file:" + robust["name"] + ".ckpt").all()
    plain = table[table["group"] != "robust"]
    assert (plain["source"] == "timm:" + plain["name"]).all() and (
        plain["weights"] == "hub:timm/" + plain["name"]
    ).all()


def test_every_net_of_feng2025_is_in_the_installed_timm():
    known = set(timm.list_models(pretrained=True))
    assert set(read_model_list("feng2025")["source"].str.removeprefix("timm:")) <= known


def test_feng2025_has_the_published_names():
    rows = pd.read_csv(next(FENG2025.glob("adversarial_alignment_*.csv")))
    table = read_model_list("feng2025")
    assert sorted(table["name"]) == sorted(rows["model"])
    groups = pd.read_csv(FENG2025 / "derived_309_models.csv").set_index("model")["group"]
    assert table.set_index("name")["group"].loc[groups.index].to_list() == groups.to_list()


@pytest.mark.parametrize(
    "group, column, statistic, df",
    [
        ("SSL", "pt", 7.85, 65),
        ("SSL", "aa", -7.49, 98),
        ("robust", "pt", 6.41, 41),
        ("robust", "aa", 20.85, 106),
    ],
)
def test_the_groups_give_the_published_t_tests(group, column, statistic, df):
    """Welch's test against the rest of the 309 standard models, as printed by Feng 2025."""
    rows = pd.read_csv(next(FENG2025.glob("adversarial_alignment_*.csv"))).set_index("model")
    groups = read_model_list("feng2025").set_index("name")["group"]
    a, b = (
        rows[column][groups == group],
        rows[column][~groups.isin(["SSL", "robust"])]
        if group == "SSL"
        else rows[column][groups != "robust"],
    )
    found = ttest_ind_from_stats(
        a.mean(), a.std(), len(a), b.mean(), b.std(), len(b), equal_var=False
    )
    assert found.statistic == pytest.approx(statistic, abs=0.006)
    spread = a.var() / len(a), b.var() / len(b)
    assert (
        int(sum(spread) ** 2 / (spread[0] ** 2 / (len(a) - 1) + spread[1] ** 2 / (len(b) - 1)))
        == df
    )


def test_brainscore_has_the_registry_and_timm_names_that_exist():
    table = read_model_list("brainscore")
    timms = table[table["weights"].str.startswith("timm:")]
    assert len(table) == 741 and len(timms) == 44 and set(table["source"]) == {"brainscore"}
    known = set(
        timm.list_models() + timm.list_models(pretrained=True) + ["xception"]
    )  # xception: renamed by timm
    assert set(timms["weights"].str.removeprefix("timm:")) <= known


@pytest.mark.skipif(
    not BRAINSCORE_PACKAGE and importlib.util.find_spec("brainscore_vision") is None,
    reason="brainscore-vision is neither installed nor named by BRAINSCORE_VISION_PATH",
)
def test_brainscore_is_what_the_installed_package_registers():
    registry, _ = read_registry(find_package(BRAINSCORE_PACKAGE))
    table = read_model_list("brainscore")
    want = {
        (
            row.model_registry_name,
            f"timm:{row.timm_name}" if row.timm_name else "plugin",
            row.og_model_name,
        )
        for row in registry.itertuples()
    }
    assert set(table[["name", "weights", "group"]].itertuples(index=False, name=None)) == want


def test_the_timm_nets_of_brainscore_are_the_listed_ones_with_timms_own_input():
    """Their pixels and mean as timm has them, and as the plugins are listed to give them."""
    nets, listed = listed_nets(), read_model_list("brainscore").set_index("name")["weights"]
    listed = listed[listed.str.startswith("timm:")].str.removeprefix("timm:").map(with_tag)
    assert nets["timm_name"].to_dict() == listed.to_dict()
    for row in nets.itertuples():
        config = timm.get_pretrained_cfg(row.timm_name)
        mean = " ".join(f"{value:.3g}" for value in config.mean)
        assert row.own_input == f"{config.input_size[-1]} px, mean {mean}", row.timm_name


@pytest.mark.skipif(
    not BRAINSCORE_PACKAGE and importlib.util.find_spec("brainscore_vision") is None,
    reason="brainscore-vision is neither installed nor named by BRAINSCORE_VISION_PATH",
)
def test_the_inputs_of_brainscores_timm_nets_are_those_of_the_plugins():
    registry, _ = read_registry(find_package(BRAINSCORE_PACKAGE))
    found = registry[registry["timm_name"] != ""].set_index("model_registry_name")
    assert found["plugin_input"].to_dict() == listed_nets()["plugin_input"].to_dict()


# ---- lists of a user -----------------------------------------------------------------------------

GOOD = "resnet18\ttimm:resnet18.a1_in1k\thub:timm/resnet18.a1_in1k\tResNet\tmine"


def test_read_model_list_of_a_user(tmp_path):
    (tmp_path / "mine.txt").write_text("# why\n" + "\t".join(LIST_COLUMNS) + f"\n\n{GOOD}\n")
    (row,) = read_model_list(tmp_path / "mine.txt").to_dict("records")
    assert row == {
        "name": "resnet18",
        "source": "timm:resnet18.a1_in1k",
        "weights": "hub:timm/resnet18.a1_in1k",
        "family": "ResNet",
        "group": "mine",
    }


@pytest.mark.parametrize(
    "text, message",
    [
        (f"{GOOD}\n\n{GOOD}\n", r"resnet18 \(lines 1, 3\): listed twice"),
        ("a\nb\nb\nc\na\na\n", r"a \(lines 1, 5, 6\), b \(lines 2, 3\): listed twice"),
        ("x\nbrainscore:x\n", r"x \(lines 1, 2\): listed twice"),
        (f"resnet18\n{GOOD}\n", "line 1: a name without tabs may not be mixed"),
        (GOOD.replace("ResNet\tmine", "\t"), "line 1: 5 cells"),
        (GOOD.replace("mine", ""), "line 1: 5 cells"),
        (GOOD.replace("timm:resnet18.a", "hub:a"), "source 'hub:a1_in1k'"),
        (GOOD.replace("hub:", "web:"), "weights 'web:"),
        ("# nothing\n", "names no model"),
    ],
)
def test_read_model_list_names_the_wrong_line(tmp_path, text, message):
    (tmp_path / "mine.txt").write_text(text)
    with pytest.raises(UserError, match=f"mine.txt.*{message}"):
        read_model_list(tmp_path / "mine.txt")


def test_a_list_names_net_and_checkpoint(tmp_path):
    (tmp_path / "mine.txt").write_text(
        "# c\nname\tsource\tweights\tfamily\tgroup\n"
        "r50\ttimm:resnet50\tfile:x.pt\tResNet\trobust\n"
        "n.v1\ttimm:n.v1\thub:timm/n.v1\tOther\tCNN\n"
        "b\tbrainscore\ttimm:b.v2\tOther\tb\n"
        "resnet50\tbrainscore\tplugin\tOther\tb\n"
    )
    assert [tuple(wanted[:3]) for wanted in read_wanted(tmp_path / "mine.txt")] == [
        ("r50", "resnet50", "x.pt"),
        ("n.v1", "n.v1", None),
        ("b", "b.v2", None),
        ("resnet50", None, None),
    ]


def test_one_file_of_names_serves_every_command(tmp_path, capsys):
    """`models --list` shows what prestage and studies take."""
    path = tmp_path / "mine.txt"
    path.write_text("# mine\nresnet18.a1_in1k\n\n  brainscore:alexnet\nno_such_net\n")
    assert [tuple(model[:2]) for model in read_wanted(path)] == [
        ("resnet18.a1_in1k", "resnet18.a1_in1k"),
        ("alexnet", None),
        ("no_such_net", "no_such_net"),
    ]
    assert [(entry.name, entry.net) for entry in find_entries([], path)] == [
        ("resnet18.a1_in1k", "resnet18.a1_in1k"),
        ("alexnet", ""),
        ("no_such_net", ""),
    ]
    study = tmp_path / "study.txt"
    study.write_text("models mine.txt\nclean\n")
    assert read_study(study).models == read_wanted(path)
    path.write_text("a\nb\nb\na\n")
    for read in (read_wanted, lambda path: find_entries([], path)):
        with pytest.raises(UserError, match=r"a \(lines 1, 4\), b \(lines 2, 3\): listed twice"):
            read(path)
    with pytest.raises(UserError, match="c, d: listed twice"):
        for name in ("one", "two"):
            (tmp_path / name).write_text("c\nd\n")
        read_wanted(tmp_path / "one", tmp_path / "two")


def test_read_model_list_that_does_not_exist_names_those_that_do():
    with pytest.raises(
        UserError, match="nolist: no such model list; give one of brainscore, feng2025"
    ):
        read_model_list("nolist")


# ---- families ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model, name",
    [
        ("tf_efficientnet_lite0", "EfficientNet"),
        ("convnextv2_tiny.fcmae", "ConvNeXt"),
        ("timm/vit_base_patch16_224", "ViT"),
        ("deit3_small", "ViT"),
        ("resnext50_32x4d", "ResNet"),
        ("tv_resnet50", "ResNet"),
        ("eva02_base", "BEiT, EVA"),
        ("mobilevit_s", "Hybrid"),
        ("mobilenetv4_conv_small", "Mobile CNN"),
        ("alexnet", "Classic CNN"),
        ("VGG16", "Classic CNN"),
        ("swinv2_cr_small_224.sw_in1k", "Swin, hierarchical"),
        ("wide_resnet50_2_linf_eps4.0", "ResNet"),
        ("ecaresnet50t.a1_in1k", "ResNet"),
        ("eca_nfnet_l0", "RegNet, NFNet"),
        ("caformer_s18", "MLP, MetaFormer"),
        ("inception_next_tiny", "ConvNeXt"),
        ("inception_v3", "Classic CNN"),
        ("vitamin_small_224", "Hybrid"),
        ("model-lecs", "Other"),
        ("", "Other"),
    ],
)
def test_family_of_a_name(model, name):
    assert family(model) == name


def test_family_other_is_rare_in_timm():
    """At most one in a hundred architectures of the installed timm has no family."""
    names = timm.list_models()
    assert len(names) > 1000 and sum(family(name) == "Other" for name in names) <= len(names) / 100


def lab(rgb) -> np.ndarray:
    """CIELAB (D65) of linear RGB in [0, 1]."""
    to_xyz = np.array(
        [
            [0.4124564, 0.3575761, 0.1804375],
            [0.2126729, 0.7151522, 0.0721750],
            [0.0193339, 0.1191920, 0.9503041],
        ]
    )
    t = to_xyz @ np.clip(rgb, 0, 1) / [0.95047, 1, 1.08883]
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t * (29 / 6) ** 2 / 3 + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize(
    "seen",
    [
        np.eye(3),
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ],
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ],
    ],
    ids=["all three cones", "protanopia", "deuteranopia"],
)
def test_family_colours_are_distinguishable(seen):
    """Also to colour-blind people: Machado, Oliveira & Fernandes (2009), severity 1, linear RGB."""
    colours = {}
    for name, (colour, _) in FAMILIES.items():
        rgb = np.array(to_rgb(colour))
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        colours[name] = lab(np.asarray(seen) @ linear)
    for one, other in combinations(colours, 2):
        assert np.linalg.norm(colours[one] - colours[other]) > 17, (one, other)
