"""The HTML page in headless Chromium: mouse, finger, keys, two widths, accessibility.

Needs playwright (requirements-dev.txt) and a Chromium: `make test-page` puts one into .venv.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from norm_tables import write_published, write_summary

import plotting

INSTALLED = Path(os.environ.get("BROWSER_DIR", ROOT / ".venv" / "browser"))
BROWSER = next(
    filter(
        None,
        map(
            shutil.which,
            (str(INSTALLED / "chromium"), "chromium", "chromium-browser", "google-chrome"),
        ),
    ),
    None,
)
playwright = pytest.importorskip(
    "playwright.sync_api", reason="no playwright: pip install -r requirements-dev.txt"
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium; `make test-page` installs it")
MODELS = ["resnet50.a1", "vgg11.tv_in1k", *(f"convnext_{i:02}.made" for i in range(28))]
PHONE = {"viewport": {"width": 400, "height": 850}, "has_touch": True, "is_mobile": True}
PROJECTOR = {"viewport": {"width": 1400, "height": 900}}


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    """A page of 30 models, 12 columns of robust accuracies, norms, and published numbers."""
    folder = tmp_path_factory.mktemp("page")
    random, rows = np.random.default_rng(0), []
    for model in MODELS:
        common = {"model": model, "n": 200, "clean_acc": random.uniform(0.5, 0.9), "head": "none"}
        for attack in ("standard", "reduced: apgd-ce(20)", "reduced: apgd-ce(5)"):
            for eps in (0.25, 0.5, 1, 2):
                robust = max(0.0, common["clean_acc"] - random.uniform(0.3, 0.5) * eps)
                more = {"protocol": attack[:22], "attack": attack, "robust_acc": robust}
                rows.append(common | {"threat": "Linf", "eps": eps / 255} | more)
        tolerance = random.uniform(0.1, 2)
        norms = {"l2_mean": tolerance, "l2_sem": 0.05, "human_alignment_sem": 0.02}
        rows.append(common | norms | {"human_alignment": 0.5 - tolerance / 4})
    write_summary(folder / "results", rows)
    command = ["--results_dir", folder / "results", "--figures_dir", folder / "figures", "--report"]
    command += ["--published", write_published(folder / "published"), "--plots", "tradeoff"]
    assert plotting.main([str(word) for word in command]) == 0
    return folder / "figures" / "report.html"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(params=[PHONE, PROJECTOR], ids=["phone", "projector"])
def page(request, browser, page_file):
    """The page at a width; the console stays empty, and the page as wide as the screen."""
    context = browser.new_context(**request.param)
    page, said = context.new_page(), []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url))
    page.goto(page_file.as_uri())
    page.is_phone = "has_touch" in request.param
    yield page
    assert [line for line in said if not line.startswith("data:")] == [page_file.as_uri()]
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width == request.param["viewport"]["width"]
    context.close()


def names(page, table="leaderboard"):
    cells = page.locator(f"#{table} tbody tr:not([hidden]) th")
    return cells.all_text_contents()


def point_of(page, model, picture="accuracy"):
    """Middle of a model's point on the screen."""
    figure = page.locator(f".picture[data-pictures={picture}]")
    figure.locator("svg").scroll_into_view_if_needed()
    return page.evaluate(
        """([kind, model]) => {
          const data = JSON.parse(document.getElementById("pictures").textContent);
          const at = data[kind][0].points.findIndex(point => point.model === model);
          const svg = document.querySelector(`[data-pictures=${kind}] svg`);
          const order = [...data[kind][0].points.keys()].sort(
            (a, b) => data[kind][0].points[a].own - data[kind][0].points[b].own);
          const box = svg.querySelectorAll("circle")[order.indexOf(at)].getBoundingClientRect();
          return [box.x + box.width / 2, box.y + box.height / 2];
        }""",
        [picture, model],
    )


# ---- the table -----------------------------------------------------------------------------------


def test_rows_are_sorted_by_numbers_and_filtered(page):
    head = page.locator("#leaderboard thead th", has_text="clean (%)")
    head.locator("button").click()
    column = head.evaluate("cell => cell.cellIndex + 1")
    cells = page.locator(f"#leaderboard tbody tr > :nth-child({column})")
    shown = [float(text.split()[0]) for text in cells.all_text_contents()]
    assert shown == sorted(shown, reverse=True) and len(shown) == 30
    assert head.get_attribute("aria-sort") == "descending"
    page.locator(".board[data-table=leaderboard] [type=search]").fill("RESNET")
    assert names(page) == ["resnet50.a1"]
    assert page.locator(".board[data-table=leaderboard] output").text_content() == "1 of 30 rows"


def test_few_columns_are_shown_and_the_others_chosen(page):
    heads = page.locator("#leaderboard thead th:visible")
    before = heads.all_text_contents()
    assert len(before) == 5 and sum("ε" in head for head in before) == 1
    board = page.locator(".board[data-table=leaderboard]")
    board.locator("summary").click()
    assert board.locator(".columns label", has_text="ε").count() == 12
    board.locator(".columns label", has_text="ε = 0.5/255 (%) standard").locator("input").check()
    assert len(heads.all_text_contents()) == 6
    assert page.locator("#leaderboard tbody tr").first.locator("td:visible").count() == 5


