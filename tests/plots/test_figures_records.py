"""Figures of tiny records whose numbers can be counted by hand: table, files, captions, errors."""

import io
import re
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from norm_tables import make_norms

import plotting
from alignment_security.analysis.results import NothingToDraw, load_results, read_summary
from alignment_security.common.files import safe_file_name, utc_now
from alignment_security.evaluation.options import parse_args
from alignment_security.models.families import lineage
from alignment_security.plots.corruptions import corruption_errors
from alignment_security.plots.examples import (
    adversarial_examples,
    human_alignment_examples,
    model_facts,
)
from alignment_security.plots.records import (
    EVALUATE,
    accuracy_vs_eps,
    protocols_compared,
)
from alignment_security.plots.style import (
    MAX_NAMED,
    STYLE,
    legend_handles,
    model_styles,
    radius_axis,
    titles_into_caption,
)
from alignment_security.records.metrics import ALEXNET_ERRORS
from alignment_security.records.run import Run
from alignment_security.records.summary import merge_records

OF_ATTACKS = ("broken_by", "cost", "adversarial_examples", "fooled_pictures")
EPS = [1 / 255, 2 / 255]
# verdicts per image: clean, robust at 1/255, robust at 2/255 -> 3, 2 and 1 of 4
VERDICTS = {"a.jpg": (1, 1, 1), "b.jpg": (1, 1, 0), "c.jpg": (1, 0, 0), "d.jpg": (0, 0, 0)}
WILSON = {
    3: (0.300642, 0.954413),
    2: (0.150039, 0.849961),
    1: (0.045587, 0.699358),
}  # of 4, z = 1.959964, by hand


def make_ball(
    results,
    model,
    image_set="tiny",
    finish=True,
    examples=(),
    verdicts=VERDICTS,
    record=None,
    **settings,
):
    """A ball record; image b is fooled at 2/255, c and everything after it at 1/255.

    record   more keywords of its Run
    """
    run_settings = {
        "protocol": "autoattack",
        "norm": "Linf",
        "attack": "reduced: apgd-ce(5)",
        "eps": EPS,
        **settings,
    }
    with Run(
        results,
        image_set,
        "Linf",
        model,
        "ball",
        {"model": {"name": model}, "run": run_settings},
        **(record or {}),
    ) as run:
        run.append(
            [
                {
                    "image_id": name,
                    "label": 0,
                    "clean_pred": 0 if v[0] else 7,
                    "clean_correct": v[0],
                    "eps": eps,
                    "robust": v[i],
                    "adv_pred": 0 if v[i] else 7,
                    "l2": 0.5 if v[0] and not v[i] else None,
                }
                for name, v in verdicts.items()
                for i, eps in enumerate(run_settings["eps"], start=1)
            ]
        )
        if finish:
            run.finish(list(verdicts), run_settings["eps"])
    for name in examples:
        keep_example(results, model, name)


