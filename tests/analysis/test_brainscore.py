"""Registry, leaderboard files and joins: on tables small enough to join by eye, and full ones."""

import csv
import importlib.util
import json
import os
import re
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pandas as pd
import pytest
from conftest import published_leaderboard
from hypothesis import given, settings
from hypothesis import strategies as st
from made_leaderboard import AVERAGES, LEAVES, make_leaderboard, older_leaderboard

import utilities
from alignment_security.analysis.brainscore_join import (
    JOINED,
    MAX_SHOWN,
    UNMATCHED,
    join_results,
    join_scores,
)
from alignment_security.analysis.brainscore_leaderboard import (
    AGGREGATES,
    MAX_BYTES,
    MERGED_SCORES,
    benchmark_columns,
    drop_repeats,
    leaf_benchmarks,
    read_leaderboard,
)
from alignment_security.analysis.brainscore_plugins import OWN_INPUT, plugin_input
from alignment_security.analysis.brainscore_registry import (
    INPUT_COLUMN,
    NAME_COLUMNS,
    find_package,
    package_version,
    read_registry,
)
from alignment_security.analysis.brainscore_scores import compare_scores, merge_leaderboard
from alignment_security.common.files import UserError
from alignment_security.models.lists import read_model_list

PROJECT = Path(__file__).resolve().parents[2]

# net_a is scored, failed and not run; net_b is there twice; "net c" has a space before it; net_d is
# not registered
SHAPE_1 = """\
model_name,layers,average_vision,lab.Two2020.V1-pls,ImageNet-top1
net_a,"{""IT"": ""l4""}",.5,X,
net_b,,.4,X,
net_b,,.4,.25,1.1
 net:c,,.3,-.007,.7
net_d,,.2,.2,.2
"""
SHAPE_3 = """\
# Generated on 2025-09-02T10:11:12.000Z (CEST)
# Date from 2020-08-27T11:12:07.000Z to 2025-09-01T00:00:00.000Z
"Rank","Model","Model ID","Filtered Score","average_vision","Two2020.V1-pls","ImageNet-top1"
"1","net_a","7","0.1","0.50",,""
"2","net_b","8","0.1","0.40",,"null"
"2","net_b","9","0.1","0.40","0.25","1.10"
"3"," net:c","10","0.1","0.30","-0.01","0.70"
"4","net_d","11","0.1","0.20","0.20","0.20"
"""


def with_id_and_rank(text):
    lines = text.splitlines()
    rows = [line.partition(",") for line in lines[1:]]
    return (
        "\n".join(
            [lines[0].replace("model_name,", "model_name,model_id,rank,")]
            + [f"{name},{7 + i},{i},{rest}" for i, (name, _, rest) in enumerate(rows)]
        )
        + "\n"
    )


SHAPE_2 = with_id_and_rank(SHAPE_1)


def plugin(root, name, init, **files):
    """Write models/<name>/__init__.py and its other files below root/brainscore_vision.

    model="..." is model.py.
    """
    folder = root / "brainscore_vision" / "models" / name
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(textwrap.dedent(init), encoding="utf-8")
    for stem, text in files.items():
        suffix = ".json" if stem.endswith("configs") else ".py"
        (folder / f"{stem}{suffix}").write_text(textwrap.dedent(text), encoding="utf-8")
    return folder


def keys_of(tmp_path, init, **files):
    plugin(tmp_path, "zoo", init, **files)
    plugin(tmp_path, "other", "model_registry['other'] = None")
    registry, report = read_registry(tmp_path / "brainscore_vision")
    return list(registry["model_registry_name"])[1:], report


def timm_of(tmp_path, model, init="model_registry['k'] = lambda: C(get_model('k'))", **files):
    plugin(tmp_path, "zoo", init, model=model, **files)
    return list(read_registry(tmp_path / "brainscore_vision")[0]["timm_name"])


@pytest.fixture
def package(tmp_path):
    root = tmp_path / "site-packages"
    plugin(root, "folder_a", "model_registry['net_a'] = lambda: 1")
    plugin(root, "folder_b", "model_registry['net_b'] = model_registry['net:c'] = lambda: 1")
    plugin(root, "unscored", "model_registry['net_e'] = lambda: 1")
    (root / "brainscore_vision-9.8.7.dist-info").mkdir()
    (root / "brainscore_vision-9.8.7.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.4\nVersion: 9.8.7\n"
    )
    return root


@pytest.fixture
def scores_file(tmp_path):
    def write(content, name="scores.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def zipped(path, members, **kwargs):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, **kwargs) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def sidecar(results):
    return json.loads(
        (results / "benchmark_scores" / f"{MERGED_SCORES}.json").read_text(encoding="utf-8")
    )


# ---- registry ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "init, expected",
    [
        (
            "model_registry['a'] = lambda: 1\nmodel_registry[\"b/1:x\"] = \\\n    lambda: 2",
            ["a", "b/1:x"],
        ),
        (
            "NAME = 'a'\nmodel_registry[NAME] = 1\nmodel_registry[f'{NAME}-v{2}'] = 1\n"
            "model_registry[NAME + '_x'] = 1",
            ["a", "a-v2", "a_x"],
        ),
        (
            "for n in ['a', 'b']:\n    for i in range(1, 3):\n        key = f'{n}_{i}'\n"
            "        model_registry[key] = 1",
            ["a_1", "a_2", "b_1", "b_2"],
        ),
        (
            "NETS = {'a': lambda: 1, 'b': print}\nfor n, make in NETS.items():\n"
            "    model_registry[n] = make",
            ["a", "b"],
        ),
        (
            "for n, size in [('a', 1), ('b', 2)]:\n    model_registry[f'{n}{size}'] = 1",
            ["a1", "b2"],
        ),
        ("for n in ():\n    model_registry[n] = 1\nmodel_registry['x'] = 1", ["x"]),
        ("import brainscore_vision\nbrainscore_vision.model_registry['a'] = 1", ["a"]),
        (
            "try:\n    import there\nexcept ImportError:\n    pass\nelse:\n"
            "    model_registry['a'] = 1",
            ["a"],
        ),
        ("NAMES = ['a', 'b']\nmodel_registry[NAMES[1]] = 1", ["b"]),
    ],
)
def test_read_registry_resolves_keys(tmp_path, init, expected):
    keys, report = keys_of(tmp_path, init)
    assert keys == expected
    assert report["unresolved_keys"] == [] and report["plugins_without_keys"] == []


def test_read_registry_resolves_names_imported_from_the_plugin(tmp_path):
    keys, report = keys_of(
        tmp_path,
        "from .model import NAME as N, SIZES\nfor s in SIZES:\n    model_registry[N + s] = 1",
        model="NAME = 'net'\nSIZES = ['-s', '-l']\n",
    )
    assert keys == ["net-s", "net-l"] and not report["unresolved_keys"]


