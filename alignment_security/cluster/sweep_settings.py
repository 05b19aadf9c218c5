"""Settings of a sweep (`make_sweep --set NAME=VALUE`): which there are, and what each may be.

A value is parsed once, into the text that HTCondor's submit files and SLURM's batch files take.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

from alignment_security.cluster.arguments import SweepError
from alignment_security.cluster.slurm import gpu_kinds
from alignment_security.common.command_line import positive_int, whole_number
from alignment_security.common.settings import git_state, setting

DEFAULTS = {
    "image": "alignment-security.sif",
    "chunk_seconds": "1800",
    "job_length": "short",
    "cuda": "13.0",
}
STAGING_HINT = (
    "the folder of the staged files from the root, e.g. /staging/n/netid/alignment-security, of "
    "letters, digits and ._-; it is STAGING_DIR of .env.local, too"
)

MAX_DAYS = 31  # of a task on SLURM

# ---- parsers: text -> text for the schedulers, or ValueError with what is expected ---------------


def text_like(pattern: str, expected: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(expected)
        return text

    return parse


def one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in choices:
            raise ValueError(" or ".join(choices))
        return text.lower()

    return parse


def count(text: str) -> str:
    return str(positive_int(text))


def count_or_0(text: str) -> str:
    return str(whole_number(text))


def size(text: str) -> str:
    """`16 gb`, `16G` and `16GB` as 16GB. HTCondor and SLURM read a number alone differently."""
    match = re.fullmatch(r"0*([1-9][0-9]{0,8}) ?([MGT])B?", text.upper())
    if not match:
        raise ValueError("a whole number with MB, GB or TB, e.g. 16GB")
    return f"{match[1]}{match[2]}B"


def cuda_version(text: str) -> str:
    """`13` as 13.0; empty: any driver is accepted."""
    if not re.fullmatch(r"([1-9][0-9]?(\.[0-9]{1,2})?)?", text):
        raise ValueError("a version, e.g. 13.0, or nothing for any driver")
    return text if "." in text or not text else f"{text}.0"


def staging_folder(text: str) -> str:
    folder = text.rstrip("/")
    if not re.fullmatch(r"(/+[A-Za-z0-9._-]+)+", folder):
        raise ValueError(STAGING_HINT)
    return folder


def slurm_options(text: str) -> str:
    """Each becomes a line `#SBATCH OPTION` of its own."""
    if not all(re.fullmatch(r"--[a-z][a-z-]*(=[^\s'\"]+)?", word) for word in text.split()):
        raise ValueError('options of sbatch as --NAME=VALUE or --NAME, e.g. "--partition=gpu"')
    return text


def slurm_gpus(text: str) -> str:
    gpu_kinds(text)
    return text


SLURM_TIME = text_like(
    r"[0-9]{1,9}(:[0-9]{1,2}){0,2}|[0-9]{1,9}-[0-9]{1,2}(:[0-9]{1,2}){0,2}",
    "a time of sbatch: MINUTES, HOURS:MINUTES:SECONDS or DAYS-HOURS, e.g. 04:00:00",
)


def slurm_time(text: str) -> str:
    """A time of at most MAX_DAYS as sbatch reads it: a number alone is minutes."""
    parsed = SLURM_TIME(text)
    days, _, rest = parsed.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    from_hours = parts if days or len(parts) == 3 else [0, *parts]
    hours, minutes, seconds = [*from_hours, 0, 0][:3]
    length = timedelta(int(days or 0), seconds, hours=hours, minutes=minutes)
    if length > timedelta(MAX_DAYS):
        raise ValueError(
            f"at most {MAX_DAYS} days, and sbatch reads it as {length} (a number alone is "
            "minutes); a task that reaches its limit goes on later"
        )
    return parsed


file_name = text_like(
    r"[A-Za-z0-9][A-Za-z0-9._+-]*", "the name of a file in the staging folder, without a folder"
)
PARSERS: dict[str, Callable[[str], str]] = {
    "staging": staging_folder,
    "image": file_name,
    "images": file_name,
    "git_commit": text_like(r"[A-Za-z0-9._-]+", "a commit"),
    "python": text_like(
        r"[A-Za-z0-9._+-]+|(/[^\s'\"$~/]+)+",
        "a command's name or a path from the root, since jobs run in folders of their own",
    ),
    "use_container": one_of("true", "false"),
    "device": text_like(r"cpu|cuda(:[0-9]+)?", "cuda, cuda:NUMBER or cpu"),
    "chunk_seconds": count,
    "job_length": one_of("short", "medium", "long"),
    "cuda": cuda_version,
    "cpus": count,
    "memory": size,
    "disk": size,
    "step_memory": size,
    "step_disk": size,
    "retries": count_or_0,
    "release_after": count,
    "hung_after": count,
    "slurm_gpus": slurm_gpus,
    "slurm_time": slurm_time,
    "slurm_options": slurm_options,
}

# ---- all of them ---------------------------------------------------------------------------------


def submit_settings(pairs: Sequence[str]) -> dict[str, str]:
    """The defaults, STAGING_DIR and the commit of the code, overridden by texts `NAME=VALUE`."""
    settings = DEFAULTS | {"git_commit": git_state()}
    if staging := setting("STAGING_DIR"):
        settings["staging"] = staging
    given: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise SweepError(f"--set {pair}: write NAME=VALUE")
        if name in given:
            raise SweepError(f"--set {pair}: {name}={given[name]} is given too; keep one")
        given[name] = value
    return settings | given


def parsed_settings(settings: Mapping[str, str]) -> dict[str, str]:
    """The settings as the submit files take them, without empty ones.

    Raises SweepError, which names the setting, its value and what is expected.
    """
    parsed = {name: parsed_setting(name, value) for name, value in settings.items()}
    if "staging" not in parsed:
        raise SweepError(f"--set staging=FOLDER is missing: {STAGING_HINT}")
    image = Path(parsed["staging"], parsed.get("image", ""))
    in_container = parsed.get("use_container") != "false"
    if in_container and image.parent.is_dir() and not image.is_file():
        raise SweepError(
            f"--set image={image.name}: {image.parent} has no such file; copy it there first"
        )
    return {name: value for name, value in parsed.items() if value}


def parsed_setting(name: str, value: str) -> str:
    shown = value if value.isprintable() else repr(value)
    if name not in PARSERS:
        raise SweepError(f"--set {name}={shown}: write NAME=VALUE with one of {', '.join(PARSERS)}")
    try:
        return PARSERS[name](value)
    except ValueError as expected:
        text = str(expected).removeprefix(f"{value!r} has to be ")
        raise SweepError(f"--set {name}={shown}: has to be {text}") from None
