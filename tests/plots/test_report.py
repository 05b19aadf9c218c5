"""The HTML page as text: its links, names that could break it, what its tables and pictures say.

test_report_page.py looks at it in a browser.
"""

import json
import re
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest
from norm_tables import make_norms, write_published, write_summary

import plotting
from alignment_security.analysis.results import load_results
from alignment_security.plots.report_leaderboard import Leaderboard, leaderboard
from alignment_security.plots.report_pictures import tradeoff_pictures
from alignment_security.records.summary import merge_records

NASTY = '<script>alert("1")</script> & "x"/../y'


class Page(HTMLParser):
    """Tags with their attributes, and the text of the cells of each table."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.tables, self.cell = [], {}, None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "table":
            self.rows = self.tables.setdefault(dict(attributes)["id"], [])
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self.cell = True

    def handle_endtag(self, tag):
        self.cell = self.cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self.cell:
            self.rows[-1][-1] += data


def make_report(results, figures, *options):
    return plotting.main(
        [
            "--published",
            "",
            "--results_dir",
            str(results),
            "--figures_dir",
            str(figures),
            "--report",
            *options,
        ]
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The report of three models, one with a name that is an attack, and of published numbers."""
    folder = tmp_path_factory.mktemp("report")
    for model, norm in ((NASTY, 0.5), ("net10", 0.25), ("net9", 10.0)):
        make_norms(folder / "results", model, [norm, norm, None])
    merge_records(folder / "results")
    published = write_published(folder / "published")
    figures = folder / "out" / "figures"
    plots = ["accuracy_vs_norm", "text_statistics", "tables_1_2"]
    assert (
        make_report(folder / "results", figures, "--plots", *plots, "--published", str(published))
        == 0
    )
    return figures / "report.html"


def test_every_model_links_to_its_record(page):
    parsed = Page(page.read_text())
    links = [
        attributes["href"]
        for tag, attributes in parsed.tags
        if tag == "a" and not attributes["href"].startswith("#")
    ]
    targets = {(page.parent / unquote(link)).resolve() for link in links}
    assert targets == {
        path.resolve() for path in page.parents[2].glob("results/records/mine/L2-crossing/*.csv")
    }
    assert len(targets) == 3
    head, *rows = parsed.tables["leaderboard"]
    assert head[:4] == ["model", "image set", "images", "clean (%)"]
    assert sorted(row[:5] for row in rows) == sorted(
        [model, "mine", "3", "66.7 [20.8, 93.9]", f"{norm} ± 0.000, n = 2"]
        for model, norm in ((NASTY, "0.500"), ("net10", "0.250"), ("net9", "10.000"))
    )


def test_names_are_escaped_and_nothing_is_fetched(page):
    text = page.read_text()
    tags = Page(text).tags
    assert "<script>alert" not in text and sum(tag == "script" for tag, _ in tags) == 2
    sources = [
        found.get("src") or found.get("href")
        for tag, found in tags
        if tag in ("img", "script", "link", "iframe")
    ]
    assert all(source is None or source.startswith("data:image/") for source in sources)
    assert "default-src 'none'" in text and not re.search(r"url\(|@import|fetch\(|https?://", text)
    assert sum(tag == "img" for tag, _ in tags) == 1  # the one figure drawn; tables are tables


def test_the_report_has_published_models_and_tables(page):
    tables = Page(page.read_text()).tables
    assert len(tables["published"]) == 1 + 7
    assert len(tables["table-table_2_robust"]) == 1 + 2


def test_a_report_of_nothing_says_what_to_do(tmp_path, capsys):
    (tmp_path / "records").mkdir()  # evaluations have begun
    assert make_report(tmp_path, tmp_path / "figures") == 2
    error = capsys.readouterr().err
    assert (
        "nothing to report" in error
        and "python utilities.py merge" in error
        and "--published DIR" in error
    )
    assert not (tmp_path / "figures" / "report.html").exists()


def test_budgets_are_columns_of_their_own_and_a_missing_record_is_no_link(tmp_path):
    ball = {"threat": "Linf", "protocol": "autoattack", "robust_acc": 0.25, "eps": 1 / 255}
    write_summary(
        tmp_path,
        [
            {"model": "a", "attack": "small"} | ball,
            {"model": "b", "attack": "large", "partial": 1} | ball,
        ],
    )
    assert make_report(tmp_path, tmp_path / "figures", "--plots", "accuracy_vs_eps") == 0
    head, *rows = Page((tmp_path / "figures" / "report.html").read_text()).tables["leaderboard"]
    assert head[4:6] == ["Linf ε = 1/255 (%)large", "Linf ε = 1/255 (%)small"]
    assert [row[4:] for row in rows] == [
        ["", "25.0 [11.2, 46.9]", ""],
        ["25.0 [11.2, 46.9]", "", "unfinished"],
    ]
    assert (
        "<a href"
        not in (tmp_path / "figures" / "report.html")
        .read_text()
        .partition("<table")[2]
        .partition("</table")[0]
    )


