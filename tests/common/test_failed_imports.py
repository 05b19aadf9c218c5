"""Packages that cannot be imported: each script ends with one line and the right status."""

from __future__ import annotations

import ast
import re
import subprocess
import sys

import pytest
from conftest import ROOT

import alignment_security.common.imports as imports
from alignment_security.common.exit_status import FAILED, INTERRUPTED, WRONG_REQUEST

SCRIPTS = ("evaluate_robustness", "training", "plotting", "utilities", "dataloading")
# what happens in a package of the environment -> exit status, the package and words of the line
BROKEN = {
    "raise ModuleNotFoundError(\"No module named 'torchvision'\", name='torchvision')": (
        WRONG_REQUEST,
        "torchvision cannot be imported (No module named 'torchvision'); ",
    ),
    "raise OSError('libcudnn.so.9: cannot open shared object file: No such file or directory')": (
        WRONG_REQUEST,
        "numpy cannot be imported (libcudnn.so.9: cannot open shared object file",
    ),
    "raise RuntimeError('operator torchvision::nms does not exist')": (
        WRONG_REQUEST,
        "(operator torchvision::nms does not exist); packages of other versions",
    ),
    "raise ImportError('libtorch_cpu.so: failed to map segment from shared object', name='_C')": (
        FAILED,
        "numpy cannot be imported (libtorch_cpu.so: failed to map segment from shared object); a "
        "limit of this machine",
    ),
    "raise MemoryError": (FAILED, "numpy cannot be imported (MemoryError); a limit"),
    "from datetime import A_NAME_OF_PYTHON_3_99": (
        WRONG_REQUEST,
        "numpy cannot be imported (cannot import name 'A_NAME_OF_PYTHON_3_99'",
    ),
    "try:\n    import libopenblas_\nexcept ImportError as error:\n"
    "    raise ImportError('\\n\\nIMPORTANT: PLEASE READ THIS\\n') from error": (
        WRONG_REQUEST,
        "libopenblas_ cannot be imported (No module named 'libopenblas_')",
    ),
    "int('abc')": (WRONG_REQUEST, "base 10: 'abc'); is a variable of the environment wrong"),
    "raise KeyboardInterrupt": (INTERRUPTED, "interrupted"),
}


@pytest.mark.parametrize(
    "script, code",
    [(script, code) for i, code in enumerate(BROKEN) for script in SCRIPTS[i % 5 :][:1]],
)
def test_a_package_that_cannot_be_imported_is_one_line(tmp_path, script, code):
    (tmp_path / "numpy").mkdir()
    (tmp_path / "numpy" / "__init__.py").write_text(code)
    done = subprocess.run(
        [sys.executable, f"{script}.py", "--help"],
        cwd=ROOT,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    status, words = BROKEN[code]
    assert (done.returncode, done.stderr.count("\n"), done.stdout) == (status, 1, "")
    assert words in done.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_nothing_is_imported_before_failed_imports_are_reported(script):
    """A script imports no package of the environment but through alignment_security."""
    tree = ast.parse((ROOT / f"{script}.py").read_text(encoding="utf-8"))
    names = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    names |= {
        alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names
    }
    packages = {name.partition(".")[0] for name in names}
    assert packages - sys.stdlib_module_names == {"alignment_security"}


@pytest.mark.parametrize(
    "script, built, running, says",
    [
        ("plotting", [".venv-figures"], "", r"\(. .venv-figures/bin/activate\), or pip install -r "
         "requirements-figures.txt"),
        ("plotting", [".venv", ".venv-figures"], "", r"\(. .venv/bin/activate\)"),
        ("plotting", [".venv-figures"], ".venv-figures", "^pip install -r requirements-figures"),
        ("plotting", [], "", "`make figures` builds"),
        ("utilities", [], "", "`make demo` builds .* or pip install -r requirements.txt"),
        ("evaluate_robustness", [".venv-figures"], ".venv-figures", "`make demo` builds"),
        ("training", [".venv", ".venv-figures"], ".venv-figures", r"\(. .venv/bin/activate\)"),
    ],
)  # fmt: skip
def test_the_environment_that_has_a_package_is_named(
    tmp_path, monkeypatch, script, built, running, says
):
    for name in built:
        (tmp_path / name).mkdir()
    monkeypatch.setattr(imports, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / running) if running else "/usr")
    assert re.search(says, imports.where_packages_are(script))


def test_another_python_is_named(capsys):
    try:
        exec("from datetime import A_NAME_OF_PYTHON_3_99", {"__name__": "alignment_security.x"})
    except ImportError as error:
        with pytest.raises(SystemExit, match=str(WRONG_REQUEST)):
            imports.report_failed_import(type(error), error, error.__traceback__)
    assert "and 3.11 or 3.12 is needed" in capsys.readouterr().err


def test_an_error_of_our_own_code_keeps_its_traceback(capsys):
    try:
        import alignment_security.no_such_module  # noqa: F401
    except ImportError as error:
        imports.report_failed_import(type(error), error, error.__traceback__)
    try:
        raise ValueError("no import")
    except ValueError as error:
        imports.report_failed_import(type(error), error, error.__traceback__)
    shown = capsys.readouterr().err
    assert shown.count("Traceback") == 2 and "no_such_module" in shown and "no import" in shown


def test_only_the_scripts_of_the_project_report_so(monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    imports.report_failed_imports()  # pytest is running
    assert sys.excepthook is sys.__excepthook__
