"""eps as text, settings from .env, provenance, and the merge command."""

from __future__ import annotations

import os
import subprocess
import time
from importlib.metadata import version
from pathlib import Path

import pytest
from conftest import run_utilities
from hypothesis import given
from hypothesis import strategies as st

from alignment_security.common.command_line import Parser
from alignment_security.common.eps import format_eps, parse_eps, parse_radius
from alignment_security.common.settings import git_state, pinned_versions, setting, version_drift


@pytest.mark.parametrize(
    "text, value",
    [
        ("8/255", 8 / 255),
        ("0.25/255", 0.25 / 255),
        ("0.031", 0.031),
        ("0", 0.0),
        ("1", 1.0),
        ("255/255", 1.0),
        ("1e-3", 0.001),
        (" 4/255 ", 4 / 255),
    ],
)
def test_parse_eps_and_parse_radius_of_valid_text(text, value):
    assert parse_eps(text) == value
    assert parse_radius(text) == value


@pytest.mark.parametrize("text", ["1e99999999", "-1e99999999/255", "1/1e99999999", "9" * 10**6])
def test_parse_radius_refuses_a_long_number(text):
    begin = time.process_time()
    with pytest.raises(ValueError, match="is not a number"):
        parse_radius(text)
    assert time.process_time() - begin < 60  # not for ever