@pytest.mark.parametrize(
    "init, source",
    [
        ("def add(name):\n    model_registry[name] = 1\nadd('a')", "name"),
        ("import os\nmodel_registry[os.environ['N']] = 1", "os.environ['N']"),
        ("N = 'a'\nmodel_registry[N] = 1\nN = 'b'", "N"),  # bound twice: order matters
        (
            "NS = ['a']\nNS.append('b')\nfor n in NS:\n    model_registry[n] = 1",
            "n",
        ),  # changed in place
        ("for n in ['a', 'b']:\n    if n == 'b':\n        break\n    model_registry[n] = 1", "n"),
        ("i = 0\nwhile i < 2:\n    model_registry[f'a{i}'] = 1\n    i += 1", "f'a{i}'"),
        ("for n in range(10**9):\n    model_registry[f'{n}'] = 1", "f'{n}'"),
        ("from .model import N\nmodel_registry[N] = 1", "N"),  # no model.py
        ("N = N\nmodel_registry[N] = 1", "N"),
        ("model_registry[7] = 1", "7"),
        ("model_registry[['a']] = 1", "['a']"),
        ("model_registry.update(a=1)", "model_registry.update"),
        ("registry = model_registry\nregistry['a'] = 1", "registry = model_registry"),
    ],
)
def test_read_registry_lists_keys_that_it_cannot_resolve(tmp_path, init, source):
    keys, report = keys_of(tmp_path, init)
    assert keys == []
    assert [(row["plugin"], row["key"]) for row in report["unresolved_keys"]] == [("zoo", source)]


def test_read_registry_runs_nothing_of_a_plugin(tmp_path):
    mark = tmp_path / "mark"
    keys, _ = keys_of(
        tmp_path, f"open({str(mark)!r}, 'w')\nraise SystemExit\nmodel_registry['a'] = 1"
    )
    assert keys == ["a"] and not mark.exists()


@pytest.mark.parametrize(
    "broken", ["def (:", "a = '\0'", "print 'python 2'", "a = " + "-" * 5000 + "1"]
)
def test_read_registry_names_and_skips_a_file_that_does_not_parse(tmp_path, broken):
    keys, report = keys_of(tmp_path, broken)
    assert keys == [] and len(report["files_not_parsed"]) == 1
    assert "zoo" in report["files_not_parsed"][0]


def test_read_registry_keeps_the_keys_of_a_broken_model_file(tmp_path):
    keys, report = keys_of(
        tmp_path, "model_registry['a'] = 1", model="import timm\nprint 'python 2'"
    )
    assert keys == ["a"]
    assert (
        len(report["files_not_parsed"]) == 1
        and "zoo/model.py: SyntaxError" in report["files_not_parsed"][0]
    )


def test_read_registry_reports_repeated_and_missing_keys(tmp_path):
    plugin(tmp_path, "one", "model_registry['a'] = 1")
    plugin(tmp_path, "two", "model_registry['a'] = 1")
    plugin(tmp_path, "none", "x = 1")
    _, report = read_registry(tmp_path / "brainscore_vision")
    assert [row["og_model_name"] for row in report["repeated_keys"]] == ["one", "two"]
    assert report["plugins_without_keys"] == ["none"]


@pytest.mark.parametrize(
    "model, expected",
    [
        (
            "import timm\ndef get_model(name):\n"
            "    return timm.create_model('resnet50.a1_in1k', pretrained=True).eval()",
            "resnet50.a1_in1k",
        ),
        (
            "from timm.models import create_model\nNAME = 'x.y'\n"
            "NET = create_model(NAME, pretrained=True)",
            "x.y",
        ),
        ("import timm\ntimm.create_model('resnet50', pretrained=False)", ""),  # not timm's weights
        ("import timm\ntimm.create_model('resnet50')", ""),
        (
            "import timm\ntimm.create_model('resnet50', pretrained=True, num_classes=0)",
            "",
        ),  # not timm's head
        (
            "import timm\nm = timm.create_model('resnet50', pretrained=True)\nm.load_state_dict(w)",
            "",
        ),
        ("import timm\nm = timm.create_model('resnet50', pretrained=True).half()", ""),
        (
            "import timm\ntimm.create_model('a', pretrained=True)\n"
            "timm.create_model('b', pretrained=True)",
            "",
        ),
        (
            "import timm\ndef get_model(name):\n"
            "    return timm.create_model(name, pretrained=True)",
            "",
        ),
        ("import timm\nclass Net:\n    m = timm.create_model('resnet50', pretrained=True)", ""),
        (
            "from vonenet import create_model\ncreate_model('resnet50', pretrained=True)",
            "",
        ),  # another create_model
    ],
)
def test_timm_names_only_where_they_are_certain(tmp_path, model, expected):
    assert timm_of(tmp_path, model) == [expected]


def test_timm_names_of_a_plugin_with_several_keys(tmp_path):
    half_told = "model_registry['a'] = 1\nmodel_registry[input()] = 1"
    assert timm_of(
        tmp_path / "0", "import timm\ntimm.create_model('resnet50', pretrained=True)", half_told
    ) == [""]
    two = "model_registry['a:1'] = model_registry['b'] = lambda: 1"
    one_call = "import timm\ntimm.create_model('resnet50', pretrained=True)"
    assert timm_of(tmp_path / "1", one_call, two) == ["", ""]
    by_config = "import timm\ntimm.create_model(CONFIGS[key]['timm_model_name'], pretrained=True)"
    configs = json.dumps({"a:1": {"timm_model_name": "a.1"}, "b": {"timm_model_name": None}})
    assert timm_of(tmp_path / "2", by_config, two, model_configs=configs) == ["a.1", ""]


@pytest.mark.parametrize("given", [".", "brainscore_vision"])
def test_find_package_in_its_parent_or_itself(package, given):
    assert find_package(package / given) == package / "brainscore_vision"
    assert package_version(package / "brainscore_vision") == "9.8.7"


