"""Evaluate one model under one threat on one image set -> one record under results/records/.

    python evaluate_robustness.py --model_name tf_efficientnet_lite0 clean
    python evaluate_robustness.py --model_name tf_efficientnet_lite0 Linf --eps 0.5/255 1/255
    python evaluate_robustness.py --model_name tf_efficientnet_lite0 L2 --head animate
    python evaluate_robustness.py --model_name resnet50.a1_in1k --dataset imagenet-val \\
        --data_dir DIR -s 960 Linf --eps 1/255
    python evaluate_robustness.py --model_name resnet50 resnet101 --dataset imagenet-c \\
        --data_dir DIR corruptions --corruption_type all --corruption_severity 1 2 3 4 5
    python evaluate_robustness.py --model_name resnet50 --study feng2025 --data_dir DIR

Start it again after an interruption and it goes on at the next image; other settings get a record
of their own beside it. Exit status: 0 done, 2 the request is wrong, 85 checkpointed (--stop_after,
SIGTERM, SIGHUP), anything else is worth another try.
"""

from __future__ import annotations

import argparse
import sys
import time

from alignment_security.cluster.queue import Turn
from alignment_security.cluster.studies import read_study
from alignment_security.common.exit_status import (
    CHECKPOINTED,
    FAILED,
    INTERRUPTED,
    WRONG_REQUEST,
    status_of_all,
)
from alignment_security.common.files import UserError
from alignment_security.common.out_of_memory import ONE_IMAGE, is_out_of_memory
from alignment_security.common.process import on_stop, print_line, report_error, run_script
from alignment_security.evaluation.dry_run import describe_dry_run
from alignment_security.evaluation.options import (
    parse_args,
    single_requests,
)
from alignment_security.evaluation.report import already_done_text, report_text
from alignment_security.evaluation.run import (
    Stopped,
    fill_record,
    open_record,
    raise_stopped,
)
from alignment_security.evaluation.saved_examples import unsaved_examples
from alignment_security.evaluation.setup import requested_evaluation, requested_model
from alignment_security.evaluation.study import (
    chosen_models,
    record_folder,
    shorten,
    split_study,
    study_requests,
    take_turns,
)
from alignment_security.models.forward import pick_device
from alignment_security.models.heads import Model


def evaluate_requests(requests: list[argparse.Namespace], turn: Turn | None = None) -> int:
    """Evaluate requests in turn; each model is loaded once, and one that fails stops no other.

    turn   of a study, which notes the present request and what failed
    Returns 0 if all are done, else the status of one that is worth another try, else any other's.
    """
    begin, name, model = time.monotonic(), None, None
    statuses: list[int] = []
    for request in requests:
        if statuses:
            shorten([request], time.monotonic() - begin)
        if turn:
            turn.begin(record_folder(request))
        try:
            if request.model_name != name:
                name, model = request.model_name, None
                model = requested_model(request, pick_device(request.device))
            if model is None:
                statuses.append(statuses[-1])  # as the first request of this model
                continue
            statuses.append(evaluate_request(request, model))
        except (UserError, RuntimeError, MemoryError) as error:
            statuses.append(report_failure(error, request.results_dir))
            if turn:
                turn.fail(str(error), try_again=statuses[-1] != WRONG_REQUEST)
    if any(statuses) and len(requests) > 1:
        print_line(f"{statuses.count(0)} of {len(requests)} evaluated", sys.stderr)
    return status_of_all(statuses)


def evaluate_request(args: argparse.Namespace, model: Model) -> int:
    """Evaluate a model, which was loaded without a head, as a request asks for; returns 0."""
    evaluation = requested_evaluation(args, model)
    if args.dry_run:
        print(describe_dry_run(evaluation, args.results_dir, args.overwrite))
        return 0

    # open the record, lock it, and add the rows that it lacks
    with open_record(evaluation, args.results_dir, args.overwrite) as run:
        if run.done:
            print_line(already_done_text(run))
        else:
            fill_record(evaluation, run)
        print_line("\n".join([report_text(run), *unsaved_examples(evaluation, run)]))
    return 0


def report_failure(error: Exception, results_dir: str) -> int:
    """Print a line about an error of a request; returns its status. Raises any other again."""
    if isinstance(error, UserError | OSError):
        return report_error(error, results_dir)
    if not is_out_of_memory(error):
        raise error
    reason = str(error).partition("\n")[0][:200] or type(error).__name__
    if ONE_IMAGE in getattr(error, "__notes__", []):
        print_line(
            f"error: out of memory {ONE_IMAGE} ({reason}); the network needs a larger device, "
            "--precision bf16 or fewer --workers",
            sys.stderr,
        )
        return WRONG_REQUEST
    print_line(
        f"error: out of memory ({reason}); others may use the device: run the same command again, "
        "and with a smaller --batch_size or on a larger device if it fails again",
        sys.stderr,
    )
    return FAILED


def evaluate_study(name: str, models: list[str], options: list[str]) -> int:
    """Evaluate models under every threat of a study, but those that other processes have taken.

    models   names; none: all of the study
    """
    study = read_study(name)
    chosen = chosen_models(study, models, options)
    if "--dry_run" not in options:
        return take_turns(study, chosen, options, evaluate_requests)
    return evaluate_requests(
        [request for model in chosen for request in study_requests(study, model, options)]
    )


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    study, models, options = split_study(argv)
    results_dir = None
    on_stop(raise_stopped)
    try:
        if study:
            return evaluate_study(study, models, options)
        args = parse_args(argv, __doc__ or "")
        results_dir = args.results_dir
        return evaluate_requests(list(single_requests(args)))
    except Stopped:
        print_line("checkpointed: run the same command again to go on", sys.stderr)
        return CHECKPOINTED
    except KeyboardInterrupt:
        print_line("interrupted: run the same command again to go on", sys.stderr)
        return INTERRUPTED
    except (UserError, OSError) as error:
        return report_error(error, results_dir)


if __name__ == "__main__":
    run_script(main)