def test_a_row_is_one_list_of_images(tmp_path):
    """Norms of 8 images are no part of a row of 24; accuracy under fog is not clean accuracy."""
    common = {"model": "a", "protocol": "p", "attack": "", "n": 24, "list_sha256": "all"}
    rows = [
        {"threat": "clean", "clean_acc": 0.75},
        {"threat": "corruptions-fog-3", "clean_acc": 0.5},
        {"threat": "L2-crossing", "n": 8, "list_sha256": "some", "clean_acc": 1.0, "l2_mean": 0.25},
        {"threat": "L2-fmn", "clean_acc": 0.875, "l2_mean": 2.0, "head": "animate"},
    ]
    write_summary(tmp_path, [common | row for row in rows])
    assert make_report(tmp_path, tmp_path / "figures", "--plots", "accuracy_vs_eps") == 0
    page = (tmp_path / "figures" / "report.html").read_text()
    head, *rows = Page(page).tables["leaderboard"]
    assert head[3:7] == ["clean (%)", "L2-crossing L2 norm", "L2-fmn L2 norm", "fog-3 (%)"]
    assert sorted(row[1:7] for row in rows) == [
        ["mine", "24", "75.0 [55.1, 88.0]", "", "", "50.0 [31.4, 68.6]"],
        ["mine", "8", "100.0 [67.6, 100.0]", "0.250", "", ""],
        ["mine, head animate", "24", "87.5 [69.0, 95.7]", "", "2.000", ""],
    ]


def test_a_mean_has_its_own_n_and_a_model_without_a_right_answer_is_said(tmp_path):
    means = {"l2_mean": 0.5, "l2_sem": 0.1, "n_norm": 6, "human_alignment": 0.25}
    rows = [
        means | {"model": "four", "human_alignment_sem": 0.05, "n_alignment": 4},
        means | {"model": "one", "n_alignment": 1},
        {"model": "wrong", "clean_acc": 0.0, "n_norm": 0, "n_alignment": 0},
        {"model": "fog", "threat": "corruptions-fog-5", "clean_acc": 0.0},
        {"model": "late", "clean_acc": 0.0, "partial": 1},
    ]
    results = load_results(write_summary(tmp_path, [{"n": 6} | row for row in rows]))
    page = Page(leaderboard(results, tmp_path).html)
    _, *rows = page.tables["leaderboard"]
    found = {model: cells for model, _, _, _, *cells in rows}
    assert found["four"] == ["0.500 ± 0.100", "25.0 ± 5.0, n = 4", "", ""]
    assert found["one"] == ["0.500 ± 0.100", "25.0 n = 1", "", ""]
    assert found["wrong"] == ["", "", "", "no image classified correctly"]
    assert found["fog"] == ["", "", "0.0 [0.0, 39.0]", ""]
    assert found["late"] == ["", "", "", "unfinished"]


def test_norms_of_another_head_are_not_among_the_published_ones(tmp_path):
    common = {"threat": "L2-feng2025", "l2_mean": 2.0, "human_alignment": 0.1}
    rows = [
        common | {"model": "same", "attack": "feng2025, head animate", "head": "animate"},
        common | {"model": "other", "attack": "feng2025", "head": "none"},
    ]
    results = load_results(
        write_summary(tmp_path, rows), None, write_published(tmp_path / "published")
    )
    published, *_ = tradeoff_pictures(results, Leaderboard(), Leaderboard())
    assert [point["model"] for point in published["points"] if point["own"]] == ["same"]


def test_report_and_no_save_exclude_each_other(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        make_report(tmp_path, tmp_path, "--no_save")
    assert stop.value.code == 2 and "not allowed with" in capsys.readouterr().err


def test_pictures_hold_every_model_with_both_values(page):
    """Points lead to rows; the names cannot end the element that holds the data."""
    text = page.read_text()
    data = text.partition('id="pictures">')[2].partition("</script>")[0]
    (published,) = json.loads(data)["tradeoff"]
    assert len(published["points"]) == 7 and published["name"] == "Feng et al. 2025, published"
    for point in published["points"]:
        assert f'id="{point["row"]}"' in text and not point["own"]


def test_clean_and_robust_accuracy_are_pictures_with_their_front(tmp_path):
    accuracies = {"a": (0.9, 0.1), "b": (0.8, 0.3), "c": (0.7, 0.2)}
    common = {"threat": "Linf", "eps": 1 / 255, "protocol": "autoattack"}
    rows = [
        {"model": model, "clean_acc": clean, "robust_acc": robust, "family": "x"} | common
        for model, (clean, robust) in accuracies.items()
    ]
    rows[1]["group"] = "robust"
    rows.append(rows[0] | {"model": "unfinished", "partial": 1})
    write_summary(tmp_path, rows)
    assert make_report(tmp_path, tmp_path / "figures", "--plots", "accuracy_vs_eps") == 0
    text = (tmp_path / "figures" / "report.html").read_text()
    data = json.loads(text.partition('id="pictures">')[2].partition("</script>")[0])
    (picture,) = data["accuracy"]
    assert picture["front"] == ["b", "a"] and len(picture["points"]) == 3
    groups = {point["model"]: point["group"] for point in picture["points"]}
    assert groups == {"a": "Other", "b": "robust", "c": "Other"}
    assert {"Other", "robust"} <= set(data["colours"]["group"])
    point = picture["points"][0]
    assert (point["x"], point["y"]) == pytest.approx((90, 10))
    assert point["y_bar"] == pytest.approx([2.787, 30.105], abs=0.01)  # Wilson, 2 of 20