def keep_example(results, model, name, l2=0.5, image_set="tiny"):
    path = (
        Path(results)
        / "examples"
        / image_set
        / "Linf"
        / safe_file_name(model)
        / f"{safe_file_name(name)}.npz"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    delta = np.full((8, 8, 3), 1 / 255, np.float16)
    np.savez_compressed(
        path,
        image=np.zeros((8, 8, 3), np.uint8),
        delta=delta,
        label="tabby",
        pred="tiger cat",
        eps=EPS[0],
        l2=l2,
        linf=EPS[0],
    )
    return path


def draw(results, figures, *options):
    return plotting.main(["--results_dir", str(results), "--figures_dir", str(figures), *options])


def test_accuracies_drawn_are_those_counted_by_hand(tmp_path):
    make_ball(tmp_path, "resnet18")
    assert draw(tmp_path, tmp_path / "figures", "--plots", "accuracy_vs_eps") == 0
    table = pd.read_csv(tmp_path / "figures" / "accuracy_vs_eps.csv", float_precision="round_trip")
    assert table["eps"].tolist() == [0, *EPS]
    assert table["correct"].tolist() == [3, 2, 1]
    assert table["n"].tolist() == [4, 4, 4]
    assert table["accuracy"].tolist() == [0.75, 0.5, 0.25]
    np.testing.assert_allclose(table[["low", "high"]], [WILSON[k] for k in (3, 2, 1)], atol=5e-7)
    assert set(table["family"]) == {"ResNet"} and set(table["panel"]) == {1}


def test_the_line_drawn_is_the_table(tmp_path):
    make_ball(tmp_path, "resnet18")
    ((_, figure, table, _),) = accuracy_vs_eps(load_results(tmp_path))
    line = figure.axes[0].get_lines()[0]
    np.testing.assert_array_equal(line.get_xdata().astype(float), table["eps"])
    np.testing.assert_allclose(line.get_ydata().astype(float), [75, 50, 25])
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["2", "1", "0"]
    plt.close(figure)


def test_four_files_with_embedded_fonts_the_same_every_time(tmp_path, capsys):
    make_ball(tmp_path, "resnet18", examples=["b.jpg"])
    assert (
        draw(
            tmp_path,
            tmp_path / "one",
            "--save_to_paper",
            str(tmp_path / "paper"),
            "--specifier",
            "x",
        )
        == 0
    )
    printed = [Path(line) for line in capsys.readouterr().out.split()]
    names = {"accuracy_vs_eps_x", *(f"{name}_tiny_Linf_x" for name in OF_ATTACKS)}
    assert {path.name for path in printed if path.parent.name == "one"} == {
        f"{name}.{end}" for name in names for end in ("pdf", "png", "csv", "txt")
    }
    assert {path.name for path in printed if path.parent.name == "paper"} == {
        f"{name}.pdf" for name in names
    }
    draw(tmp_path, tmp_path / "two", "--specifier", "x")
    for path in printed:
        content = path.read_bytes()
        assert (b"/FontFile2" in content and b"/Type3" not in content) == (path.suffix == ".pdf")
        assert content == (tmp_path / "two" / path.name).read_bytes()


def test_a_table_is_written_as_latex_csv_and_caption(tmp_path, monkeypatch):
    table = pd.DataFrame({"model_name": ["net_1", "50%"], "R2": [0.123456789, np.nan], "n": [3, 4]})
    monkeypatch.setitem(
        plotting.FIGURES, "a_table", (lambda results: [("a_table", None, table, "two models")], "")
    )
    assert (
        draw(
            tmp_path,
            tmp_path / "figures",
            "--plots",
            "a_table",
            "--save_to_paper",
            str(tmp_path / "paper"),
        )
        == 0
    )
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        "a_table.tex",
        "a_table.csv",
        "a_table.txt",
    }
    lines = (tmp_path / "paper" / "a_table.tex").read_text().splitlines()
    assert [line for line in lines if "&" in line] == [
        r"model\_name & R2 & n \\",
        r"net\_1 & 0.123 & 3 \\",
        r"50\% &  & 4 \\",
    ]
    assert (
        pd.read_csv(tmp_path / "figures" / "a_table.csv", float_precision="round_trip")["R2"][0]
        == 0.123456789
    )


def test_nothing_to_draw_names_what_is_missing(tmp_path, capsys, monkeypatch):
    def function(results):
        raise NothingToDraw("2 models, 10 are needed")

    monkeypatch.setitem(plotting.FIGURES, "picky", (function, "`more models in {}`"))
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    assert draw("here", tmp_path / "figures", "--plots", "picky") == 2
    assert (
        capsys.readouterr().err
        == "nothing to draw for picky: 2 models, 10 are needed; `more models in here`\n"
    )


def test_no_save_writes_nothing(tmp_path):
    make_ball(tmp_path, "resnet18")
    assert draw(tmp_path, tmp_path / "figures", "--no_save") == 0
    assert not (tmp_path / "figures").exists()


def test_image_sets_and_budgets_are_never_pooled(tmp_path):
    make_ball(tmp_path, "resnet18")
    make_ball(tmp_path, "vgg11", attack="AutoAttack (standard)")
    make_ball(tmp_path, "vgg13", seed=1)
    make_ball(tmp_path, "resnet18", image_set="other")
    ((_, figure, table, _),) = accuracy_vs_eps(load_results(tmp_path))
    assert table.groupby(["image_set", "budget", "model"])["panel"].nunique().eq(1).all()
    assert table["panel"].nunique() == 4
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert len(set(titles)) == 4 and all("(n = 4)" in title for title in titles)
    assert any("AutoAttack (standard)" in title for title in titles) and any(
        "seed 1" in title for title in titles
    )
    plt.close(figure)


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"model": 5}', "\x00"])
def test_an_unreadable_run_file_is_named_and_the_others_are_drawn(tmp_path, capsys, damage):
    make_ball(tmp_path, "resnet50")
    make_ball(tmp_path, "vgg11")
    (odd,) = tmp_path.glob("records/*/*/vgg11.json")
    odd.write_text(damage)
    assert draw(tmp_path, tmp_path / "figures", "--plots", "accuracy_vs_eps") == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"left out: {odd}")
    table = pd.read_csv(tmp_path / "figures/accuracy_vs_eps.csv")
    assert set(table["model"]) == {"resnet50"}


def test_an_unfinished_record_is_named_and_not_drawn(tmp_path, capsys):
    make_ball(tmp_path, "resnet18")
    make_ball(tmp_path, "vgg11", finish=False)
    assert draw(tmp_path, tmp_path / "figures", "--plots", "accuracy_vs_eps") == 0
    assert "vgg11.csv (running)" in capsys.readouterr().err
    caption = (tmp_path / "figures" / "accuracy_vs_eps.txt").read_text()
    assert (
        "Missing (running): vgg11." in caption
        and "n = 4" in caption
        and "budget reduced: apgd-ce(5)" in caption
    )
    assert utc_now()[:4] in caption and "protocol autoattack" in caption
    assert set(pd.read_csv(tmp_path / "figures" / "accuracy_vs_eps.csv")["model"]) == {"resnet18"}


