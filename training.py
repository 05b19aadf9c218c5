"""Train a network: plain, harmonized (Fel et al. 2022), adversarial (Madry et al. 2018), or both.

    python training.py --model_name tf_efficientnet_lite0 --init pretrained --dataset sample \\
        --batch_size 10 --epochs 2 --objective harmonizer --form code --lambda_1 1 --lr 1e-4
    python training.py --recipe lists/training/robust.txt:resnet50_linf_eps4.0 \\
        --dataset imagenet-train --data_dir DIR
    python training.py --recipe lists/training/harmonized.txt:resnet50_harmonized --processes 4 \\
        --dataset imagenet-train --data_dir DIR --clickme_dir DIR2

It writes results/training/<name>/. Run the same command again after an interruption: it continues
from the last checkpoint, on the same loss curve. With another recipe it refuses. To evaluate the
weights: evaluate_robustness.py --checkpoint results/training/<name>/model.safetensors.

Several GPUs: --processes N starts torchrun and returns the exit status of its processes; or start
torchrun yourself. Exit status: 0 done; 2 the request is wrong or training diverged (the last good
checkpoint is kept); 85 checkpointed (--stop_after, SIGTERM); anything else is worth another try.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path

from alignment_security.common.exit_status import CHECKPOINTED, INTERRUPTED, WRONG_REQUEST
from alignment_security.common.files import TryAgain, UserError
from alignment_security.common.out_of_memory import is_out_of_memory
from alignment_security.common.process import print_line, report_error, run_script
from alignment_security.images.image_sets import DataError
from alignment_security.models.forward import session_facts, tune_process
from alignment_security.trainer.distributed import (
    broadcast,
    join_processes,
    launch,
    leave_processes,
    rank,
    started_by_torchrun,
    world_size,
)
from alignment_security.trainer.learner import make_learner
from alignment_security.trainer.loop import fit
from alignment_security.trainer.options import parse_args
from alignment_security.trainer.recipe import Recipe
from alignment_security.trainer.session import (
    StopRequest,
    note_images,
    open_run,
    record_session,
    report,
    resume_from_checkpoint,
    save_weights,
)
from alignment_security.trainer.setup import (
    augmented_images,
    check_request,
    images_per_pass,
    load_training_images,
    recipe_settings,
    starting_model,
    with_staged_folders,
)
from alignment_security.trainer.validation import Validation


def train(args: Namespace) -> int:
    """Train to the end, or until asked to stop. Returns the exit status."""
    recipe = Recipe.from_args(args)
    should_stop = StopRequest(args.stop_after)

    # Join the other processes, if there are any, each with its own device.
    device = join_processes(args.device)
    tune_process(device, recipe.precision)

    # Load the image lists, and reject what cannot be trained before anything is written.
    sets = load_training_images(args)
    check_request(args, sets)

    # Load the starting weights. The settings are what resuming compares.
    model = starting_model(args.model_name, args.init, args.num_classes, args.seed)
    validation = Validation.from_args(args, model)
    evaluation = validation.settings if validation else {}
    settings = {"model": model.settings, "run": recipe_settings(args, sets) | evaluation}
    if args.dry_run:
        if rank() == 0:
            print(json.dumps(settings, indent=1))
        return 0

    # Open results/training/<name>/ and train, unless that has been done.
    facts = session_facts(device, args.batch_size) | {"processes": world_size()}
    with open_run(args.results_dir, recipe.name, settings, facts, args.overwrite) as run:
        finished = broadcast(run is not None and run.done)
        if not finished:
            note_images(run, sets, validation.images if validation else None)
            data = augmented_images(args, sets, model.preprocessing)
            steps_per_epoch = len(data.ids) // recipe.batch_size
            with record_session(run) as session:
                # Continue from the last checkpoint, if there is one.
                learner = make_learner(recipe, model.module, steps_per_epoch, device)
                resume_from_checkpoint(
                    learner, run, args.results_dir, recipe.name, settings, args.overwrite
                )
                finished = fit(
                    recipe,
                    learner,
                    data,
                    data.ids,
                    run,
                    validate=validation,
                    should_stop=should_stop,
                    workers=args.workers,
                    save_every=args.save_every,
                )
                session.status = "running" if finished else "checkpointed"
            if finished:
                save_weights(run, learner)

        # Rank 0 reports.
        if run and finished:
            print_line(report(run))
        elif run:
            print_line("checkpointed: run the same command again to continue", sys.stderr)
    return 0 if finished else CHECKPOINTED


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, start the processes, train. Returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        args = parse_args(argv, __doc__ or "")
    except (UserError, OSError) as error:  # of the file of --recipe
        return report_error(error)
    try:
        if args.chtc:
            # Once, before there are several processes: they find the folders unpacked.
            args = with_staged_folders(args)
        if args.processes > 1 and not started_by_torchrun():
            return launch(Path(__file__).resolve(), argv, args.processes)
        return train(args)
    except UserError as error:
        # All ranks raise the same errors, except those of the images that each decodes.
        if rank() == 0 or isinstance(error, DataError | TryAgain):
            return report_error(error)
        return error.exit_status
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        print(
            f"error: {images_per_pass(args)} images at once do not fit on the device; a smaller "
            "--pass_size takes a step in parts, --precision bf16 about half the memory",
            file=sys.stderr,
        )
        return WRONG_REQUEST
    except OSError as error:
        return report_error(error, args.results_dir)
    except KeyboardInterrupt:
        print_line(
            "interrupted: run the same command again to continue from the last checkpoint",
            sys.stderr,
        )
        return INTERRUPTED
    finally:
        leave_processes()


if __name__ == "__main__":
    run_script(main)
