"""Studies: text files that say which models meet which threats on which images.

    models feng2025                      a list of lists/models/, or a file with a name a line
    images --dataset big12               options of every threat
    clean                                a line a threat, as on evaluate_robustness.py's command
    Linf --eps 0.5/255 1/255             line
    L2 --head animate

Those that come with the project are in lists/studies/.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from alignment_security.common.files import UserError
from alignment_security.common.folders import glob_visible
from alignment_security.common.settings import ROOT
from alignment_security.common.text import text_lines, words_of_line
from alignment_security.models.lists import WantedModel, model_list_path, read_wanted

STUDIES = ROOT / "lists" / "studies"
# options that say where and how a study runs, not what it evaluates
COMMAND_OPTIONS = {
    "--model_name",
    "--checkpoint",
    "--architecture",
    "--source",
    "--study",
    "--results_dir",
    "--device",
    "--stop_after",
    "--chtc",
    "--overwrite",
    "--dry_run",
}


@dataclass(frozen=True)
class StudyLine:
    """The words of a line, and its number in the file, from 1."""

    number: int
    words: tuple[str, ...]


@dataclass(frozen=True)
class Study:
    """What a study file says.

    models_line   the list of models
    threats       a line each: the options of every threat, then its own words
    """

    path: Path
    models_line: StudyLine
    threats: tuple[StudyLine, ...]

    @property
    def name(self) -> str:
        return self.path.stem

    @cached_property
    def models(self) -> list[WantedModel]:
        """The models of the list. Raises UserError, which names the line or that of the list."""
        (name,) = self.models_line.words
        beside = self.path.parent / name
        try:
            return read_wanted(beside if beside.is_file() else model_list_path(name))
        except UserError as error:
            raise self.error(self.models_line, str(error)) from None

    def error(self, line: StudyLine, reason: str) -> UserError:
        return UserError(f"{self.path}, line {line.number}: {reason}")


def available_studies() -> list[str]:
    """Names of the studies that come with the project."""
    return [path.stem for path in glob_visible(STUDIES, "*.txt")]


def study_path(name: str | Path) -> Path:
    """File of a study: `name` is one of available_studies(), or a path to your own."""
    path = STUDIES / f"{name}.txt"
    if path.is_file() or Path(name).is_file():
        return path if path.is_file() else Path(name)
    available = ", ".join(available_studies())
    raise UserError(f"{name}: no such study; give one of {available}, or a path to yours")


def read_study(name: str | Path) -> Study:
    """Read a study. Raises UserError, which names the line that is wrong.

    Whether evaluate_robustness.py takes the lines of threats is checked by evaluation.study.
    """
    path = study_path(name)
    headers: dict[str, StudyLine] = {}
    threats = []
    for number, text in enumerate(text_lines(path), start=1):
        line = _split_line(path, number, text)
        first, *others = line.words or ("",)
        if first in ("models", "images"):
            if first in headers:
                raise UserError(
                    f"{path}, line {number}: {first} is on line {headers[first].number} too"
                )
            headers[first] = StudyLine(number, tuple(others))
        elif first:
            threats.append(line)
    models = headers.get("models", StudyLine(0, ()))
    if len(models.words) != 1:
        place = f"{path}, line {models.number}" if models.number else f"{path}"
        raise UserError(f"{place}: write `models LIST`, a list of lists/models/ or a file")
    if not threats:
        raise UserError(f"{path}: names no threat; write a line each, e.g. Linf --eps 1/255")
    images = headers.get("images", StudyLine(0, ())).words
    lines = tuple(StudyLine(line.number, (*images, *line.words)) for line in threats)
    return Study(path, models, lines)


def _split_line(path: Path, number: int, text: str) -> StudyLine:
    """A line of words that say what is evaluated. Raises UserError."""
    line = StudyLine(number, tuple(words_of_line(path, number, text)))
    for word in line.words:
        if word.split("=")[0] in COMMAND_OPTIONS:
            raise UserError(
                f"{path}, line {number}: {word} does not say what is evaluated; give it on the "
                "command line"
            )
    return line
