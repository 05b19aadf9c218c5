"""The HTML page: its links, names that could break it, and tables that sort in a browser."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest
from norm_tables import make_norms, write_published, write_summary

import plotting
from alignment_security.records.summary import merge_records

NASTY = '<script>alert("1")</script> & "x"/../y'
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


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
        [model, "mine", "3", "66.7", norm]
        for model, norm in ((NASTY, "0.500"), ("net10", "0.250"), ("net9", "10.000"))
    )


def test_names_are_escaped_and_nothing_is_fetched(page):
    text = page.read_text()
    tags = Page(text).tags
    assert "<script>alert" not in text and sum(tag == "script" for tag, _ in tags) == 1
    sources = [
        found.get("src") or found.get("href")
        for tag, found in tags
        if tag in ("img", "script", "link", "iframe")
    ]
    assert all(source is None or source.startswith("data:image/png;base64,") for source in sources)
    assert "default-src 'none'" in text and not re.search(r"url\(|@import|fetch\(|https?://", text)
    assert sum(tag == "img" for tag, _ in tags) == 1  # the one figure drawn; tables are tables


def test_the_report_has_published_models_and_tables(page):
    tables = Page(page.read_text()).tables
    assert len(tables["published"]) == 1 + 7
    assert len(tables["table-table_2_robust"]) == 1 + 2


def test_a_report_of_nothing_says_what_to_do(tmp_path, capsys):
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
    assert [row[4:] for row in rows] == [["", "25.0", ""], ["25.0", "", "unfinished"]]
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
        ["mine", "24", "75.0", "", "", "50.0"],
        ["mine", "8", "100.0", "0.250", "", ""],
        ["mine, head animate", "24", "87.5", "", "2.000", ""],
    ]


def test_report_and_no_save_exclude_each_other(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        make_report(tmp_path, tmp_path, "--no_save")
    assert stop.value.code == 2 and "not allowed with" in capsys.readouterr().err


CLICK = """<script>
const head = [...document.querySelectorAll("#leaderboard th button")];
const body = document.getElementById("leaderboard").tBodies[0];
const first = () => [...body.rows].map(row => row.cells[0].textContent).join("|");
head[4].click(); const falling = first(); head[4].click(); const rising = first();
head[0].click(); head[0].click(); const names = first();
const input = document.querySelector("input[data-table=leaderboard]");
input.value = "NET1"; input.dispatchEvent(new Event("input"));
const left = [...body.rows].filter(row => !row.hidden).length;
const pictures = document.images[0].naturalWidth > 0;
document.title = JSON.stringify([falling, rising, names, left, pictures]);
</script></body>"""


@pytest.mark.skipif(
    BROWSER is None, reason="no Chromium on this machine (Debian: apt-get install chromium)"
)
def test_tables_sort_and_filter_in_a_browser(page, tmp_path):
    clicked = tmp_path / "clicked.html"
    clicked.write_text(page.read_text().replace("</body>", CLICK))
    done = subprocess.run(
        [
            BROWSER,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--dump-dom",
            clicked.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    (title,) = re.findall(r"<title>(.*?)</title>", done.stdout)
    escaped = NASTY.replace('"', r"\"")
    expected = f'["net9|{escaped}|net10","net10|{escaped}|net9","{escaped}|net9|net10",1,true]'
    assert title.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&") == expected
