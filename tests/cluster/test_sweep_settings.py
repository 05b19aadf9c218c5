"""Settings of a sweep: each is parsed once, as both schedulers read it."""

from __future__ import annotations

import re

import pytest
from sweeps import SETTINGS, make, submit_text

from alignment_security.cluster.arguments import SweepError
from alignment_security.cluster.slurm import VARIABLES
from alignment_security.cluster.sweep import SETTINGS_FILES
from alignment_security.cluster.sweep_settings import PARSERS, parsed_settings, submit_settings
from alignment_security.common.files import UserError

WRONG_SETTINGS = {
    "memory": ["lots", "16", "0GB", "1.5GB", "16 GB x", "-1GB", "16KB", ""],
    "disk": ["20", "20 GiB"],
    "step_memory": ["x"],
    "step_disk": ["4"],
    "cpus": ["zero", "0", "2.5", ""],
    "use_container": ["no", "0", "", "none"],
    "chunk_seconds": ["abc", "0", "-5", "1e3"],
    "hung_after": ["0"],
    "release_after": ["-1"],
    "retries": ["-1", "many"],
    "job_length": ["forever", "12h"],
    "slurm_time": ["4h", "4:00:00:00", "1-", "1-123", "one", "86400", "31-0:01", "9" * 40],
    "slurm_gpus": ["a100", ""],
    "slurm_options": ["--partition gpu --account=x", "-p gpu", "gpu", "--comment='a b'"],
    "device": ["gpu", "cuda0", "auto"],
    "cuda": ["thirteen", "13.", "0"],
    "image": ["no/such.sif", "a\nqueue", "$(x)", "a b.sif", ""],
    "images": ["/staging/x.tar"],
    "git_commit": ["a b"],
    "python": ["a b", ".venv/bin/python", "~/python", "$(x)"],
    "staging": ["/a b", "relative", "/", "", "/a/$(x)", "/a\n"],
}
RIGHT_SETTINGS = [
    ("memory", "16 gb", "16GB"),
    ("memory", "16G", "16GB"),
    ("step_disk", "500M", "500MB"),
    ("use_container", "False", "false"),
    ("staging", "/x/y/", "/x/y"),
    ("cuda", "13", "13.0"),
    ("cuda", "12.8", "12.8"),
    ("job_length", "Long", "long"),
    ("retries", "0", "0"),
    ("python", "/opt/python3.12/bin/python", "/opt/python3.12/bin/python"),
    ("device", "cuda:1", "cuda:1"),
    ("slurm_options", "--account=x --exclusive", "--account=x --exclusive"),
    *[
        ("slurm_time", text, text)
        for text in ("04:00:00", "90", "1-12", "2-00:30:00", "30:00", "31-00")
    ],
]


def test_every_setting_is_parsed():
    assert {*sum(SETTINGS_FILES.values(), []), *VARIABLES} < {*PARSERS} == {*WRONG_SETTINGS}


@pytest.mark.parametrize(
    "name, value", [(name, value) for name, values in WRONG_SETTINGS.items() for value in values]
)
def test_a_wrong_setting_is_refused_in_one_line(name, value):
    with pytest.raises(UserError) as error:
        parsed_settings(SETTINGS | {name: value})
    text = str(error.value)
    assert text.startswith(f"--set {name}=") and "\n" not in text
    assert (value if value.isprintable() else repr(value)) in text
    assert re.search(r": (has to be|write) .{4}", text)


@pytest.mark.parametrize("name, value, want", RIGHT_SETTINGS)
def test_a_setting_is_written_as_both_schedulers_read_it(name, value, want):
    assert parsed_settings(SETTINGS | {name: value})[name] == want


@pytest.mark.parametrize("pairs", [["cpus=2", "cpus=4"], ["memory=8GB", "cpus=2", "memory=8GB"]])
def test_a_setting_that_is_given_twice_is_refused(pairs):
    with pytest.raises(SweepError, match=rf"--set {pairs[-1]}: {pairs[0]} is given too; keep one"):
        submit_settings(pairs)


def test_without_cuda_any_driver_is_accepted(staged, tmp_path):
    make(staged, tmp_path / "sweep", settings={"cuda": ""})
    assert "cuda" not in (tmp_path / "sweep/evaluate_settings.inc").read_text()
    assert "if defined cuda" in submit_text("job.inc")


def test_a_value_reaches_both_schedulers_alike(staged, tmp_path):
    make(staged, tmp_path / "sweep", settings={"memory": "8 gb", "use_container": "FALSE"})
    texts = {
        name: (tmp_path / "sweep" / name).read_text()
        for name in ("evaluate_settings.inc", "slurm_settings.sh", "sweep.sbatch")
    }
    assert "memory = 8GB\nuse_container = false\n" in texts["evaluate_settings.inc"]
    assert "#SBATCH --mem=8G\n" in texts["sweep.sbatch"]
    assert "USE_CONTAINER=false\n" in texts["slurm_settings.sh"]


def test_every_setting_is_read_by_a_submit_file():
    for file, settings in (
        ("evaluate.inc", "evaluate_settings.inc"),
        ("step.sub", "step_settings.inc"),
    ):
        text, names = submit_text(file), SETTINGS_FILES[settings]
        text += submit_text("job.inc") if "include : job.inc" in text else ""
        assert all(f"$({name}" in text or f"defined {name}" in text for name in names)
        assert f"include : {file.split('.')[0]}_settings.inc" in text