@pytest.mark.parametrize("first", ["standard", "reduced: apgd-ce(5)"])
def test_a_caption_names_the_record_that_its_panel_lacks(tmp_path, capsys, first):
    """Whichever record of a model is read last: one of another budget says nothing of a panel's."""
    second = {"standard": "reduced: apgd-ce(5)"}.get(first, "standard")
    with_suffix = {"beside": {"attack": second}}
    make_ball(tmp_path, "lin", attack=first, record={})
    make_ball(tmp_path, "lin", attack=second, record=with_suffix, finish=False)
    make_ball(tmp_path, "vgg11", attack=first, record={}, finish=False)
    make_ball(tmp_path, "vgg13", attack=second, record=with_suffix, finish=False)
    make_ball(tmp_path, "vgg16", attack=first, record={}, image_set="other")
    assert draw(tmp_path, tmp_path / "a", "--image_set", "tiny", "--plots", "accuracy_vs_eps") == 0
    caption = (tmp_path / "a" / "accuracy_vs_eps.txt").read_text()
    missing = caption.partition("Missing")[2]
    assert missing.startswith(
        " (running): vgg11. Missing (other settings only): vgg13. Unfinished, in no panel: lin "
        f"with {second}, n = None (running); vgg13 with {second}, n = None (running)."
    )
    make_ball(tmp_path, "vgg19", attack=second, record=with_suffix)
    assert draw(tmp_path, tmp_path / "b", "--image_set", "tiny", "--plots", "accuracy_vs_eps") == 0
    lines = (tmp_path / "b" / "accuracy_vs_eps.txt").read_text().splitlines()
    (of_first,) = (line for line in lines if f"budget {first}," in line)
    (of_second,) = (line for line in lines if f"budget {second}," in line)
    assert of_first.endswith(
        "Missing (running): vgg11. Missing (other settings only): vgg13, vgg19."
    )
    assert of_second.endswith("(running): lin, vgg13. Missing (other settings only): vgg11.")
    merge_records(tmp_path, log=print)
    assert draw(tmp_path, tmp_path / "c", "--report", "--plots", "accuracy_vs_eps") == 0
    page = (tmp_path / "c" / "report.html").read_text()
    assert page.count("Not in this table: ") == 3 and "vgg11.csv: unfinished (running)" in page


def test_panels_of_one_norm_and_image_set_have_one_axis_of_eps(tmp_path):
    make_ball(tmp_path, "resnet18")
    for attack, factor in (("reduced: apgd-ce(6)", 4), ("reduced: apgd-ce(7)", 0.25)):
        beside = {"beside": {"attack": attack}}
        eps = [factor * value for value in EPS]
        make_ball(tmp_path, "resnet18", attack=attack, eps=eps, record=beside)
    make_ball(tmp_path, "resnet18", image_set="other")
    ((_, figure, _, _),) = accuracy_vs_eps(load_results(tmp_path))
    others, *of_tiny = (255 * ax.get_xlim()[1] / 1.05 for ax in figure.axes)
    assert others == pytest.approx(2) and of_tiny == pytest.approx([8, 8, 8])
    labels = [[text.get_text() for text in ax.get_xticklabels()] for ax in figure.axes]
    assert ["0.5"] in labels and ["8", "4", "0"] in labels


def test_examples_say_why_a_model_has_none(tmp_path):
    make_ball(tmp_path, "resnet18", examples=["b.jpg", "c.jpg"])
    make_ball(tmp_path, "vgg11", verdicts=VERDICTS | {"b.jpg": (1, 1, 1), "c.jpg": (0, 0, 0)})
    make_ball(tmp_path, "vgg13")  # was run without --examples
    ((name, figure, table, caption),) = adversarial_examples(load_results(tmp_path))
    assert name == "adversarial_examples_tiny_Linf"
    verdicts = table.set_index(["model", "image_id"])["verdict"]
    assert verdicts["resnet18"].tolist() == ["tabby → tiger cat"] * 2
    assert verdicts["vgg11"].tolist() == ["robust at ε = 2/255", "misclassified without attack"]
    assert len(figure.axes) == 2 * (1 + 2)
    assert "vgg13" not in verdicts and "see --models): vgg13." in caption
    assert table["factor"].dropna().tolist() == [130, 130]  # 0.5 * 255 = 127.5, to two digits
    texts = [text.get_text() for ax in figure.axes for text in ax.texts]
    assert (
        "tabby → tiger cat\nε = 1/255, ×130" in texts and "misclassified\nwithout attack" in texts
    )
    plt.close(figure)


def test_an_example_that_the_record_denies_is_not_shown(tmp_path):
    make_ball(tmp_path, "resnet18", examples=["b.jpg"])
    keep_example(tmp_path, "resnet18", "c.jpg", l2=0.7)  # the record says 0.5
    keep_example(tmp_path, "resnet18", "a.jpg")  # the record says robust
    ((_, figure, table, _),) = adversarial_examples(load_results(tmp_path))
    assert table["image_id"].tolist() == ["b.jpg"]
    plt.close(figure)