def test_find_package_does_not_import_the_installed_one(package, monkeypatch):
    (package / "brainscore_vision" / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(package)
    assert find_package(None) == package / "brainscore_vision"


def test_find_package_says_how_to_get_a_missing_one(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for path in (None, tmp_path):
        with pytest.raises(UserError, match="pip download --no-deps brainscore-vision"):
            find_package(path)


def test_package_version_of_two_or_none_is_none(package):
    assert package_version(package / "elsewhere" / "brainscore_vision") is None
    (package / "brainscore_vision-1.0.dist-info").mkdir()
    (package / "brainscore_vision-1.0.dist-info" / "METADATA").write_text("Version: 1.0\n")
    assert package_version(package / "brainscore_vision") is None


# ---- setup_scores --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape, text, benchmark, small",
    [
        (1, SHAPE_1, "lab.Two2020.V1-pls", -0.007),
        (2, SHAPE_2, "lab.Two2020.V1-pls", -0.007),
        (3, SHAPE_3, "Two2020.V1-pls", -0.01),
    ],
)
@pytest.mark.parametrize("pack", ["csv", "zip"])
def test_all_shapes_merge_to_the_same_table(
    package, tmp_path, scores_file, shape, text, benchmark, small, pack
):
    path = scores_file(text)
    if pack == "zip":
        path = zipped(
            tmp_path / "export.zip",
            {"leaderboard.csv": text, "plugin-info.csv": "plugin_name\nnet_a\n"},
        )
    table = merge_leaderboard(package, path, tmp_path / "results")
    merged = pd.read_csv(tmp_path / "results" / "benchmark_scores" / f"{MERGED_SCORES}.csv")
    assert list(merged.columns) == [
        "og_model_name",
        "model_registry_name",
        "timm_name",
        "model_name",
        "layers",
        "average_vision",
        benchmark,
        "ImageNet-top1",
    ]
    assert list(merged["og_model_name"]) == ["folder_a", "folder_b", "folder_b"]
    assert (
        list(merged["model_registry_name"])
        == list(merged["model_name"])
        == ["net_a", "net_b", "net:c"]
    )
    expected = pd.DataFrame(
        {
            "average_vision": [0.5, 0.4, 0.3],
            benchmark: [None, 0.25, small],
            "ImageNet-top1": [None, 1.1, 0.7],
        },
        dtype=float,
    )
    pd.testing.assert_frame_equal(merged[benchmark_columns(merged)], expected)
    pd.testing.assert_frame_equal(table[benchmark_columns(table)], expected)
    names = pd.read_csv(tmp_path / "results" / "model_names_translated.csv")
    assert list(names.columns) == [*NAME_COLUMNS, INPUT_COLUMN]
    assert list(names["model_registry_name"]) == ["net_a", "net_b", "net:c", "net_e"]
    side = sidecar(tmp_path / "results")
    assert side["shape"] == shape and side["source"] == path.name and len(side["sha256"]) == 64
    assert side["package_version"] == "9.8.7"
    assert side["unmatched_scores"] == ["net_d"] and side["unmatched_registry"] == ["net_e"]


def test_sidecar_tells_failed_from_not_run_and_which_row_was_kept(package, tmp_path, scores_file):
    merge_leaderboard(package, scores_file(SHAPE_1), tmp_path)
    side = sidecar(tmp_path)
    assert side["benchmarks"]["lab.Two2020.V1-pls"] == {
        "n_scored": 2,
        "n_failed": 1,
        "n_not_run": 0,
    }
    assert side["benchmarks"]["ImageNet-top1"] == {"n_scored": 2, "n_failed": 0, "n_not_run": 1}
    assert side["repeated_names"] == [
        {
            "model_name": "net_b",
            "kept_line": 4,
            "reason": "most scores",
            "scores_by_line": {"3": 1, "4": 3},
        }
    ]
    assert side["stripped_names"] == {"5": " net:c"}
    assert side["match"][2] == {
        "model_registry_name": "net:c",
        "score_name": " net:c",
        "match": "stripped",
    }
    assert {row["match"] for row in side["match"][:2]} == {"exact"}
    assert side["counts"] == {
        "registry_keys": 4,
        "plugins": 3,
        "score_rows": 5,
        "score_rows_joined": 4,
        "score_rows_joined_exactly": 3,
        "models": 3,
        "benchmarks": 3,
        "leaves": 2,
    }
    assert side["aggregates"] == ["average_vision"]
    assert side["leaves"] == ["lab.Two2020.V1-pls", "ImageNet-top1"]


def test_shape_3_does_not_pretend_to_know_what_failed(package, tmp_path, scores_file):
    merge_leaderboard(package, scores_file(SHAPE_3), tmp_path)
    assert sidecar(tmp_path)["benchmarks"]["ImageNet-top1"] == {
        "n_scored": 2,
        "n_failed": None,
        "n_not_run": None,
    }


def test_drop_repeats_keeps_the_first_of_equal_rows(package, tmp_path, scores_file):
    table = merge_leaderboard(
        package, scores_file("model_name,V1\nnet_a,\nnet_a,.1\nnet_a,.2\n"), tmp_path
    )
    assert list(table["V1"]) == [0.1]
    assert sidecar(tmp_path)["repeated_names"][0]["reason"] == "first of those with most scores"


@pytest.mark.parametrize(
    "text, given, expected",
    [
        (SHAPE_1, None, None),
        (SHAPE_1, "2025-05-07", "2025-05-07"),
        (SHAPE_3, None, "2025-09-02"),
        (SHAPE_3, "2025-09-03", "2025-09-03"),
    ],
)
def test_merge_leaderboard_date(package, tmp_path, scores_file, text, given, expected):
    merge_leaderboard(package, scores_file(text), tmp_path, date=given)
    assert sidecar(tmp_path)["date"] == expected


def test_newest_scores_is_the_newest_download_and_never_our_own_output(package, tmp_path):
    folder = tmp_path / "benchmark_scores"
    folder.mkdir()
    for seconds, (name, score) in enumerate(
        {
            "old.csv": 0.1,
            "new.CSV": 0.2,
            f"{MERGED_SCORES}.csv": 0.3,
            f"{MERGED_SCORES}_x.csv": 0.4,
            "notes.txt": 0.5,
        }.items()
    ):
        (folder / name).write_text(f"model_name,V1\nnet_a,{score}\n")
        os.utime(folder / name, (1e9 + seconds, 1e9 + seconds))
    for _ in range(2):
        assert list(merge_leaderboard(package, results_dir=tmp_path)["V1"]) == [0.2]


def test_no_download_says_where_to_get_it_and_where_to_put_it(package, tmp_path):
    with pytest.raises(
        UserError, match=r"benchmark_scores: open https://www.brain-score.org/vision/leaderboard"
    ):
        merge_leaderboard(package, results_dir=tmp_path)


def test_hoak2025s_loader_accepts_the_merged_table(package, tmp_path, scores_file):
    merge_leaderboard(package, scores_file(SHAPE_2), tmp_path)
    merged = pd.read_csv(tmp_path / "benchmark_scores" / f"{MERGED_SCORES}.csv")
    left = merged.drop(
        columns=["model_name", "og_model_name", "layers"]
    )  # as load_merged_results does
    assert list(left.columns[:3]) == ["model_registry_name", "timm_name", "average_vision"]


def test_benchmarks_and_leaves():
    frame = pd.DataFrame(
        columns=[
            "og_model_name",
            "model_name",
            "Rank",
            "rank",
            "Model ID",
            "model_id",
            "layers",
            "V1",
            "Filtered Score",
            "lab.X2020-pls",
        ]
    )
    assert benchmark_columns(frame) == ["V1", "lab.X2020-pls"]
    assert leaf_benchmarks(benchmark_columns(frame)) == ["lab.X2020-pls"]
    assert len(AGGREGATES) == 24


# ---- plugin-info.csv: what is a leaf -------------------------------------------------------------

# as the site exports it: names are not quoted, and benchmarks have lab and version
INFO = """\
# Generated on 2026-08-05T12:00:00.000Z (EDT)
# Date from 2020-08-27T10:32:07.000Z to 2026-08-05T12:00:00.000Z
plugin_name,plugin_type,model_id,metadata
net_a,model,7,"{""architecture"":""CNN"",""family"":""a, b""}"
net_b,model,8,"{""architecture"":""older""}"
net_b,model,9,"{""architecture"":""newer""}"
net,of three, commas,model,12,"{}"
lab.Two2020.V1-pls_v2,benchmark,,"{""Stimuli"":{},""Data"":{},""Metric"":{}}"
ImageNet-top1_v1,benchmark,,"{}"
lab.New2026.V9-pls_v1,benchmark,,"{}"
"""
# New2026 is a group that came after 2025-05, New2026.V9-pls the only benchmark in it
SHAPE_2026 = "\n".join(
    line
    + (
        ',"New2026","New2026.V9-pls"'
        if '"Rank"' in line
        else f',"0.{i}","0.{i}"'
        if not line.startswith("#")
        else ""
    )
    for i, line in enumerate(SHAPE_3.splitlines())
)


def test_an_average_that_plugin_info_tells_is_no_benchmark(package, tmp_path, capsys):
    path = zipped(tmp_path / "x.zip", {"leaderboard.csv": SHAPE_2026, "plugin-info.csv": INFO})
    table = merge_leaderboard(package, path, tmp_path)
    assert benchmark_columns(table) == [
        "average_vision",
        "Two2020.V1-pls",
        "ImageNet-top1",
        "New2026.V9-pls",
    ]
    facts = json.loads((tmp_path / f"benchmark_scores/{MERGED_SCORES}.json").read_text())
    assert facts["unknown_parents"] == ["New2026"] and facts["aggregates"] == ["average_vision"]
    assert facts["leaves"] == benchmark_columns(table)[1:] and facts["counts"]["leaves"] == 3
    assert facts["models"]["net_a"] == {"architecture": "CNN", "family": "a, b"}
    assert facts["models"]["net_b"] == {"architecture": "newer"}  # the row kept is that of id 9
    assert "left out: 1 averages that are new (New2026)" in capsys.readouterr().out
    assert leaf_benchmarks(benchmark_columns(read_leaderboard(path)[0])) == facts["leaves"]


@pytest.mark.parametrize(
    "info",
    [
        None,
        "plugin_name\nnet_a\n",
        "",
        INFO.replace("benchmark", "model"),
        INFO.replace("2020.", "1."),
    ],
    ids=["none", "other columns", "empty", "no benchmark", "a benchmark not of the table"],
)
def test_a_zip_without_leaves_has_the_leaves_that_are_known(tmp_path, info):
    members = {"leaderboard.csv": SHAPE_3} | ({"plugin-info.csv": info} if info else {})
    scores, facts = read_leaderboard(zipped(tmp_path / "x.zip", members))
    if info and "1.V1" in info:  # the file is believed: Two2020.V1-pls is none of its leaves
        assert facts["unknown_parents"] == ["Two2020.V1-pls"]
        assert benchmark_columns(scores) == ["average_vision", "ImageNet-top1"]
    else:
        assert facts["unknown_parents"] == [] and len(benchmark_columns(scores)) == 3


def test_a_bare_name_is_an_average_where_no_file_tells(scores_file):
    scores, facts = read_leaderboard(scores_file(SHAPE_2026))
    assert facts["unknown_parents"] == ["New2026"]
    assert leaf_benchmarks(benchmark_columns(scores)) == [
        "Two2020.V1-pls",
        "ImageNet-top1",
        "New2026.V9-pls",
    ]


@pytest.mark.parametrize(
    "text, message",
    [
        (
            'model_name;V1;"ImageNet-top1"\nnet_a;0,467;0,5\n',
            "semicolons between its columns.* decimal",
        ),
        ('"Rank";"Model";"Model ID";"V1"\n"1";"net_a";"7";"0,5"\n', "semicolons between"),
        (
            'model_name,V1,V2\nnet_a,"0,467",".5"\n',
            "line 2, column V1: '0,467' is no score; write a number without thousands or decimal",
        ),
        ("model_name,V1,V2\nnet_a,0,467,0,5\n", "line 2: 5 cells under 3 column names"),
    ],
)
def test_decimal_commas_are_refused_in_one_line(package, tmp_path, scores_file, text, message):
    with pytest.raises(UserError, match=message) as error:
        merge_leaderboard(package, scores_file(text), tmp_path / "results")
    assert "\n" not in str(error.value) and not (tmp_path / "results").exists()


@pytest.mark.parametrize("shape", [SHAPE_1, SHAPE_3])
def test_tabs_separate_as_commas_do(tmp_path, shape):
    """As spreadsheets write `Text (tab-separated)`; a decimal comma in it is refused."""
    rows = list(csv.reader(shape.splitlines()))
    (tmp_path / "a.csv").write_text(shape)
    lines = ["\t".join(row) for row in rows]
    (tmp_path / "a.tsv").write_text("\n".join(lines) + "\n")
    pd.testing.assert_frame_equal(
        read_leaderboard(tmp_path / "a.csv")[0].drop(columns="layers"),
        read_leaderboard(tmp_path / "a.tsv")[0].drop(columns="layers"),
    )
    (tmp_path / "a.tsv").write_text(
        "\n".join(lines).replace("0.70", "0,70").replace("\t.7", "\t0,7")
    )
    with pytest.raises(UserError, match="'0,70?' is no score"):
        read_leaderboard(tmp_path / "a.tsv")


# ---- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content, message",
    [
        (
            "name,V1\nnet_a,.1\n",
            r"neither model_name nor Model and Model ID in its header \(name, V1\)",
        ),
        ("model_name;V1\nnet_a;0.1\n", "semicolons between its columns"),
        ("model_name;V1\nnet_a;0,1\n", "semicolons between its columns, .* decimal commas"),
        ("", r"in its header \(nothing\)"),
        ("No models submitted yet.", "in its header"),
        ("<!DOCTYPE html>\n<html></html>", "a web page, not a CSV"),
        ("\ufeff\n <html>", "a web page, not a CSV"),
        (
            "model_name,V1\nmodel_name,V1\nnet_a,.1\n",
            "line 2, column model_name: a second header; delete",
        ),
        ("model_name,V1\nmodel,area\nnet_a,.1\n", "line 2, column V1: 'area' is no score"),
        ("model_name,V1\n ,.1\n", "line 2, column model_name: no model name"),
        ("model_name,V1,IT,V1\nnet_a,1,1,1\n", "repeated or empty column names 'V1'"),
        ("model_name,,IT\nnet_a,1,1\n", "repeated or empty column names ''"),
        (
            'model_name,V1\nnet_a,.1\nnet_b,"1,234"\n',
            "line 3, column V1: '1,234' is no score; .*without thousands",
        ),
        ("model_name,V1\nnet_a,nan\n", "'nan' is no score"),
        ("model_name,V1\nnet_a,inf\n", "'inf' is no score"),
        ("model_name,V1\nnet_a,\u0661\n", "is no score"),
        ("model_name,V1,IT\nnet_a,.1,.2\nnet_b,.1\n", "line 3: 2 cells under 3 column names"),
        ('model_name,V1\n"net_a,.1\n', "line 2: unexpected end of data"),
        ("model_name,V1\n", "0 models and 1 benchmarks"),
        ("model_name,layers\nnet_a,{}\n", "1 models and 0 benchmarks"),
        (
            "model_name,V1\nr\u00e9seau,.1\n".encode("latin-1"),
            "line 2: neither UTF-8 nor marked UTF-16; save it as UTF-8",
        ),
        ("model_name,V1\nnet_a,.1\n".encode("utf-16-le"), "save it as UTF-8"),
        ("model_name,V1\nnet_a,.1\n".encode("utf-32"), "save it as UTF-8"),
        (b"PK\x03\x04 and no more", "download it again"),
        ("model_name,V1\nnobody,.1\n", "none of its models is registered"),
    ],
)
def test_bad_files_are_refused_in_one_line_and_nothing_is_written(
    package, tmp_path, scores_file, content, message
):
    path, results = scores_file(content), tmp_path / "results"
    with pytest.raises(UserError, match=message) as error:
        merge_leaderboard(package, path, results)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert not results.exists()


