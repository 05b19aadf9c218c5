"""Re-check a results folder from its files alone: one line per problem, with its fix.

    python utilities.py audit results/                 file, problem, fix
    python utilities.py audit results/ --figures_dir figures/   and the tables of its figures
    python utilities.py audit results/ --reattack 20   and re-run 20 saved adversarial examples

Exit status: 0 no problem, 1 problems, 2 a wrong request. Only --reattack needs torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from alignment_security.common.files import UserError
from alignment_security.common.remarks import is_remark
from alignment_security.records.audit_across import (
    check_code,
    check_copies,
    check_lists,
    check_models,
    check_summary,
)
from alignment_security.records.audit_figures import check_tables
from alignment_security.records.audit_record import (
    EVALUATE_AGAIN,
    LEAVE_OUT,
    Record,
    check_clean,
    check_counts,
    check_examples,
    check_images,
    check_settings,
    finished_record,
)
from alignment_security.records.audit_threats import check_threats
from alignment_security.records.audit_verdicts import (
    check_ball,
    check_norms,
    check_sample,
    check_shares,
)
from alignment_security.records.comparable import comparable_runs
from alignment_security.records.norm_summary import AT_FLOOR, WITHOUT_NORM
from alignment_security.records.record import BALL_KINDS, SCREENED_KIND
from alignment_security.records.summary import read_runs


def audit(
    results_dir: str | Path, figures_dir: str | Path | None = None, with_examples: bool = True
) -> list[str]:
    """Every problem of a results folder, one line each, starting with the file.

    figures_dir     folder of the figures drawn from it; default: `figures` in the results folder
    with_examples   whether the adversarial examples that runs saved have to be there
    Raises UserError when the folder holds no record.
    """
    root = Path(results_dir) / "records"
    runs, problems = read_runs(root)
    records, found = check_records(runs, with_examples)
    problems += found
    problems += comparable_runs(runs)[1].values()
    problems += check_models(records)
    problems += check_copies(records)
    problems += check_threats(records)
    problems += check_lists(records)
    problems += check_code(root, records)
    problems += check_summary(Path(results_dir))
    finished = {record.path: record.run for record in records}
    figures = Path(figures_dir or Path(results_dir) / "figures")
    problems += check_tables(Path(results_dir), figures, finished)
    return list(dict.fromkeys(problems))


def check_records(runs: dict[Path, dict], with_examples: bool) -> tuple[list[Record], list[str]]:
    """(finished records, problems of each record by itself)."""
    records, problems = [], []
    for path, run in runs.items():
        try:
            record = finished_record(path.with_suffix(".csv"), run)
        except UserError as error:
            problems.append(str(error))
            continue
        records.append(record)
        sentences = [*check_record(record), *(check_examples(record) if with_examples else [])]
        problems += [f"{record.path}: {sentence}" for sentence in sentences]
    return records, problems


def check_record(record: Record) -> Iterator[str]:
    """Findings about one record, as sentences without its path."""
    yield from check_images(record)
    yield from check_settings(record)
    yield from check_clean(record)
    yield from check_counts(record)
    if record.run["kind"] in BALL_KINDS:
        yield from check_ball(record)
        if "wrong_low" in record.rows:
            yield from check_shares(record.rows)
        if record.run["kind"] == SCREENED_KIND:
            yield from check_sample(record)
    elif record.run["kind"] == "minimum_norm":
        yield from check_norms(record)
    for warning in record.run["warnings"]:
        of_norms = WITHOUT_NORM in warning or AT_FLOOR in warning  # check_norms finds these
        if not is_remark(warning) and not of_norms:
            yield f"its run warned: {warning}; fix the cause and {EVALUATE_AGAIN}, or {LEAVE_OUT}"