def test_models_beyond_the_room_are_named(tmp_path):
    models = [f"vgg{i}" for i in range(11, 19)]
    for model in models:
        make_ball(tmp_path, model, examples=["c.jpg"] if model == "vgg18" else ["b.jpg", "c.jpg"])
    ((_, figure, table, caption),) = adversarial_examples(load_results(tmp_path))
    assert set(table["model"]) == set(models[:6]) and "--models): vgg17, vgg18." in caption
    ((_, chosen, table, _),) = adversarial_examples(load_results(tmp_path, ["vgg18", "vgg11"]))
    assert table["model"].tolist()[:2] == ["vgg18", "vgg11"]  # in the order asked for
    ((_, every, table, caption),) = adversarial_examples(load_results(tmp_path, models))
    assert set(table["model"]) == set(models) and "no room" not in caption  # no cap
    plt.close("all")


def test_photographs_are_those_asked_for(tmp_path, capsys):
    make_ball(tmp_path, "vgg11", examples=["b.jpg", "c.jpg"])
    results = load_results(tmp_path, images=["c.jpg"])
    ((_, _, table, _),) = adversarial_examples(results)
    assert table["image_id"].tolist() == ["c.jpg"]
    plt.close("all")
    options = "--plots", "adversarial_examples", "--images", "a.jpg"
    assert draw(tmp_path, tmp_path / "figures", *options) == 2
    error = capsys.readouterr().err
    assert "--images a.jpg: no example of it is kept" in error and "--examples a.jpg" in error
    assert error.count("\n") == 1 and not (tmp_path / "figures").exists()


def test_many_models_are_drawn_by_family(tmp_path):
    models = {f"vgg_{i}" for i in range(MAX_NAMED)} | {"resnet18"}
    labels = [line.get_label() for line in legend_handles(model_styles(models))]
    assert labels == ["ResNet", "Classic CNN"]


@pytest.mark.parametrize(
    "model, name",
    [
        ("tf_efficientnet_lite0", "EfficientNet"),
        ("AT_efficientnet-b0", "EfficientNet"),
        ("yudixie_resnet18_random_0", "ResNet"),
        ("alexnet_training_seed_01", "alexnet"),
        ("AlexNet_SIN", "alexnet"),
        ("ReAlnet07_cornet", "realnet"),
        ("convnext_large_mlp:clip_laion2b", "ConvNeXt"),
        ("0.5x_resnet-18", "ResNet"),
        ("123", "123"),
    ],
)
def test_models_that_resemble_each_other_are_resampled_together(model, name):
    assert lineage(model) == name


def test_models_of_a_family_share_a_colour_and_nothing_else():
    others = {f"vit_{k}" for k in range(5)}  # few models have a colour each
    styles = model_styles({"resnet18", "resnet50", "vgg11", *others})
    assert styles["resnet18"]["color"] == styles["resnet50"]["color"] != styles["vgg11"]["color"]
    assert styles["resnet18"]["marker"] != styles["resnet50"]["marker"]


def test_a_folder_that_is_not_there_and_one_without_records_are_one_line(tmp_path, capsys):
    """Not a line for each figure that lacks them; as `results` of a fresh clone, and with --report.

    What figures do not read counts as nothing."""
    clone = tmp_path / "clone"
    (clone / "sample" / "records").mkdir(parents=True)
    (clone / "README.md").touch()
    (tmp_path / "empty").mkdir()
    for folder, words in (
        (tmp_path / "nowhere", "no such folder"),
        (tmp_path / "empty", "has no records"),
        (clone, "has no records"),
    ):
        for more in ([], ["--report"]):
            arguments = ["--results_dir", str(folder), "--figures_dir", str(tmp_path / "figures")]
            assert plotting.main([*arguments, "--published", "", *more]) == 2
            error = capsys.readouterr().err
            assert error.count("\n") == 1 and words in error and "results/sample" in error
    assert not (tmp_path / "figures").exists()


@pytest.mark.parametrize(
    "prepare", [lambda path: None, lambda path: make_ball(path, "resnet18", finish=False)]
)
def test_no_results_yet_is_one_line_with_the_command(tmp_path, capsys, prepare):
    prepare(tmp_path)
    assert draw(tmp_path, tmp_path / "figures") == 2
    error = capsys.readouterr().err
    assert (
        len(re.findall("nothing to draw( for accuracy_vs_eps:|, and nothing)", error)) == 1
        and "python evaluate_robustness.py --model_name" in error
    )
    assert not (tmp_path / "figures").exists()


def test_the_command_that_errors_propose_is_one_that_parses():
    args = parse_args(EVALUATE.format("here").split()[2:], "")
    assert (args.results_dir, args.threat, args.eps) == ("here", "Linf", [1 / 255])