def test_a_refused_file_leaves_the_last_good_outputs(package, tmp_path, scores_file):
    merge_leaderboard(package, scores_file(SHAPE_1), tmp_path / "results")
    before = {
        path: path.read_bytes() for path in (tmp_path / "results").rglob("*") if path.is_file()
    }
    for path, date in (
        (scores_file("<html>", "a.csv"), None),
        (scores_file(SHAPE_2, "b.csv"), "7 May"),
        (tmp_path, None),
    ):
        with pytest.raises(UserError):
            merge_leaderboard(package, path, tmp_path / "results", date=date)
    assert before == {
        path: path.read_bytes() for path in (tmp_path / "results").rglob("*") if path.is_file()
    }
    assert len(before) == 3


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_encodings_that_mark_themselves_are_read_right(scores_file, encoding, newline):
    text = "model_name,V1\nr\u00e9seau,.1\n".replace("\n", newline)
    scores, _ = read_leaderboard(scores_file(text.encode(encoding)))
    assert scores.to_dict("records") == [{"model_name": "r\u00e9seau", "layers": "", "V1": ".1"}]


@pytest.mark.parametrize(
    "members, message",
    [
        ({"../leaderboard.csv": SHAPE_1}, "leaves the folder"),
        ({"/tmp/leaderboard.csv": SHAPE_1}, "leaves the folder"),
        ({"a\\..\\..\\leaderboard.csv": SHAPE_1}, "leaves the folder"),
        ({"C:\\x.csv": SHAPE_1}, "leaves the folder"),
        ({"leaderboard.csv": SHAPE_1, "../x.txt": ""}, "leaves the folder"),
        ({"readme.txt": "x"}, "0 CSVs"),
        ({"plugin-info.csv": "x"}, "0 CSVs"),
        ({"a.csv": "x", "b.csv": "x"}, "2 CSVs"),
    ],
)
def test_zips_that_are_refused(tmp_path, members, message):
    with pytest.raises(UserError, match=message):
        read_leaderboard(zipped(tmp_path / "x.zip", members))


