"""Whether a request would be refused for records that exist, tried on a copy of them."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from alignment_security.common.files import UserError
from alignment_security.common.folders import glob_visible
from alignment_security.evaluation.evaluation import Evaluation
from alignment_security.evaluation.image_files import check_image_files
from alignment_security.evaluation.run import open_record
from alignment_security.records.names import run_files_of_model, run_files_of_name
from alignment_security.records.record import check_rows_belong, readable_run_files


def try_record(evaluation: Evaluation, results_dir: str | Path, overwrite: bool = False) -> str:
    """What a run would do with its record: read a finished one, go on, or begin one.

    Nothing is written to the results folder. Raises UserError as the run would before its first
    image; that another process is writing the record now is not looked at.
    """
    images, threat = evaluation.images, evaluation.threat
    own = Path("records", images.name, threat.name)
    model = evaluation.model.settings["name"]
    with copied_records(Path(results_dir), own, model) as copy:
        with redirect_stderr(io.StringIO()), open_record(evaluation, copy, overwrite) as run:
            record = Path(results_dir) / run.csv.relative_to(copy)
            if run.done:
                return f"{record} is finished and would be read; --overwrite does it anew"
            check_image_files(run, images)
            begun = threat.as_begun(run.settings["run"])
            rows = begun.own_rows(run.rows)
            check_rows_belong(rows, images.ids, begun.eps, run.csv)
            return f"{record}, which has {len(run.rows)} rows"


def refusals(
    evaluation: Evaluation, results_dir: str | Path, models: Iterable[str]
) -> Iterator[str]:
    """A sentence for each other model whose record refuses this evaluation.

    No model is loaded: what a run file says of its model is taken to be so still.
    """
    folder = Path(results_dir, "records", evaluation.images.name, evaluation.threat.name)
    for name in models:
        for _, run in list(readable_run_files(run_files_of_name(folder, name)))[:1]:
            settings = run["settings"]["model"] | {"head": evaluation.model.settings["head"]}
            model = replace(evaluation.model, settings=settings)
            try:
                try_record(replace(evaluation, model=model), results_dir)
            except UserError as error:
                yield f"{name}: would be refused: {error}"


@contextmanager
def copied_records(results_dir: Path, own: Path, model: str) -> Iterator[Path]:
    """A results folder with copies of a model's records in the folder `own`, and links to others.

    A UserError that is raised within names the files of `results_dir`.
    """
    with TemporaryDirectory() as name:
        copy = Path(name)
        for folder in glob_visible(results_dir, "records/*/*"):
            place = copy / folder.relative_to(results_dir)
            place.mkdir(parents=True)
            for run_file in run_files_of_model(folder, model):
                for path in filter(Path.is_file, (run_file, run_file.with_suffix(".csv"))):
                    if place == copy / own:
                        shutil.copyfile(path, place / path.name)
                    else:
                        (place / path.name).symlink_to(path.resolve())
        try:
            yield copy
        except UserError as error:
            raise type(error)(str(error).replace(name, str(results_dir))) from None