@pytest.mark.parametrize("image_set", ["sample", "photos"])
def test_a_hint_names_the_image_set_of_the_records(tmp_path, capsys, image_set):
    """Of every figure that an evaluation makes; other commands keep their options."""
    make_norms(tmp_path, "resnet18", [0.1, 0.2], image_set=image_set)
    (tmp_path / "figures").mkdir()
    assert draw(tmp_path, tmp_path / "figures", "--plots", *plotting.FIGURES) == 0
    commands = re.findall(r"`(python [^`]*)`", capsys.readouterr().err)
    evaluations = [one for one in commands if "evaluate_robustness" in one]
    named = f"--results_dir {tmp_path} --dataset photos --data_dir DIR"
    assert len(evaluations) > 5 and len(commands) > len(evaluations)
    for one in commands:
        ours = one in evaluations and "imagenet-c" not in one and image_set == "photos"
        assert (named in one) == ours and one.count("--dataset") <= 1


@pytest.mark.parametrize("more", [["--no_save"], []])
def test_windows_that_cannot_be_opened_are_one_line(tmp_path, capsys, monkeypatch, more):
    make_norms(tmp_path, "resnet18", [0.1, 0.2])
    monkeypatch.setattr(plt, "get_backend", lambda: "Agg")
    assert draw(tmp_path, tmp_path / "figures", "--plots", "cost", "--show_plots", *more) == 2
    captured = capsys.readouterr()
    assert "--show_plots: matplotlib can open no window here (its backend is Agg" in captured.err
    assert captured.err.count("\n") == 1 and not captured.out
    monkeypatch.setattr(plt, "get_backend", lambda: "TkAgg")
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.get_fignums()))
    assert draw(tmp_path, tmp_path / "figures", "--plots", "cost", "--show_plots", *more) == 0
    assert len(shown) == 1 and shown[0]


def test_a_figure_without_data_says_so_and_the_others_are_drawn(tmp_path, capsys):
    make_ball(tmp_path, "resnet18")
    assert draw(tmp_path, tmp_path / "figures") == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("nothing to draw for ") and "adversarial_examples, " in line
    assert re.search(r": `--plots \w+` says what that one needs$", line)
    assert draw(tmp_path, tmp_path / "figures", "--plots", "adversarial_examples") == 2
    assert "nothing to draw for adversarial_examples: " in capsys.readouterr().err


def test_bad_requests(tmp_path, capsys):
    make_ball(tmp_path, "resnet18", examples=["b.jpg"])
    with pytest.raises(SystemExit) as stop:
        draw(tmp_path, tmp_path / "figures", "--plots", "pie_chart")
    error = capsys.readouterr().err
    assert stop.value.code == 2 and all(
        name in error for name in ["pie_chart", *plotting.FIGURES, "all"]
    )
    assert draw(tmp_path, tmp_path / "figures", "--models", "resnet81") == 2
    assert "no record of resnet81; --models takes resnet18" in capsys.readouterr().err
    keep_example(tmp_path, "resnet18", "b.jpg").write_bytes(b"PK torn")
    assert draw(tmp_path, tmp_path / "figures", "--plots", "adversarial_examples") == 2
    assert "b.jpg.npz: damaged example" in capsys.readouterr().err


def test_a_record_that_was_changed_is_refused(tmp_path, capsys):
    make_ball(tmp_path, "resnet18")
    path = tmp_path / "records" / "tiny" / "Linf" / "resnet18.csv"
    path.write_text(path.read_text().replace(",7,", ",8,"))
    assert draw(tmp_path, tmp_path / "figures") == 2
    assert "resnet18.csv: not the file that the run finished with" in capsys.readouterr().err