def test_a_zip_bomb_is_not_unpacked(tmp_path):
    path = zipped(tmp_path / "bomb.zip", {"leaderboard.csv": b"0" * (MAX_BYTES + 2**20)})
    assert path.stat().st_size < 2**20
    with pytest.raises(UserError, match="bomb.zip: larger than 64 MiB"):
        read_leaderboard(path)


def test_a_zip_that_lies_about_its_size_or_is_damaged_is_refused(tmp_path):
    data = bytearray(zipped(tmp_path / "x.zip", {"leaderboard.csv": SHAPE_1 * 100}).read_bytes())
    entry = data.rindex(b"PK\x01\x02")
    data[entry + 24 : entry + 28] = (5).to_bytes(4, "little")  # uncompressed size
    (tmp_path / "x.zip").write_bytes(data)
    with pytest.raises(UserError, match="download it again"):
        read_leaderboard(tmp_path / "x.zip")


def test_a_file_too_large_is_not_read(scores_file, monkeypatch):
    monkeypatch.setattr("alignment_security.analysis.brainscore_leaderboard.MAX_BYTES", 20)
    with pytest.raises(UserError, match="larger than"):
        read_leaderboard(scores_file(SHAPE_1))


NAME = st.text(
    st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=12
).filter(lambda name: name not in ("model_name", "<") and not name.startswith("<"))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["", " ", "  ", "\t", "\u00a0"]), NAME), min_size=1, max_size=6
    )
)
def test_any_name_survives_and_joins_but_for_the_space_around_it(tmp_path_factory, rows):
    root = tmp_path_factory.mktemp("names")
    names = list(dict.fromkeys(name for _, name in rows))
    plugin(root, "zoo", "\n".join(f"model_registry[{name!r}] = 1" for name in names))
    path = root / "scores.csv"
    table = pd.DataFrame(
        {"model_name": [space + name for space, name in rows], "V1": range(len(rows))}
    )
    table.to_csv(path, index=False)
    merged = merge_leaderboard(root, path, root / "results")
    assert list(merged["model_registry_name"]) == names
    firsts = [next(i for i, (_, other) in enumerate(rows) if other == name) for name in names]
    assert list(merged["V1"]) == firsts
    assert sorted(sidecar(root / "results")["stripped_names"].values()) == sorted(
        s + n for s, n in rows if s
    )


# ---- comparing and joining -----------------------------------------------------------------------


def statuses(table):
    return {(row.model, row.benchmark): row.status for row in table.itertuples()}


def test_compare_scores_gives_what_moved_and_by_how_much(scores_file, capsys):
    a = scores_file("model_name,V1,IT,an-only\nm,.100,.2,.9\nn,.3,X,\ngone,.5,.5,\n", "a.csv")
    b = scores_file("model_name,rank,IT,V1\nn,1,.4,.3\nm,2,.2,.101\nfresh,3,.1,.1\n", "b.csv")
    table = compare_scores(a, b)
    assert list(table.columns) == [
        "model",
        "benchmark",
        "score_a",
        "score_b",
        "difference",
        "status",
    ]
    assert statuses(table) == {
        ("m", "V1"): "moved",
        ("m", "IT"): "same",
        ("m", "an-only"): "only_a",
        ("n", "V1"): "same",
        ("n", "IT"): "only_b",
        ("gone", "V1"): "only_a",
        ("gone", "IT"): "only_a",
        ("fresh", "IT"): "only_b",
        ("fresh", "V1"): "only_b",
    }
    moved = table[table["status"] == "moved"].iloc[0]
    assert (moved["score_a"], moved["score_b"], round(moved["difference"], 9)) == (
        0.1,
        0.101,
        0.001,
    )
    printed = capsys.readouterr().out
    assert "only_a" in printed and "moved" in printed and "V1" in printed


def test_compare_scores_across_shapes_forgives_rounding_and_lab_prefixes(scores_file):
    a = scores_file("model_name,lab.X2020.V1-pls,IT,V4,V2\nm,.467,.464,1.1,.111\n", "a.csv")
    b = scores_file(
        "# Generated on 2025-09-02\nRank,Model,Model ID,X2020.V1-pls,IT,V4,V2\n"
        "1,m,7,0.47,0.48,1.12,0.11\n",
        "b.csv",
    )
    table = compare_scores(a, b)
    assert statuses(table) == {
        ("m", "lab.X2020.V1-pls"): "same",
        ("m", "IT"): "moved",
        ("m", "V4"): "same",
        ("m", "V2"): "same",
    }


