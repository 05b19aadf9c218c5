"""What the scripts that work on a device share: exit status, where image sets lie, the device, and facts of a process."""
from __future__ import annotations

import platform
import signal
import sys
from collections.abc import Callable

import torch

import utilities
from alignment_security.attacks import engine

CHECKPOINTED = 85       # exit status: the state is on disk, run the same command again
DATA_DIRS = {"imagenet-val": "IMAGENET_DIR", "big12": "IMAGENET_DIR", "clickme": "CLICKME_DIR",
             "imagenet-c": "IMAGENET_C_DIR", "tiny-imagenet-c": "TINY_IMAGENET_C_DIR"}


def default_dir(image_set: str) -> str | None:
    """The folder of an image set as .env gives it."""
    return utilities.setting(DATA_DIRS.get(image_set, "DATA_DIR"))


def on_stop(handler: Callable) -> None:
    """Call it on SIGTERM, and on SIGHUP unless that is ignored, as under nohup."""
    for name in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(name) is not signal.SIG_IGN:
            signal.signal(name, handler)


def pick_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise engine.AttackError(f"--device {name}: {str(error).splitlines()[0]}") from None
    return device


def facts(device: torch.device, batch_size: int) -> dict:
    """What was true of this process; kept per session, not compared."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.machine()})"
    return {"git": utilities.git_state(), "device": name, "threads": torch.get_num_threads(), "batch_size": batch_size,
            "versions": utilities.installed_versions(), "argv": sys.argv[1:]}
