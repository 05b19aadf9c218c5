"""One model x one threat x one image set -> one record file (and its run file) under results/records/.

    python evaluate_robustness.py --model_name tf_efficientnet_lite0 clean
    python evaluate_robustness.py --model_name tf_efficientnet_lite0 Linf --eps 0.25/255 0.5/255 1/255
    python evaluate_robustness.py --model_name tf_efficientnet_lite0 --head animate L2 --steps 1000
    python evaluate_robustness.py --model_name resnet50.a1_in1k --dataset imagenet-val --data_dir DIR -s 960 Linf --eps 1/255

Start it again after an interruption and it goes on at the next image; with other settings it refuses. Exit status:
0 done, 2 the request is wrong, 85 checkpointed (--stop_after, SIGTERM, SIGHUP), anything else is worth another try.
"""

from __future__ import annotations

import errno
import shutil
import sys

import torch

from alignment_security.cluster.job import DamagedTar
from alignment_security.common.command_line import CHECKPOINTED, on_stop, print_line
from alignment_security.common.files import UserError
from alignment_security.evaluation.dry_run import describe_dry_run
from alignment_security.evaluation.options import CLEAN_THREATS, parse_args, parse_corruption
from alignment_security.evaluation.published import read_published
from alignment_security.evaluation.run import (
    Stopped,
    attacked_module,
    evaluate_images,
    load_requested_model,
    report_text,
    requested_data_dir,
)
from alignment_security.evaluation.threats import budget_of, run_settings, threat_name
from alignment_security.images.image_sets import take_slice
from alignment_security.images.loading import load_image_set
from alignment_security.models.forward import (
    auto_batch_size,
    pick_device,
    session_facts,
    tune_process,
)
from alignment_security.models.heads import IMAGENET_CLASSES, restrict_classes
from alignment_security.records.adversarial_examples import examples_folder
from alignment_security.records.run import Run

DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}


def evaluate(args) -> int:
    device = pick_device(args.device)
    tune_process(device, args.precision)
    model = load_requested_model(args, device)
    model.module.to(memory_format=torch.channels_last)
    images = load_image_set(
        args.dataset,
        requested_data_dir(args),
        model.n_outputs if args.head == "none" else IMAGENET_CLASSES,
        parse_corruption(args),
        args.seed,
    )
    model = restrict_classes(model, images.restrict_to)
    if args.slice:
        images = take_slice(images, *args.slice)
    settings = {"model": model.settings, "run": run_settings(args, images)}
    if args.published_accuracy:
        read_published(
            args.published_accuracy
        )  # a table that cannot be read is refused before anything is written
    if args.threat not in CLEAN_THREATS and args.protocol == "autoattack":
        budget_of(args).check(model.n_outputs)
    batch_size = (
        auto_batch_size(model.module, model.preprocessing["input_size"], device)
        if args.batch_size == "auto"
        else args.batch_size
    )
    if args.dry_run:
        print(
            describe_dry_run(
                model,
                images,
                threat_name(args),
                settings["run"],
                attacked_module(args, model),
                batch_size,
            )
        )
        return 0
    with Run(
        args.results_dir,
        images.name,
        threat_name(args),
        args.model_name,
        {"clean": "clean", "autoattack": "ball"}.get(settings["run"]["protocol"], "minimum_norm"),
        settings,
        session_facts(device, batch_size),
        args.overwrite,
    ) as run:
        if args.overwrite:
            shutil.rmtree(examples_folder(run.csv), ignore_errors=True)
        if not run.done:
            evaluate_images(args, model, images, batch_size, run)
        print_line(report_text(args, run))
        return 0


def main(argv: list[str] | None = None) -> int:
    args = parse_args(sys.argv[1:] if argv is None else argv, __doc__ or "")

    def stop(*_):
        raise Stopped

    on_stop(stop)
    try:
        return evaluate(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, DamagedTar) else 2
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        print(
            f"error: {error.filename}: cannot be written ({error.strerror}); give another --results_dir",
            file=sys.stderr,
        )
        return 2
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        print(
            f"error: {error.filename or args.results_dir}: {str(error.strerror).partition(';')[0]}; what is written stays, make "
            "room and run the same command again",
            file=sys.stderr,
        )
        return 1
    except Stopped:
        print_line("checkpointed: run the same command again to go on", sys.stderr)
        return CHECKPOINTED
    except KeyboardInterrupt:
        print("interrupted: run the same command again to go on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