def test_compare_scores_of_a_file_with_itself_and_with_its_merged_table(
    package, tmp_path, scores_file
):
    path = scores_file(SHAPE_1)
    merge_leaderboard(package, path, tmp_path)
    assert set(compare_scores(path, path)["status"]) == {"same"}
    merged = compare_scores(path, tmp_path / "benchmark_scores" / f"{MERGED_SCORES}.csv")
    assert set(merged["status"]) == {"same", "only_a"}
    assert set(merged.loc[merged["status"] == "only_a", "model"]) == {"net_d"}


SCORES = pd.DataFrame(
    {
        "model_registry_name": ["alexnet", "conv:in1k", "half", "whole", "xc", "conv_22k"],
        "timm_name": [None, "conv.in1k", "pnas.tf", "pnas.tf", "xception", "conv.in22k"],
        "V1": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6],
    }
)


@pytest.mark.parametrize(
    "model, key, rule",
    [
        ("alexnet", "alexnet", "registry name"),
        (" alexnet", "alexnet", "registry name"),
        ("conv:in1k", "conv:in1k", "registry name"),
        ("conv.in1k", "conv:in1k", "timm name"),
        ("xception", "xc", "timm name"),
        ("xception.tf_in1k", "xc", "timm name"),
        ("legacy_xception.tf_in1k", "xc", "timm name"),
        ("xception.other", None, "no scores of legacy_xception.other"),
        ("conv", None, "no scores of conv"),
        ("conv.other", None, "no scores"),
        ("pnas.tf", None, "ambiguous timm name: half, whole"),
        ("alexnet.tv", None, "no scores"),
        ("", None, "no scores"),
        (".x", None, "no scores"),
    ],
)
def test_join_scores_rules(model, key, rule):
    joined, unmatched = join_scores(SCORES, pd.DataFrame({"model": [model], "eps": [0.5]}))
    if key:
        assert joined[["model", "eps", "model_registry_name", "match"]].values.tolist() == [
            [model, 0.5, key, rule]
        ]
        assert key not in set(unmatched["model"])
    else:
        assert joined.empty
        reason = unmatched.loc[unmatched["side"] == "results", "reason"]
        assert len(reason) == 1 and reason.iloc[0].startswith(rule)
    assert len(unmatched) == (5 if key else 7)


def test_join_scores_keeps_every_row():
    results = pd.DataFrame({"model": ["xc", "alexnet", "xc", "who"], "eps": [1, 1, 2, 1]})
    joined, unmatched = join_scores(SCORES, results)
    assert joined[["model", "eps", "V1"]].values.tolist() == [
        ["xc", 1, 0.5],
        ["alexnet", 1, 0.1],
        ["xc", 2, 0.5],
    ]
    assert list(unmatched["model"]) == ["who", "conv:in1k", "half", "whole", "conv_22k"]
    assert list(unmatched["side"]) == ["results"] + ["scores"] * 4


@pytest.mark.parametrize(
    "model, weights, key",
    [
        ("inception_v3", "timm:timm/inception_v3.tv_in1k", "inception_v3"),
        ("inception_v3.tv_in1k", "timm:timm/inception_v3.tv_in1k", "inception_v3"),
        ("inception_v3.tf_adv_in1k", "timm:timm/inception_v3.tf_adv_in1k", None),
        ("inception_v3", "timm:timm/inception_v3.tf_adv_in1k", None),
        ("legacy_xception", "timm:https://github.com/x/xception-43020ad28.pth", "xception"),
        ("legacy_xception.tf_in1k", "timm:timm/legacy_xception.tf_in1k", "xception"),
    ],
)
def test_an_untagged_plugin_joins_timms_default_weights_and_no_others(model, weights, key):
    """`create_model("inception_v3")` loads tv_in1k; tf_adv_in1k is adversarially trained."""
    plugins = ["inception_v3", "xception"]
    scores = pd.DataFrame({"model_registry_name": plugins, "timm_name": plugins, "V1": [1, 2]})
    joined, _ = join_scores(scores, pd.DataFrame({"model": [model], "weights": [weights]}))
    assert joined["model_registry_name"].tolist() == ([key] if key else [])


def test_a_row_says_when_the_plugin_shows_its_net_other_images_than_timm():
    """The xception plugin normalises with ImageNet's mean; the weights want 0.5."""
    scores = pd.DataFrame(
        {
            "model_registry_name": ["xception", "inception_v3"],
            "timm_name": ["xception", "inception_v3"],
            "plugin_input": ["299 px, mean 0.485 0.456 0.406", "299 px, mean 0.5 0.5 0.5"],
            "V1": [1, 2],
        }
    )
    joined, _ = join_scores(scores, pd.DataFrame({"model": ["inception_v3", "xception"]}))
    assert joined["input_note"].tolist() == [
        "",
        "the plugin gives it 299 px, mean 0.485 0.456 0.406, timm 299 px, mean 0.5 0.5 0.5",
    ]


@pytest.mark.parametrize(
    "source, text",
    [
        ("f = partial(load_preprocess_images, image_size=224)", "224 px, mean 0.485 0.456 0.406"),
        (
            "N = 9\npartial(load_preprocess_images, image_size=N, preprocess_type='inception')",
            "9 px, mean 0.5 0.5 0.5",
        ),
        (
            "f = partial(load_preprocess_images, image_size=64, normalize_mean=(0.1, 0.2, 0.3))",
            "64 px, mean 0.1 0.2 0.3",
        ),
        ("f = create_transform(**data_config)", OWN_INPUT),
        ("f = partial(load_preprocess_images, image_size=size_of(net))", ""),
        ("f = my_own_loader", ""),
    ],
)
def test_the_input_of_a_plugin_is_read_from_its_source(tmp_path, source, text):
    (tmp_path / "model.py").write_text(source)
    assert plugin_input(tmp_path) == text


def test_join_scores_works_on_the_files_as_written(package, tmp_path, scores_file):
    merge_leaderboard(package, scores_file(SHAPE_1), tmp_path)
    merged = pd.read_csv(
        tmp_path / "benchmark_scores" / f"{MERGED_SCORES}.csv"
    )  # timm_name: an empty column
    joined, unmatched = join_scores(merged, pd.DataFrame({"model": ["net:c"]}))
    assert list(joined["ImageNet-top1"]) == [0.7] and len(unmatched) == 2


def test_join_scores_names_a_registry_name_that_is_there_twice(tmp_path):
    scores = pd.DataFrame(
        {"model_registry_name": ["a", "b", "a"], "timm_name": "", "V1": [0.1, 0.2, 0.3]}
    )
    with pytest.raises(UserError, match="a twice; .*setup_scores"):
        join_scores(scores, pd.DataFrame({"model": ["b"]}))


@pytest.mark.parametrize(
    "results", [pd.DataFrame({"name": ["a"]}), pd.DataFrame({"model": ["a"], "V1": [1]})]
)
def test_join_scores_refuses_tables_it_cannot_join(results):
    with pytest.raises(UserError, match="joining needs"):
        join_scores(SCORES, results)


