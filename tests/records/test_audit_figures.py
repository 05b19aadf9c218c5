"""The audit of tables: panels that pool, and nets of one's own that took public numbers."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from norm_tables import make_norms

import plotting
import utilities
from alignment_security.records.audit_figures import check_tables
from alignment_security.records.summary import JOINED_NAME
from alignment_security.records.trace import finished_runs

LITE0_SHA256 = "ac73d8caead58befc6b7f487a945ef400c8f1514ec776b50fd6f4f8f65497ef2"


def found(results) -> list[str]:
    figures = results / "figures"
    figures.mkdir(exist_ok=True)
    return list(check_tables(results, figures, finished_runs(results)))


def write(path, **columns) -> None:
    path.parent.mkdir(exist_ok=True)
    pd.DataFrame(columns).to_csv(path, index=False)


@pytest.fixture
def results(tmp_path):
    """Norms of two models alike, of one on another head and of one on fewer images."""
    make_norms(tmp_path, "a", [0.1, 0.3])
    make_norms(tmp_path, "b", [0.2, 0.4])
    make_norms(tmp_path, "animate", [0.2, 0.4], head="animate")
    make_norms(tmp_path, "short", [0.2], slice=[0, 1])
    return tmp_path


# ---- panels --------------------------------------------------------------------------------------


@pytest.mark.parametrize("models", [["a", "animate"], ["short", "b"], ["a", "b", "short"]])
def test_a_panel_that_pools_is_found(results, models):
    """The table that a version drew which put every run of a threat and budget into one panel."""
    write(
        results / "figures" / "accuracy_vs_norm.csv",
        image_set="mine",
        threat="L2-crossing",
        budget="L2-crossing 9 steps",
        model=models,
        eps=0.0,
        accuracy=1.0,
        panel=1,
    )
    (problem,) = found(results)
    assert "accuracy_vs_norm.csv: pools runs of different settings in panel 1, e.g." in problem
    assert problem.endswith("draw it again with plotting.py")


def test_panels_as_they_are_drawn_now_do_not_pool(results):
    plotting.main(
        [
            "--published",
            "",
            "--results_dir",
            str(results),
            "--figures_dir",
            str(results / "figures"),
            "--plots",
            "accuracy_vs_norm",
        ]
    )
    plt.close("all")
    table = pd.read_csv(results / "figures" / "accuracy_vs_norm.csv")
    assert table["panel"].nunique() == 3 and found(results) == []


@pytest.mark.parametrize(
    "models, severities, pools",
    [("aabb", "1212", False), ("aab", "123", True), ("ab", "12", True), ("ab", "33", False)],
)
def test_means_over_different_severities_are_found(results, models, severities, pools):
    write(
        results / "figures" / "corruption_errors_x.csv",
        image_set="x",
        model=list(models),
        type="fog",
        severity=list(severities),
        error=0.5,
    )
    assert len(found(results)) == pools


def test_published_numbers_and_files_that_are_no_tables_are_no_problem(results):
    published = {"source": "Feng et al. 2025, published", "model": ["x"], "panel": 1}
    write(results / "figures" / "tradeoff.csv", **published)
    (results / "figures" / "broken.csv").write_bytes(b"\xff\xfe\x00")
    assert found(results) == []


# ---- joins ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "columns, wrong",
    [
        ({"weights": "file:mine.pth"}, True),
        ({"weights": "timm:timm/resnet50.a1_in1k"}, False),
        ({"weights": "brainscore:alexnet"}, False),
        ({"weights": "file:mine.pth", "weights_sha256": LITE0_SHA256}, False),
        ({"weights": "file:mine.pth", "weights_sha256": "0" * 64}, True),
    ],
)
def test_a_summary_that_joins_a_net_of_ones_own_to_public_scores(results, columns, wrong):
    write(
        results / JOINED_NAME, model=["alexnet"], model_registry_name="alexnet", V1=0.1, **columns
    )
    problems = found(results)
    assert len(problems) == wrong
    if wrong:
        assert "alexnet has weights file:mine.pth and public numbers" in problems[0]
        assert "utilities.py join" in problems[0]


@pytest.mark.parametrize(
    "columns, wrong",
    [
        ({"group": "CNN"}, True),
        ({"group": "robust"}, False),
        ({"group": "Other", "public": "vgg11.tv_in1k"}, True),
        ({"group": "Other", "public": ""}, False),
        ({"model_registry_name": "vgg"}, True),
    ],
)
def test_a_figure_that_takes_a_net_of_ones_own_for_the_public_one(results, columns, wrong):
    write(
        results / "figures" / "tradeoff.csv",
        source="",
        model=["vgg11.tv_in1k"],
        weights="file:own.pth",
        **columns,
    )
    assert len(found(results)) == wrong


def test_the_command_names_them(results, capsys):
    write(results / JOINED_NAME, model=["a"], weights="file:a.pth", model_registry_name="a")
    args = utilities.get_args_parser().parse_args(["audit", str(results)])
    with pytest.raises(SystemExit) as status:
        utilities.main(args)
    assert status.value.code == 1 and f"{JOINED_NAME}: a has weights" in capsys.readouterr().out
