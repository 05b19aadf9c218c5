"""Learning curves from logs that can be counted by hand."""

from __future__ import annotations

import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from readable import unreadable

import plotting
from alignment_security.analysis.results import load_results
from alignment_security.common.files import UserError
from alignment_security.plots.style import STYLE
from alignment_security.plots.training import learning_curves, training_styles
from alignment_security.trainer.run import LOG_COLUMNS

LOG = f"""{",".join(LOG_COLUMNS)}
1,0.5,0.1,3.5,3.0,5.0,0.25,1.0,,,
2,1.0,0.1,2.5,2.0,5.0,0.5,1.0,0.125,0.0625,-0.5
"""


EVALUATION = {
    "norm": "Linf",
    "eps": 4 / 255,
    "attack": "reduced: apgd-ce(20)",
    "image_set": "clickme",
    "images": 100,
}


def make_training(results, name="net", log=LOG, status="checkpointed", **recipe):
    folder = results / "training" / name
    folder.mkdir(parents=True)
    recipe = {
        "objective": "harmonizer",
        "form": "equation",
        "lambda_1": 0.1,
        "lambda_2": 0.0001,
        "norm": None,
        "eps": None,
        "epochs": 3,
        **recipe,
    }
    (folder / "run.json").write_text(
        json.dumps(
            {
                "name": name,
                "settings": {"run": recipe},
                "status": status,
                "step": 2,
                "sessions": [{"started": "2026-01-02T03:04:05+00:00"}],
            }
        )
    )
    (folder / "log.csv").write_text(log)
    return folder


def test_the_lines_drawn_are_the_log(tmp_path):
    make_training(tmp_path, evaluation=EVALUATION)
    ((name, figure, table, caption),) = learning_curves(load_results(tmp_path))
    loss, accuracy, harmonizer, alignment = figure.axes[:4]
    assert name == "learning_curves" and loss.get_lines()[0].get_xydata().tolist() == [
        [0.5, 3.5],
        [1, 2.5],
    ]
    assert [line.get_xydata().tolist() for line in accuracy.get_lines()] == [
        [[0.5, 25], [1, 50]],
        [[1, 12.5]],
        [[1, 6.25]],
    ]
    assert alignment.get_lines()[0].get_xydata().tolist() == [[1, -50]]
    assert harmonizer.get_lines()[0].get_xydata().tolist() == [[0.5, 5], [1, 5]]
    assert table["name"].tolist() == ["net", "net"] and table["loss"].tolist() == [3.5, 2.5]
    objective = "objective harmonizer, form equation, lambda_1 0.1, lambda_2 0.0001"
    assert f"net: {objective}; checkpointed, epoch 1 of 3, begun 2026-01-02." in caption
    measured = (
        "Evaluated on 100 images of clickme: Linf 4/255, reduced: apgd-ce(20), an upper bound"
    )
    assert measured in caption
    names = ["net", "training images", "validation images", "these under attack"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == names
    plt.close(figure)


def test_a_plain_training_has_two_panels_and_no_line_of_another(tmp_path):
    """One that logs 0 as the harmonizer's loss, beside one that has it."""
    plain = LOG_COLUMNS[:8]
    log = f"{','.join(plain)},val_accuracy\n1,1.0,0.1,2.5,2.5,0.0,0.5,1.0,\n"
    make_training(tmp_path, log=log)
    ((_, figure, _, caption),) = learning_curves(load_results(tmp_path))
    assert sum(ax.axison for ax in figure.axes) == 2 and "Evaluated" not in caption
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["net"]
    plt.close(figure)
    make_training(tmp_path, "harmonized")
    ((_, figure, _, _),) = learning_curves(load_results(tmp_path))
    assert len(figure.axes[2].get_lines()) == 1
    plt.close(figure)


def test_many_trainings_are_readable_on_a_two_column_page(tmp_path):
    for eps in range(8):
        make_training(tmp_path, f"resnet50_linf_eps{eps}", evaluation=EVALUATION)
    with plt.rc_context(STYLE):
        ((_, figure, _, _),) = learning_curves(load_results(tmp_path))
        assert list(unreadable(figure)) == []
    plt.close(figure)


@pytest.mark.parametrize("trainings", [1, 7])  # those beyond the colours have markers in places
def test_a_training_of_one_epoch_is_drawn(tmp_path, trainings):
    """A line of a single point shows nothing; the pixels of the panels are compared."""
    first = "\n".join(LOG.splitlines()[:2]) + "\n"
    for k in range(trainings):
        make_training(tmp_path, f"net{k}", log=first)
    ((_, figure, _, _),) = learning_curves(load_results(tmp_path))
    line = figure.axes[0].get_lines()[-1]
    shown = pixels(figure)
    line.set_visible(False)
    assert (pixels(figure) != shown).any()
    plt.close(figure)


def pixels(figure) -> np.ndarray:
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba()).copy()


def test_every_training_looks_different():
    styles = training_styles([f"lite0-{k}" for k in range(30)])
    assert len({(style["color"], style.get("marker")) for style in styles.values()}) == 30


def test_the_script_writes_the_four_files(tmp_path):
    make_training(tmp_path)
    make_training(tmp_path, "begun", LOG.splitlines()[0] + "\n", "running")
    assert (
        plotting.main(
            [
                "--results_dir",
                str(tmp_path),
                "--figures_dir",
                str(tmp_path / "figures"),
                "--plots",
                "learning_curves",
            ]
        )
        == 0
    )
    assert {path.suffix for path in (tmp_path / "figures").iterdir()} == {
        ".pdf",
        ".png",
        ".csv",
        ".txt",
    }
    assert set(pd.read_csv(tmp_path / "figures" / "learning_curves.csv")["name"]) == {"net"}


def test_nothing_to_draw_and_what_cannot_be_read(tmp_path, capsys):
    assert (
        plotting.main(
            [
                "--results_dir",
                str(tmp_path),
                "--figures_dir",
                str(tmp_path / "f"),
                "--plots",
                "learning_curves",
            ]
        )
        == 2
    )
    assert "training.py" in capsys.readouterr().err
    (make_training(tmp_path) / "log.csv").unlink()
    with pytest.raises(UserError, match="net/log.csv: missing"):
        list(learning_curves(load_results(tmp_path)))
