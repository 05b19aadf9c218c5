"""Evaluate one model under one threat on one image set -> one record under results/records/.

    python evaluate_robustness.py --model_name tf_efficientnet_lite0 clean
    python evaluate_robustness.py --model_name tf_efficientnet_lite0 Linf --eps 0.5/255 1/255
    python evaluate_robustness.py --model_name tf_efficientnet_lite0 L2 --head animate
    python evaluate_robustness.py --model_name resnet50.a1_in1k --dataset imagenet-val \\
        --data_dir DIR -s 960 Linf --eps 1/255
    python evaluate_robustness.py --model_name resnet50 resnet101 --dataset imagenet-c \\
        --data_dir DIR corruptions --corruption_type all --corruption_severity 1 2 3 4 5

Start it again after an interruption and it goes on at the next image; other settings get a record
of their own beside it. Exit status: 0 done, 2 the request is wrong, 85 checkpointed (--stop_after,
SIGTERM, SIGHUP), anything else is worth another try.
"""

from __future__ import annotations

import argparse
import sys
import time

from alignment_security.common.exit_status import (
    CHECKPOINTED,
    FAILED,
    INTERRUPTED,
    WRONG_REQUEST,
)
from alignment_security.common.files import UserError
from alignment_security.common.process import on_stop, print_line, report_error, run_script
from alignment_security.evaluation.dry_run import describe_dry_run
from alignment_security.evaluation.options import (
    parse_args,
    single_requests,
    threat_from_args,
)
from alignment_security.evaluation.report import already_done_text, report_text
from alignment_security.evaluation.run import Stopped, fill_record, open_record, prepare
from alignment_security.evaluation.setup import requested_images, requested_model
from alignment_security.models.forward import is_out_of_memory, pick_device
from alignment_security.models.heads import Model


def evaluate_requests(args: argparse.Namespace) -> int:
    """Evaluate each model under each corruption in turn; one that fails does not stop the others.

    Returns 0 if all are done, else the status of one that is worth another try, else any other's.
    """
    begin, name, model = time.monotonic(), None, None
    requests, statuses = list(single_requests(args)), []
    for i, request in enumerate(requests):
        if args.stop_after is not None and i:
            request.stop_after = args.stop_after - (time.monotonic() - begin)
            if request.stop_after <= 0:
                raise Stopped
        try:
            if model is None or request.model_name != name:
                name, model = None, requested_model(request, pick_device(args.device))
                name = request.model_name
            statuses.append(evaluate_request(request, model))
        except UserError as error:
            if len(requests) == 1:
                raise
            statuses.append(report_error(error, args.results_dir))
    if any(statuses):
        print_line(f"{statuses.count(0)} of {len(requests)} evaluated", sys.stderr)
    return FAILED if FAILED in statuses else max(statuses)


def evaluate_request(args: argparse.Namespace, model: Model) -> int:
    # what is asked for: the threat, and the images in list order
    threat = threat_from_args(args)
    images, remarks = requested_images(args, model)

    # check that they fit together, and choose the batch size
    evaluation = prepare(
        model,
        images,
        threat,
        args.batch_size,
        precision=args.precision,
        compiled=args.compile,
        workers=args.workers,
        examples=args.examples,
        example_names=args.example_names,
        published_accuracy=args.published_accuracy,
        stop_after=args.stop_after,
        remarks=tuple(remarks),
    )
    if args.dry_run:
        print(describe_dry_run(evaluation))
        return 0

    # open the record, lock it, and add the rows that it lacks
    with open_record(evaluation, args.results_dir, args.overwrite) as run:
        if run.done:
            print_line(already_done_text(run))
        else:
            fill_record(evaluation, run)
        print_line(report_text(run))
    return 0


def main(argv: list[str] | None = None) -> int:
    args = parse_args(sys.argv[1:] if argv is None else argv, __doc__ or "")
    on_stop(stop)
    try:
        return evaluate_requests(args)
    except Stopped:
        print_line("checkpointed: run the same command again to go on", sys.stderr)
        return CHECKPOINTED
    except KeyboardInterrupt:
        print_line("interrupted: run the same command again to go on", sys.stderr)
        return INTERRUPTED
    except (UserError, OSError) as error:
        return report_error(error, args.results_dir)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        print_line(
            f"error: out of memory with one image at a time ({type(error).__name__}); the network "
            "needs a larger device, --precision bf16 or fewer --workers",
            sys.stderr,
        )
        return WRONG_REQUEST


def stop(*_) -> None:
    raise Stopped


if __name__ == "__main__":
    run_script(main)