def test_figures_need_no_torch(tmp_path):
    make_ball(tmp_path, "resnet18", examples=["b.jpg"])
    code = (
        "import sys, plotting; code = plotting.main(sys.argv[1:]); "
        "loaded = {'torch', 'torchvision', 'timm'} & set(sys.modules); assert not loaded, loaded; "
        "sys.exit(code)"
    )
    options = ["--results_dir", str(tmp_path), "--figures_dir", str(tmp_path / "figures")]
    done = subprocess.run(
        [sys.executable, "-c", code, *options],
        cwd=Path(plotting.__file__).parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == (1 + len(OF_ATTACKS)) * 4


# ---- corruptions, protocols, maps ----------------------------------------------------------------


def make_record(results, threat, model, rows, kind, image_set="tiny", **settings):
    """A finished record of these rows (`image_id` is added) and the path of its example folder."""
    run_settings = {"protocol": threat, "attack": "none", **settings}
    rows = [
        {"image_id": f"{i}.jpg", "label": 0, "clean_pred": 0, "clean_correct": 1} | row
        for i, row in enumerate(rows)
    ]
    with Run(
        results, image_set, threat, model, kind, {"model": {"name": model}, "run": run_settings}
    ) as run:
        run.append(rows)
        run.finish([row["image_id"] for row in rows])
    return Path(results) / "examples" / image_set / threat / safe_file_name(model)


def corrupted(results, kind, severity, wrong, model="resnet18", image_set="imagenet-c", **settings):
    """A record of 4 images, the first `wrong` of them misclassified."""
    rows = [{"clean_correct": int(i >= wrong)} for i in range(4)]
    threat = f"corruptions-{kind}-{severity}"
    make_record(results, threat, model, rows, "clean", image_set, **settings)


def drawn_corruptions(results):
    """{name: (table, caption)}"""
    drawn = {name: rest for name, _, *rest in corruption_errors(load_results(results))}
    plt.close("all")
    return drawn


def test_corruption_errors_and_mce_by_hand(tmp_path):
    """fog: 1 of 4 wrong at every severity; noise: 2 of 4; speckle, not of the 15 types: 3 of 4.

    Two of 15 types have no mCE; over them, mean(0.25 / 0.819324, 0.5 / 0.886428) of AlexNet's.
    """
    for kind, wrong in (("fog", 1), ("gaussian_noise", 2), ("speckle_noise", 3)):
        for severity in range(1, 6):
            corrupted(tmp_path, kind, severity, wrong)
    corrupted(tmp_path, "fog", 3, 2, image_set="sample")
    drawn = drawn_corruptions(tmp_path)
    table, caption = drawn["corruption_errors_imagenet-c"]
    assert len(table) == 15 and set(table["error"]) == {0.25, 0.5, 0.75}
    relative = (0.25 / 0.819324 + 0.5 / 0.886428) / 2
    np.testing.assert_allclose(
        table[["mean_error", "relative_error"]].drop_duplicates(), [[0.5, relative]]
    )
    assert table["mce"].isna().all()
    assert "no mCE (13 of ImageNet-C's 15 types are missing), 43.5 % of AlexNet's" in caption
    assert "3 types and 15 cells" in caption
    table, caption = drawn["corruption_errors_sample"]
    assert table["error"].tolist() == [0.5] and table["mce"].isna().all()
    assert "no mCE (AlexNet's errors are of other images: imagenet-c's)" in caption


def test_the_mce_of_15_types_stands_beside_a_sixteenth(tmp_path):
    """Every type at an error of 0.5: mCE = mean(0.5 / AlexNet's error), whatever speckle has."""
    for kind in [*ALEXNET_ERRORS, "speckle_noise"]:
        for severity in range(1, 6):
            corrupted(tmp_path, kind, severity, 4 if kind == "speckle_noise" else 2)
    ((table, caption),) = drawn_corruptions(tmp_path).values()
    expected = sum(0.5 / error for error in ALEXNET_ERRORS.values()) / 15
    np.testing.assert_allclose(table["mce"], expected)
    assert f"mCE {100 * expected:.1f} over ImageNet-C's 15 types" in caption


def test_a_mean_over_one_severity_is_not_beside_one_over_five(tmp_path):
    """Nor are runs of different images: `a` has fog at five severities, `b` at one."""
    for severity in range(1, 6):
        corrupted(tmp_path, "fog", severity, 1, "a")
    corrupted(tmp_path, "fog", 3, 3, "b")
    corrupted(tmp_path, "snow", 3, 3, "a")
    corrupted(tmp_path, "fog", 3, 2, "c", slice=[0, 4])
    drawn = drawn_corruptions(tmp_path)
    tables = [table.groupby("model")["mean_error"].first().to_dict() for table, _ in drawn.values()]
    assert sorted(drawn) == [f"corruption_errors_imagenet-c_{i}" for i in (1, 2, 3)]
    assert sorted(map(str, tables)) == sorted(
        map(str, [{"a": 0.25}, {"a": 0.75, "b": 0.75}, {"c": 0.5}])
    )
    captions = " ".join(caption for _, caption in drawn.values())
    assert "mean over severities 1, 2, 3, 4, 5;" in captions and "severity 3;" in captions


def test_both_protocols_side_by_side(tmp_path):
    norms = {"L2-feng2025": (1.0, 2.0), "L2-fmn": (0.1, 0.3)}
    for threat, (first, second) in norms.items():
        make_record(
            tmp_path,
            threat,
            "resnet18",
            [
                {"success": 1, "l2": first, "human_alignment": 0.5},
                {"success": 1, "l2": second, "human_alignment": 0.1},
                {"clean_correct": 0},
            ],
            "minimum_norm",
        )
    make_record(
        tmp_path, "L2-fmn", "vgg11", [{"success": 1, "l2": 0.2}], "minimum_norm", "other"
    )  # one protocol alone
    ((name, figure, table, caption),) = protocols_compared(load_results(tmp_path))
    assert name == "protocols_compared_tiny_none" and "not minimal" in caption
    table = table.set_index("threat")
    assert table["l2"].to_dict() == {"L2-feng2025": 1.5, "L2-fmn": 0.2} and set(table["n"]) == {2}
    np.testing.assert_allclose(
        table.loc["L2-fmn", ["l2_sem", "alignment", "alignment_sem"]].astype(float), [0.1, 0.3, 0.2]
    )
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["feng2025", "fmn"]
    plt.close(figure)


@pytest.mark.parametrize(
    "norms, shown",
    [
        ((1, 41), "PT 21 ± 20 (n = 2)"),
        ((1, 401), "PT 201 ± 200 (n = 2)"),
        ((0.5, 0.51), "PT 0.505 ± 0.005 (n = 2)"),
        ((0.5,), "PT 0.5 (n = 1)"),
        ((), "no norm found (n = 0)"),
    ],
)
def test_the_error_beside_a_model_is_one_digit_without_an_exponent(tmp_path, norms, shown):
    rows = [{"success": 1, "l2": norm} for norm in norms]
    rows = rows or [{"clean_correct": 0, "success": np.nan}]
    make_record(tmp_path, "L2-crossing", "resnet18", rows, "minimum_norm")
    assert shown in model_facts(load_results(tmp_path).runs[0])


@pytest.mark.parametrize("scale", [0.5, 254.0, 65535.0])
def test_maps_of_people_and_perturbations(tmp_path, scale):
    """Tolerance and alignment next to the model are of the record, not of the examples kept.

    A map is drawn alike at any scale, and its source is told where the first record has no maps.
    """
    plain = [{"success": 1, "l2": 0.5}, {"success": 1, "l2": 0.5}]
    make_record(tmp_path, "L2-crossing", "alexnet", plain, "minimum_norm")
    folder = make_record(
        tmp_path,
        "L2-crossing",
        "resnet18",
        [
            {"success": 1, "l2": 0.5, "human_alignment": 0.25},
            {"success": 1, "l2": 1.5, "human_alignment": 0.75},
        ],
        "minimum_norm",
        human_map="hand-drawn, sha256 0",
    )
    folder.mkdir(parents=True)
    delta, people = np.zeros((8, 8, 3), np.float16), np.zeros((8, 8), np.float32)
    delta[2, 3, 1], people[4:, :], people[2:4, :] = -0.5, scale, scale / 2
    np.savez_compressed(
        folder / "0.jpg.npz",
        image=np.zeros((8, 8, 3), np.uint8),
        delta=delta,
        human_map=people,
        label="tabby",
        human_alignment=0.25,
        pred="tiger cat",
        eps=np.nan,
        l2=0.5,
        linf=0.5,
    )
    ((name, figure, table, caption),) = human_alignment_examples(load_results(tmp_path))
    assert (
        name == "human_alignment_examples_tiny_L2-crossing"
        and "source: hand-drawn, sha256 0" in caption
    )
    assert table[["l2", "human_alignment"]].to_numpy().tolist() == [[0.5, 0.25]]
    texts = [text.get_text() for text in figure.texts]
    assert (
        "where people look\n(hand-drawn)" in texts
        and "resnet18\nPT 1 ± 0.5, r 0.50 (n = 2)" in texts
    )
    levels = np.asarray(figure.axes[1].images[0].get_array(), int).sum(axis=2)[:, 0]
    assert levels[0] < 20 < 300 < levels[3] < levels[4] - 200  # black, between, bright
    shown = figure.axes[2].images[0].get_array()
    assert np.argwhere(np.asarray(shown, int).sum(axis=2) > 100).tolist() == [
        [2, 3]
    ]  # the one pixel that was changed
    assert "r = 0.25" in figure.axes[2].texts[0].get_text()
    plt.close(figure)


def test_a_summary_that_is_older_than_the_records_is_said(tmp_path, tiny_record, capsys):
    tiny_record([{"image_id": "a", "label": 1, "clean_pred": 1, "clean_correct": 1}], model="a")
    options = ["--plots", "accuracy_vs_eps"]
    draw(tmp_path, tmp_path / "figures", *options)
    assert "is older than" not in capsys.readouterr().err  # there is none
    merge_records(tmp_path)
    draw(tmp_path, tmp_path / "figures", *options)
    assert "is older than" not in capsys.readouterr().err
    tiny_record([{"image_id": "a", "label": 1, "clean_pred": 1, "clean_correct": 1}], model="b")
    draw(tmp_path, tmp_path / "figures", *options)
    assert "is older than 1 record(s), e.g. " in capsys.readouterr().err


@pytest.mark.parametrize("name", ["prune_$5_of_$9", "$x_{$", "a$b$c", "\\alpha_$", "$L_2$"])
def test_a_name_with_dollar_signs_is_no_mathematics(name):
    with plt.rc_context(STYLE):
        figure, ax = plt.subplots(layout="constrained")
        ax.plot([1, 2], [0.1, 3], label=name)
        ax.set(title=name, yscale="log")
        ax.set_xticks([1], [name])
        ax.legend()
        figure.savefig(io.BytesIO(), format="png")
        assert not ax.title.get_parse_math()
        plt.close(figure)


# ---- few models, filters, titles -----------------------------------------------------------------


def test_few_models_of_a_family_have_a_colour_each():
    """Three EfficientNets were three greens; many models keep the colours of their families."""
    few = model_styles({f"efficientnet_b{k}" for k in range(6)})
    assert len({style["color"] for style in few.values()}) == 6
    assert len({style["marker"] for style in few.values()}) == 6
    many = model_styles({f"efficientnet_b{k}" for k in range(7)})
    assert len({style["color"] for style in many.values()}) == 1


def test_a_model_looks_alike_in_figures_of_other_models():
    """Three models in all: figures of two of them. Of many, a figure of few has its own colours."""
    every = {"a", "b", "c"}
    both, last = model_styles({"b", "c"}, every), model_styles({"c"}, every)
    assert both["c"] == last["c"] == model_styles(every)["c"] and both["b"] != both["c"]
    many = {f"efficientnet_b{k}" for k in range(9)}
    few = model_styles({"efficientnet_b7", "efficientnet_b8"}, many)
    assert len({style["color"] for style in few.values()}) == 2


def test_drawings_of_earlier_results_are_named(tmp_path, tiny_record, capsys):
    row = {"image_id": "a", "label": 1, "clean_pred": 1, "clean_correct": 1}
    ball = row | {"eps": 0.1, "robust": 1, "adv_pred": 1, "forwards": 1, "backwards": 1}
    tiny_record([ball], eps=[0.1], kind="ball", threat="Linf")
    figures = tmp_path / "figures"
    figures.mkdir()
    for name in ("cost_gone.csv", "cost_gone.txt", "cost_gone.pdf", "notes.txt"):
        (figures / name).write_text("of mine")
    assert draw(tmp_path, figures, "--plots", "cost") == 0
    assert "cost_gone" not in capsys.readouterr().err
    assert draw(tmp_path, figures) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "cost_gone" in line]
    assert line.endswith(": cost_gone") and (figures / "cost_gone.pdf").read_text() == "of mine"