@pytest.mark.parametrize(
    "model, weights, joins",
    [
        ("alexnet", "timm:timm/alexnet.x", False),
        ("alexnet", "brainscore:alexnet", True),
        ("alexnet", None, True),
        ("conv:in1k", "timm:timm/conv.in1k", True),
        ("conv.in1k", "timm:timm/conv.in1k", True),
        ("conv.in1k", "file:conv.in1k.pth", False),
        ("conv:in1k", "file:mine.pth", False),
        ("conv:in1k", "timm:timm/conv.in22k", True),
    ],
)
def test_timms_weights_do_not_join_a_net_of_that_name_that_is_not_timms(model, weights, joins):
    joined, unmatched = join_scores(SCORES, pd.DataFrame({"model": [model], "weights": [weights]}))
    assert len(joined) == joins
    if not joins:
        reason = "not a public net" if weights.startswith("file:") else "Brain-Score's own net"
        assert reason in unmatched["reason"][0] and "alexnet" in set(unmatched["model"][1:])
    if joins and weights == "timm:timm/conv.in22k":
        assert joined["model_registry_name"].tolist() == ["conv_22k"]


# ---- the join command ----------------------------------------------------------------------------


def join(folder) -> int:
    return utilities.main(
        utilities.get_args_parser().parse_args(["join", "--results_dir", str(folder)])
    )


def test_join_results_writes_what_joins_and_what_does_not(package, tmp_path, scores_file, capsys):
    merge_leaderboard(package, scores_file(SHAPE_1), tmp_path)
    summary = pd.DataFrame(
        {"model": ["net:c", "who", "net:c"], "eps": [0.1, 0.1, 0.2], "robust_acc": [0.5, 0.4, 0.3]}
    )
    summary.to_csv(tmp_path / "evaluation_results.csv", index=False)
    assert join(tmp_path) == 0
    joined, unmatched = pd.read_csv(tmp_path / JOINED), pd.read_csv(tmp_path / UNMATCHED)
    assert joined[["model", "eps", "robust_acc", "match", "ImageNet-top1"]].values.tolist() == [
        ["net:c", 0.1, 0.5, "registry name", 0.7],
        ["net:c", 0.2, 0.3, "registry name", 0.7],
    ]
    assert unmatched["model"][0] == "who" and unmatched["side"].tolist() == [
        "results",
        "scores",
        "scores",
    ]
    out = capsys.readouterr().out
    assert "2 of 3 rows joined (1 models)" in out and all(
        str(tmp_path / name) in out for name in (JOINED, UNMATCHED)
    )
    for row in unmatched.itertuples():
        assert re.search(rf"{row.side} +{re.escape(row.model)} +{re.escape(row.reason)}", out)


@pytest.mark.parametrize(
    "models, says",
    [
        (
            ["resnet50"],
            r"none of its 1 models has scores; resnet50: .* \(nearest: resnet50.tv_in1k",
        ),
        (["resnet50.tv_in1", "zzz"], r"resnet50.tv_in1: no scores .*nearest.*; zzz: [^(]*$"),
        (
            list("abcde"),
            r"none of its 5 models has scores; a: [^;]*; b: [^;]*; c: [^;]*; and 2 more",
        ),
    ],
)
def test_a_join_of_nothing_is_an_error_with_the_nearest_names(tmp_path, capsys, models, says):
    columns = {"og_model_name": "", "model_registry_name": ["resnet50_tutorial", "vit"]}
    scores = pd.DataFrame(columns | {"timm_name": ["resnet50.tv_in1k", ""], "V1": 0.5})
    (tmp_path / "benchmark_scores").mkdir()
    scores.to_csv(tmp_path / "benchmark_scores" / f"{MERGED_SCORES}.csv", index=False)
    pd.DataFrame({"model": models}).to_csv(tmp_path / "evaluation_results.csv", index=False)
    assert join(tmp_path) == 2
    error = capsys.readouterr().err
    assert re.search(says, error.rstrip()) and error.count("\n") == 1
    assert not (tmp_path / JOINED).exists() and not (tmp_path / UNMATCHED).exists()


def test_many_scores_without_results_are_in_the_file_and_counted_on_the_screen(tmp_path, capsys):
    scores = pd.DataFrame(
        {
            "og_model_name": "",
            "model_registry_name": [f"net{i}" for i in range(MAX_SHOWN + 7)],
            "timm_name": "",
            "V1": 0.5,
        }
    )
    (tmp_path / "benchmark_scores").mkdir()
    scores.to_csv(tmp_path / "benchmark_scores" / f"{MERGED_SCORES}.csv", index=False)
    pd.DataFrame({"model": ["net0"]}).to_csv(tmp_path / "evaluation_results.csv", index=False)
    assert len(join_results(tmp_path)) == 1
    assert len(pd.read_csv(tmp_path / UNMATCHED)) == MAX_SHOWN + 6
    out = capsys.readouterr().out
    assert "... and 6 more of the scores" in out and out.count("no results under") == MAX_SHOWN


@pytest.mark.parametrize(
    "have, message",
    [
        ([], "evaluation_results.csv: no such table; `python utilities.py merge"),
        (["evaluation_results.csv"], "python utilities.py setup_scores"),
    ],
)
def test_a_join_without_a_table_names_the_command_and_writes_nothing(
    tmp_path, capsys, have, message
):
    for name in have:
        (tmp_path / name).write_text("model\nnet\n")
    assert join(tmp_path) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert sorted(path.name for path in tmp_path.iterdir()) == have


def test_the_entry_point_finds_the_package_that_the_environment_names(
    package, tmp_path, scores_file, monkeypatch
):
    monkeypatch.setenv("BRAINSCORE_VISION_PATH", str(package))
    assert len(utilities.setup_scores(scores_path=scores_file(SHAPE_1), results_dir=tmp_path)) == 3


def test_setup_and_compare_as_commands(package, tmp_path, scores_file, capsys):
    path = str(scores_file(SHAPE_1))
    parse = utilities.get_args_parser().parse_args
    assert (
        utilities.main(
            parse(
                [
                    "setup_scores",
                    "--package_path",
                    str(package),
                    "--scores_path",
                    path,
                    "--results_dir",
                    str(tmp_path),
                    "--date",
                    "2025-05-07",
                ]
            )
        )
        == 0
    )
    assert (
        json.loads((tmp_path / "benchmark_scores" / f"{MERGED_SCORES}.json").read_text())["date"]
        == "2025-05-07"
    )
    assert utilities.main(parse(["compare_scores", path, path])) == 0
    assert "same" in capsys.readouterr().out
    assert utilities.main(parse(["compare_scores", path, str(tmp_path / "none.csv")])) == 2


# ---- leaderboards of full size ------------------------------------------------------------------


