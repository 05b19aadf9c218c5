"""Where a benchmark ran: processor or GPU, cores, load, commit and versions, for its JSON file."""

from __future__ import annotations

import os
import platform
import resource
from pathlib import Path

import numpy as np
import scipy
import torch

from alignment_security.common.files import utc_now
from alignment_security.models.forward import session_facts

CPU_INFO = Path("/proc/cpuinfo")


def processor() -> str:
    """Name of the processor, as Linux reports it."""
    if CPU_INFO.exists():
        for line in CPU_INFO.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def machine(device: str = "cpu") -> dict:
    """Facts about this machine and process.

    cores               that this process may use
    load                processes that ran or waited in the last minute, all users'
    threads             of torch
    peak_resident_mib   of this process so far
    """
    facts = session_facts(torch.device(device), 0)
    return {
        "processor": processor(),
        "device": facts["device"],
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 1),
        "threads": facts["threads"],
        "date": utc_now(),
        "git": facts["git"],
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "versions": facts["versions"],
        "peak_resident_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