def test_image_sets_and_threats_can_be_left_out(tmp_path, tiny_record, capsys):
    row = {"image_id": "a", "label": 1, "clean_pred": 1, "clean_correct": 1}
    for threat in ("clean", "corruptions-fog-3"):
        tiny_record([row], kind="clean", threat=threat)
    merge_records(tmp_path)
    found = load_results(tmp_path, image_sets=["sample"], threats=["clean"])
    assert [(run["image_set"], run["threat"]) for run in found.runs] == [("sample", "clean")]
    assert read_summary(found)[["image_set", "threat"]].to_numpy().tolist() == [["sample", "clean"]]
    assert read_summary(load_results(tmp_path, models=["net"]))["threat"].nunique() == 2
    assert draw(tmp_path, tmp_path / "figures", "--image_set", "other") == 2
    assert "--image_set takes sample" in capsys.readouterr().err
    assert draw(tmp_path, tmp_path / "figures", "--threat", "Linf") == 2
    assert "--threat takes clean, corruptions-fog-3" in capsys.readouterr().err


def test_titles_move_to_the_caption():
    figure, axes = plt.subplots(1, 3)
    axes[0].set_title("sample, L2\nbudget", loc="left")
    axes[1].set_title("mine, L2", loc="left")
    figure.suptitle("a heading")
    assert titles_into_caption(figure) == "a heading. (a) sample, L2, budget. (b) mine, L2. "
    assert [ax.get_title(loc="left") for ax in axes] == ["(a)", "(b)", ""]
    assert figure.get_suptitle() == ""
    plt.close(figure)