@pytest.fixture(scope="session")
def listed_package(tmp_path_factory):
    """Plugins that register the 741 models of lists/models/brainscore.txt under its timm names."""
    root = tmp_path_factory.mktemp("site-packages")
    for name, rows in read_model_list("brainscore").groupby("group"):
        timm = rows["weights"].str.removeprefix("timm:").mask(rows["weights"] == "plugin")
        configs = {
            key: {"timm_model_name": model} for key, model in zip(rows["name"], timm.fillna(""))
        }
        files = {"model": "import torch"}
        if timm.notna().any():
            made = repr(timm.item()) if len(rows) == 1 else "CONFIGS[key]['timm_model_name']"
            files = {
                "model": f"import timm\ntimm.create_model({made}, pretrained=True)",
                "model_configs": json.dumps(configs),
            }
        plugin(
            root,
            name,
            "\n".join(f"model_registry[{key!r}] = lambda: 1" for key in rows["name"]),
            **files,
        )
    return root / "brainscore_vision"


@pytest.fixture(params=["listed", "wheel"])
def registry_package(request):
    """brainscore_vision 2.4.2: made from our list, and the package itself where it is there."""
    if request.param == "listed":
        return request.getfixturevalue("listed_package")
    given = os.environ.get("BRAINSCORE_VISION_PATH")
    if not given and importlib.util.find_spec("brainscore_vision") is None:
        pytest.skip(
            "brainscore_vision is neither installed nor named by BRAINSCORE_VISION_PATH: "
            "pip download --no-deps brainscore-vision==2.4.2"
        )
    package = find_package(given)
    if package_version(package) != "2.4.2":
        pytest.skip("the counts are those of brainscore_vision 2.4.2")
    return package


def test_a_leaderboard_has_130_benchmarks_106_leaves(leaderboard):
    scores, facts = read_leaderboard(leaderboard)
    benchmarks = benchmark_columns(scores)
    assert (len(scores), len(benchmarks), len(leaf_benchmarks(benchmarks)), facts["shape"]) == (
        455,
        130,
        106,
        2,
    )
    assert sorted(facts["stripped_names"].values()) == [
        " vonegrcnn_47e",
        " vonegrcnn_52e_full",
        " vonegrcnn_62e_nobn",
    ]
    assert AGGREGATES < set(benchmarks)


def test_the_made_up_leaderboard_has_the_averages_and_the_oddities_of_the_real_one():
    table = make_leaderboard()
    assert table.shape == (455, 134) and AGGREGATES == set(AVERAGES)
    assert leaf_benchmarks(benchmark_columns(table)) == LEAVES and set(table["Kar2019-ost"]) == {
        "X",
        "",
    }
    cells = set(table[LEAVES].stack())
    assert {"X", "", ".467", "1.1"} <= cells and any(cell.startswith("-0.") for cell in cells)
    counts = table["model_name"].value_counts()
    assert counts[counts > 1].to_dict() == {"alexnet": 10, "resnet50": 2, "RN50": 2, "my-model": 2}
    assert "ViT-B/32" in counts and table["model_name"].str.strip().nunique() == 440
    _, repeated = drop_repeats(table.assign(model_name=table["model_name"].str.strip()))
    assert {row["model_name"]: row["reason"] for row in repeated} == {
        "alexnet": "first of those with most scores"
    } | dict.fromkeys(
        [
            "resnet50",
            "RN50",
            "my-model",
            "vonegrcnn_47e",
            "vonegrcnn_52e_full",
            "vonegrcnn_62e_nobn",
        ],
        "most scores",
    )


def test_counts_of_a_leaderboard_of_full_size(registry_package, leaderboard, tmp_path):
    table, side = merge_leaderboard(registry_package, leaderboard, tmp_path), sidecar(tmp_path)
    keys = pd.read_csv(tmp_path / "model_names_translated.csv")["model_registry_name"]
    lines = sum(
        file.read_text(encoding="utf-8").count("model_registry[")
        for file in registry_package.glob("models/*/__init__.py")
    )
    assert lines == len(keys) == keys.nunique() == 741  # in 2.4.2 every key is a literal
    assert [
        side[name]
        for name in ("files_not_parsed", "unresolved_keys", "plugins_without_keys", "repeated_keys")
    ] == [[]] * 4
    counts = side["counts"]
    assert (counts["score_rows_joined_exactly"], counts["score_rows_joined"], counts["models"]) == (
        242,
        245,
        233,
    )
    assert (counts["benchmarks"], counts["leaves"], len(side["aggregates"])) == (130, 106, 24)
    assert len(table) == 233 and table["model_registry_name"].str.contains(":").sum() == 21
    timm = table.set_index("model_registry_name")["timm_name"]
    assert (timm != "").sum() == 29
    assert timm["convnext_xlarge:fb_in22k_ft_in1k"] == "convnext_xlarge.fb_in22k_ft_in1k"
    assert timm["alexnet"] == ""


def test_two_snapshots_compare(leaderboard, tmp_path):
    if leaderboard.name.endswith("made_up.csv"):
        older, moved, lost = older_leaderboard(
            pd.read_csv(leaderboard, dtype=str, keep_default_na=False)
        )
        old = tmp_path / "old_leaderboard_made_up.csv"
        older.to_csv(old, index=False)
    else:
        old, moved, lost = published_leaderboard("old"), None, None
    table = compare_scores(old, leaderboard)
    a, b = (pd.read_csv(path, na_values="X") for path in (old, leaderboard))
    alone = set(a["model_name"].str.strip().value_counts().loc[lambda n: n == 1].index)
    row = table[(table["status"] == "moved") & table["model"].isin(alone)].iloc[0]
    for frame, column in ((a, "score_a"), (b, "score_b")):
        assert (
            frame.loc[frame["model_name"] == row["model"], row["benchmark"]].item() == row[column]
        )
    if moved:
        cells = table.set_index(["model", "benchmark"])
        assert cells.loc[cells["status"] == "moved", "difference"].to_dict() == pytest.approx(moved)
        assert (
            list(cells.index[cells["status"] == "only_b"]) == sorted(lost)
            and not (cells["status"] == "only_a").any()
        )


CHECK = """
import sys
from utilities import setup_scores
setup_scores(sys.argv[1], sys.argv[2], sys.argv[3])
heavy = {"torch", "timm", "brainscore_vision", "matplotlib", "scipy", "sklearn"} & set(sys.modules)
print(f"\\n{heavy or 'light'}")
"""


def test_scores_of_657_plugins_and_455_models_are_set_up_without_torch(tmp_path):
    for i in range(657):
        plugin(
            tmp_path,
            f"plugin_{i}",
            f"from .model import get_model\nmodel_registry['net_{i}'] = lambda: get_model('net')",
            model="import torch\n" + "def layer(x):\n    return [x + i for i in range(7)]\n" * 60,
        )
    columns = pd.DataFrame(
        {f"Bench{i}-pls": [".467", "X", "", ".12", "1.1"] * 91 for i in range(130)}
    )
    columns.insert(0, "model_name", [f"net_{i}" for i in range(455)])
    columns.to_csv(tmp_path / "scores.csv", index=False)
    done = subprocess.run(
        [sys.executable, "-c", CHECK, tmp_path, tmp_path / "scores.csv", tmp_path / "results"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split("\n")[-2] == "light"