@pytest.mark.parametrize(
    "text, word",
    [
        ("2", "2/255"),
        ("8", "8/255"),
        ("1.0001", "above 1"),
        ("256/255", "above 1"),  # no unit is guessed
        ("-1/255", "negative"),
        ("-0.1", "negative"),
        ("1/-255", "negative"),
        *(
            (text, "not a number")
            for text in ("1/0", "x", "", "/255", "nan", "inf", "1e400", "8/255/2", "8:255")
        ),
    ],
)
def test_parse_eps_refuses_invalid_text(text, word):
    with pytest.raises(ValueError, match=word) as error:
        parse_eps(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text, value", [("2", 2.0), ("1275/255", 5.0)])
def test_parse_radius_may_exceed_one(text, value):
    assert parse_radius(text) == value


@pytest.mark.parametrize(
    "eps, text",
    [
        (8 / 255, "8/255"),
        (0.25 / 255, "0.25/255"),
        (1.0, "255/255"),
        (0.0, "0"),
        (0.03, "7.65/255"),
        (0.00392157, "1/255"),
        (0.0117647, "3/255"),
        (0.0314159, "0.0314159"),
        (1234.567 / 255, "1234.567/255"),
    ],
)
def test_format_eps_by_example(eps, text):
    assert format_eps(eps) == text


@pytest.mark.parametrize("norm", ["L2", "L1", "L2-autoattack"])
def test_a_radius_of_another_norm_is_a_number(norm):
    assert [format_eps(eps, norm) for eps in (3.0, 0.5, 1 / 255)] == ["3", "0.5", "0.00392157"]


@pytest.mark.parametrize(
    ("beside", "texts"),
    [
        ((0.001, 0.00196, 0.00392), "0.001 0.00196 0.00392"),
        ((0.001, 0.5 / 255, 1 / 255), "0.255/255 0.5/255 1/255"),
        ((0.0, 2 / 255, 0.0314159), "0 0.00784314 0.0314159"),
    ],
)
def test_eps_that_stand_together_have_one_unit(beside, texts):
    assert [format_eps(eps, "Linf", beside) for eps in beside] == texts.split()


@given(st.integers(1, 255 * 8))
def test_parse_eps_inverts_format_eps(eighths):
    k = eighths / 8
    assert parse_eps(format_eps(k / 255)) == k / 255


@given(st.floats(0, 1))
def test_format_eps_is_close_to_any_eps(eps):
    assert parse_eps(format_eps(eps)) == pytest.approx(eps, rel=1e-5, abs=1e-9)


# ---- settings and provenance ---------------------------------------------------------------------


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr("alignment_security.common.settings.ROOT", tmp_path)
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_COMMIT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_setting_of_the_environment_wins_over_env_file(root, monkeypatch):
    (root / ".env").write_text("SOME_DIR=committed\nEMPTY_DIR=\nOTHER_DIR=committed\n")
    assert setting("SOME_DIR") == "committed"
    (root / ".env.local").write_text("SOME_DIR=from_file\nOTHER_DIR=\n")
    assert setting("OTHER_DIR") == "committed"
    assert setting("SOME_DIR") == "from_file"
    assert setting("EMPTY_DIR") is None
    monkeypatch.setenv("SOME_DIR", "from_environment")
    assert setting("SOME_DIR") == "from_environment"
    monkeypatch.setenv("SOME_DIR", "")
    assert setting("SOME_DIR") == "from_file"


def test_git_state_is_the_commit_and_whether_tracked_files_differ(root):
    def git(*arguments):
        return subprocess.run(
            ["git", "-C", root, "-c", "user.name=n", "-c", "user.email=e@x", *arguments],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()

    git("init", "-q")
    code = ["a.py", "alignment_security/records/run.py", "lists/models/own.txt", "requirements.txt"]
    other = ["results/evaluation_results.csv", ".env", "README.md", "docs/a.md", "figures/a.png"]
    for name in code + other:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("1\n")
    git("add", ".")
    git("commit", "-qm", "first")
    (root / "untracked").write_text("")
    for name in other:
        (root / name).write_text("2\n")
    before = (root / ".git/index").read_bytes()
    os.utime(root / "a.py", (1, 1))  # an index with locks would be refreshed and written
    assert git_state() == git("rev-parse", "HEAD")
    assert (root / ".git/index").read_bytes() == before
    for name in code:
        (root / name).write_text("2\n")
        assert git_state() == git("rev-parse", "HEAD") + "-dirty", name
        git("checkout", "--", name)


@pytest.mark.parametrize("hook", [False, True], ids=["inside", "in a git hook"])
def test_git_state_of_a_copy_inside_another_repository_is_not_its_commit(root, monkeypatch, hook):
    """Code without .git (scp, COPY, git archive), untracked in the repository around it."""
    commit = ["commit", "-q", "--allow-empty", "-m", "other"]
    for arguments in (["init", "-q", "."], commit):
        identity = ["-c", "user.name=n", "-c", "user.email=e@x"]
        subprocess.run(["git", *identity, *arguments], cwd=root, check=True)
    (root / "code").mkdir()
    (root / "code/a.py").write_text("1\n")
    monkeypatch.setattr("alignment_security.common.settings.ROOT", root / "code")
    if hook:
        monkeypatch.setenv("GIT_DIR", str(root / ".git"))
    assert git_state() == "unknown"
    monkeypatch.setenv("GIT_COMMIT", "abc123")
    assert git_state() == "abc123"


@pytest.mark.parametrize("path", [None, "/nonexistent"], ids=["no repository", "no git"])
def test_git_state_without_git_comes_from_the_environment(root, monkeypatch, path):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(root.parent))
    if path:
        monkeypatch.setenv("PATH", path)
    assert git_state() == "unknown"
    monkeypatch.setenv("GIT_COMMIT", "abc123")
    assert git_state() == "abc123"


def test_version_drift_names_packages_that_are_not_as_pinned(root):
    (root / "requirements.txt").write_text(
        f"# pins\ntorch==0.0.1   # old\ntimm=={version('timm')}\nnot-installed==1.0\n"
    )
    assert version_drift() == [
        f"torch {version('torch')} is installed, requirements.txt pins 0.0.1"
    ]


def test_pinned_versions_of_the_project():
    assert {"torch", "timm", "pyautoattack", "foolbox"} <= set(pinned_versions())


# ---- the merge command ---------------------------------------------------------------------------


def merge(*arguments) -> int:
    return run_utilities("merge", *arguments)


def test_merge_prints_a_table_and_its_path(tmp_path, tiny_record, capsys):
    rows = [
        {
            "image_id": f"{i}",
            "label": 1,
            "clean_pred": 1,
            "clean_correct": 1,
            "eps": 2 / 255,
            "robust": int(i < 3),
        }
        for i in range(4)
    ]
    tiny_record(rows, eps=[2 / 255], kind="ball", threat="Linf")
    assert merge("--results_dir", tmp_path) == 0
    out = capsys.readouterr().out
    assert all(
        text in out
        for text in ("2/255", "100.0 %", "75.0 %", str(tmp_path / "evaluation_results.csv"))
    )


def test_merge_refuses_with_one_line(tmp_path, tiny_record, capsys):
    tiny_record([{"image_id": "a", "label": 1, "clean_pred": 1, "clean_correct": 1}], done=False)
    assert merge("--results_dir", tmp_path) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "--allow_partial" in error
    assert merge("--results_dir", tmp_path, "--allow_partial") == 0


def test_merge_goes_on_without_an_unfinished_record_unless_strict(tmp_path, tiny_record, capsys):
    tiny_record([{"image_id": "a", "label": 1, "clean_pred": 1, "clean_correct": 1}], model="a")
    tiny_record([], done=False, model="b")
    assert merge("--results_dir", tmp_path, "--strict") == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert merge("--results_dir", tmp_path) == 0
    out, err = capsys.readouterr()
    assert err.startswith("left out: ") and err.count("\n") == 1 and "b.csv" in err
    assert str(tmp_path / "evaluation_results.csv") in out


@pytest.mark.parametrize("damage", ["{", '{"status": "done"}', "moved", "edited", "no run file"])
def test_merge_ends_with_1_where_a_damaged_record_is_left_out(
    tmp_path, tiny_record, capsys, damage
):
    """The summary is written without it; one of other settings, or unfinished, is no damage."""
    row = {"image_id": "a", "label": 1, "clean_pred": 1, "clean_correct": 1}
    run = tiny_record([row], model="b")
    tiny_record([row], model="a")
    if damage == "moved":
        run.json.rename(run.json.with_name("c.json"))
    elif damage == "no run file":
        run.json.unlink()
    elif damage == "edited":
        run.csv.write_text(run.csv.read_text().replace("a,1", "z,1"))
    else:
        run.json.write_text(damage)
    assert merge("--results_dir", tmp_path) == 1
    out, err = capsys.readouterr()
    assert str(tmp_path / "evaluation_results.csv") in out
    assert all(line.startswith("left out: ") for line in err.splitlines())


def test_a_tilde_that_no_shell_expanded_is_the_home_folder(monkeypatch, tmp_path):
    """In `--results_dir=~/x` and in .env."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("IMAGENET_DIR", "~/pictures")
    assert setting("IMAGENET_DIR") == str(tmp_path / "pictures")
    parser = Parser()
    parser.add_argument("--one", type=Path)
    parser.add_argument("--many", nargs="+")
    parser.add_argument("place")
    args = parser.parse_args(["--one=~/a", "--many", "~/b", "c~d", "--", "~/e"])
    assert args.one == tmp_path / "a" and args.many == [str(tmp_path / "b"), "c~d"]
    assert args.place == str(tmp_path / "e")


def test_a_variable_that_no_shell_expanded_is_its_value(monkeypatch, tmp_path, capsys):
    """In quotes, and in .env; never a folder called `$SCRATCH`."""
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    monkeypatch.delenv("NOT_SET", raising=False)
    monkeypatch.setenv("IMAGENET_DIR", "$SCRATCH/pictures")
    assert setting("IMAGENET_DIR") == str(tmp_path / "pictures")
    parser = Parser()
    parser.add_argument("--results_dir", type=Path)
    parser.add_argument("--names", nargs="+")
    names = ["$x_{$", "a/$SCRATCH", "$5/x", "$NOT_SET"]
    args = parser.parse_args(["--results_dir", "${SCRATCH}/a", "--names", "$SCRATCH", *names])
    assert args.results_dir == tmp_path / "a" and args.names == [str(tmp_path), *names]
    for wrong, message in (("$NOT_SET/a", "NOT_SET is not set"), ("s3://bucket/a", "is a URL")):
        with pytest.raises(SystemExit):
            parser.parse_args(["--results_dir", wrong])
        assert message in capsys.readouterr().err


def test_merge_says_which_names_are_one_net_and_what_tools_left(tmp_path, tiny_record, capsys):
    row = {"image_id": "a", "label": 1, "clean_pred": 1, "clean_correct": 1}
    for name, weights in (("a", "same"), ("b", "same"), ("c", "other")):
        tiny_record([row], model=name, kind="clean", threat="clean", weights=weights)
    (folder,) = (tmp_path / "records").glob("*/*")
    for name in ("._a.json", ".a.csv.x7.tmp", "@eaDir"):
        (folder / name).write_text("no record")
    assert merge("--results_dir", tmp_path) == 0
    out, error = capsys.readouterr()
    assert "2 names have the same weights (sha256 same): a, b; figures" in error
    assert "3 files or folders that tools leave are left out" in error and "other" not in error