def test_a_matplotlibrc_changes_no_figure(tmp_path):
    """One in the current folder counts, too, and many people have one with LaTeX."""
    files = []
    for name, settings in {
        "none": {},
        "latex": {"text.usetex": True},
        "sizes": {"figure.autolayout": True, "savefig.bbox": "tight", "axes.titlesize": 30},
        "numbers": {"axes.formatter.use_locale": True, "axes.grid": True, "lines.marker": "x"},
    }.items():
        with plt.rc_context(settings):
            words = ["--results_dir", "results/sample", "--plots", "accuracy_vs_eps"]
            assert plotting.main([*words, "--figures_dir", str(tmp_path / name)]) == 0
        files.append((tmp_path / name / "accuracy_vs_eps.pdf").read_bytes())
    assert len(set(files)) == 1


@pytest.mark.parametrize(
    "eps, ticks",
    [
        ([0, 0.1, 1], [0, 1]),
        ([0.11, 1], [0.11, 1]),
        ([0, 0.5, 0.95, 1], [0, 0.5, 1]),
        ([0, 0.05], [0.05]),
    ],
)
def test_the_clean_accuracy_keeps_its_tick(eps, ticks):
    """But for the only radius, close to it on an axis that reaches further."""
    _, ax = plt.subplots()
    radius_axis(ax, eps, "L2", end=1)
    assert sorted(ax.get_xticks()) == ticks
