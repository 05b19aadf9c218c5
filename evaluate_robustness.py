"""Evaluate one model under one threat on one image set -> one record under results/records/.

    python evaluate_robustness.py --model_name tf_efficientnet_lite0 clean
    python evaluate_robustness.py --model_name tf_efficientnet_lite0 Linf --eps 0.5/255 1/255
    python evaluate_robustness.py --model_name tf_efficientnet_lite0 L2 --head animate
    python evaluate_robustness.py --model_name resnet50.a1_in1k --dataset imagenet-val \\
        --data_dir DIR -s 960 Linf --eps 1/255

Start it again after an interruption and it goes on at the next image; with other settings it
refuses. Exit status: 0 done, 2 the request is wrong, 85 checkpointed (--stop_after, SIGTERM,
SIGHUP), anything else is worth another try.
"""

from __future__ import annotations

import argparse
import sys

from alignment_security.common.exit_status import CHECKPOINTED, INTERRUPTED, WRONG_REQUEST
from alignment_security.common.files import UserError
from alignment_security.common.process import on_stop, print_line, report_error, run_script
from alignment_security.evaluation.dry_run import describe_dry_run
from alignment_security.evaluation.options import parse_args, threat_from_args
from alignment_security.evaluation.run import (
    Stopped,
    already_done_text,
    fill_record,
    open_record,
    prepare,
    report_text,
)
from alignment_security.evaluation.setup import requested_images, requested_model
from alignment_security.models.forward import is_out_of_memory, pick_device


def evaluate_request(args: argparse.Namespace) -> int:
    # what is asked for: the threat, the model with its weights, the images in list order
    threat = threat_from_args(args)
    model = requested_model(args, pick_device(args.device))
    images = requested_images(args, model)

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
        published_accuracy=args.published_accuracy,
        stop_after=args.stop_after,
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
        return evaluate_request(args)
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