def test_header_and_first_column_stay(page):
    page.locator(".board[data-table=leaderboard] summary").click()
    for box in page.locator(".board[data-table=leaderboard] .columns input").all():
        box.check()
    frame = page.locator(".board[data-table=leaderboard] .scroll")
    place = "cell => [cell.getBoundingClientRect().x, cell.getBoundingClientRect().y]"
    model = page.locator("#leaderboard thead th").first
    frame.scroll_into_view_if_needed()
    before = model.evaluate(place)
    frame.evaluate("frame => frame.scrollTo(300, 200)")
    assert frame.evaluate("frame => [frame.scrollLeft, frame.scrollTop]") == [300, 200]
    assert model.evaluate(place) == before
    first = page.locator("#leaderboard tbody th").nth(15)
    assert first.evaluate(place)[0] == before[0]


# ---- pictures ------------------------------------------------------------------------------------


def test_a_point_names_its_model_and_leads_to_its_row(page):
    x, y = point_of(page, "convnext_07.made")
    card = page.locator(".picture[data-pictures=accuracy] .card")
    page.touchscreen.tap(x, y) if page.is_phone else page.mouse.move(x, y)
    text = card.text_content()
    box = card.bounding_box()
    assert abs(box["y"] - y) < 30  # beside the point
    assert text.startswith("convnext_07.made") and re.search(r"accuracy.*: \d+\.\d \[", text)
    card.get_by_text("row").tap() if page.is_phone else page.mouse.click(x, y)
    row = page.locator("tr.at")
    assert row.locator("th").text_content() == "convnext_07.made"
    page.wait_for_function("document.querySelector('tr.at').getBoundingClientRect().top > 0")
    assert row.is_visible()


def test_a_group_is_switched_off(page):
    figure = page.locator(".picture[data-pictures=accuracy]")
    assert figure.locator("circle").count() == 30
    switch = figure.get_by_role("button", name="ConvNeXt (28)")
    switch.click()
    assert figure.locator("circle").count() == 2
    assert switch.get_attribute("aria-pressed") == "false"
    switch.click()
    assert figure.locator("circle").count() == 30


@pytest.mark.parametrize(
    "groups, legend",
    [
        (["robust", "robust", None], ["robust (2)", "Other (1)"]),
        (["robust"] * 3, ["robust (3)"]),
        ([None] * 3, ["Other (3)"]),
    ],
)
def test_robust_networks_of_no_family_are_called_robust(browser, tmp_path, groups, legend):
    rows = [
        {"model": f"Author{i}Robust", "group": group, "robust_acc": 0.25, "clean_acc": 0.5 + i / 9}
        for i, group in enumerate(groups)
    ]
    common = {"threat": "Linf", "eps": 8 / 255, "protocol": "autoattack", "attack": "standard"}
    write_summary(tmp_path, [row | common for row in rows])
    command = ["--results_dir", tmp_path, "--figures_dir", tmp_path / "f", "--published", ""]
    command += ["--plots", "tradeoff", "--report"]
    assert plotting.main([str(word) for word in command]) == 0
    page = browser.new_page(**PROJECTOR)
    page.goto((tmp_path / "f" / "report.html").as_uri())
    assert page.locator(".picture .legend button").all_text_contents() == legend
    page.close()


def test_our_models_are_marked_among_the_published(page):
    figure = page.locator(".picture[data-pictures=tradeoff]")
    assert figure.locator("select").first.locator("option").count() == 2
    assert figure.locator("circle.own").count() == 1  # vgg11 is among both
    assert figure.locator("text.mine").text_content() == "vgg11.tv_in1k"
    figure.locator("select").first.select_option("1")
    assert figure.locator("circle").count() == 30


def test_keys_go_from_point_to_point_and_to_the_row(page):
    picture = page.locator(".picture[data-pictures=accuracy] svg")
    picture.focus()
    card = page.locator(".picture[data-pictures=accuracy] .card strong")
    page.keyboard.press("ArrowRight")
    lowest = card.text_content()
    page.keyboard.press("ArrowRight")
    assert card.text_content() != lowest
    page.keyboard.press("ArrowLeft")
    assert card.text_content() == lowest
    page.keyboard.press("Enter")
    assert page.locator("tr.at th").text_content() == lowest
    page.locator("#leaderboard thead button").first.focus()
    page.keyboard.press("Enter")
    assert names(page) == sorted(MODELS, reverse=True)


def test_axe_finds_nothing(page):
    """Contrast, names of controls, keyboard access: axe-core's rules of WCAG 2.1 AA."""
    script = INSTALLED / "axe.min.js"
    if not script.exists():
        pytest.skip("no axe-core; `make test-page` installs it")
    page.evaluate(script.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run().then(result => result.violations)")
    assert [(one["id"], [node["html"][:120] for node in one["nodes"]]) for one in found] == []
