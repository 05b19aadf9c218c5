"""torch.distributed for training: start processes with torchrun, join them, exchange values.

A single process initialises nothing: its rank is 0, the world size is 1, and `broadcast` and
`sum_over_processes` return what they are given.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from alignment_security.common.exit_status import CHECKPOINTED, FAILED, WRONG_REQUEST
from alignment_security.models.forward import pick_device
from alignment_security.trainer.run import TrainingError

Value = TypeVar("Value")


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def broadcast(value: Value) -> Value:
    """Rank 0's value, in every process. Each process waits for it."""
    values = [value]
    if world_size() > 1:
        dist.broadcast_object_list(values, src=0)
    return values[0]


def sum_over_processes(values: Tensor) -> Tensor:
    """Sum a tensor over all processes, in place."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def share_buffers(module: nn.Module) -> None:
    """Give every process the buffers of rank 0, which are saved.

    The statistics of batch norms are of the images that a process has seen.
    """
    if world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


def started_by_torchrun() -> bool:
    return "LOCAL_RANK" in os.environ


def join_processes(device_name: str) -> torch.device:
    """Join torchrun's process group, if there is one, and return the device of this process.

    device_name   of --device; under torchrun each process takes the GPU of its local rank, or the
                  CPU where there is none or the name is "cpu"
    Raises TrainingError when there are more processes than GPUs, UserError as pick_device.
    """
    if not started_by_torchrun():
        return pick_device(device_name)
    local_rank = int(os.environ["LOCAL_RANK"])
    gpus = 0 if device_name == "cpu" else torch.cuda.device_count()
    if not gpus:
        device, backend = torch.device("cpu"), "gloo"
    else:
        if local_rank >= gpus:
            raise TrainingError(
                f"process {local_rank + 1} has no GPU, this machine has {gpus}; "
                f"--processes {gpus}, or --device cpu"
            )
        device, backend = pick_device(f"cuda:{local_rank}"), "nccl"
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group(backend)
    return device


def leave_processes() -> None:
    """Leave the process group, if this process joined one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def launch(script: Path, argv: list[str], processes: int) -> int:
    """Run `script` with torchrun on this machine; returns the exit status of its processes.

    torchrun itself exits with 1 whatever its processes exit with.
    """
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    options = ["--standalone", "--nproc_per_node", str(processes)]
    try:
        torchrun.main([*options, str(script), *argv])
    except ChildFailedError as error:
        statuses = {failure.exitcode for failure in error.failures.values()}
        for status in (WRONG_REQUEST, CHECKPOINTED):
            if status in statuses:
                return status
        return FAILED
    except SignalException:
        return CHECKPOINTED
    return 0
