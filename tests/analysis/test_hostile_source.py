"""Plugins that are only read, and try to keep the reader busy or to fill the memory."""

from __future__ import annotations

import time

import pytest

from alignment_security.analysis.brainscore_registry import read_registry

LOOP = "for {0} in range(9999):\n"
TWO_LOOPS = LOOP.format("i") + "  " + LOOP.format("j")


def doubled(first: str, twice: str) -> str:
    lines = [f"a{k + 1} = " + twice.replace("a", f"a{k}") + "\n" for k in range(40)]
    return f"a0 = {first}\n" + "".join(lines)


HOSTILE = {
    "doubled text": doubled("'x'", "a + a") + "model_registry[a40] = 1\n",
    "doubled lists": doubled("[1]", "[a, a]") + "model_registry[a40[0]] = 1\n",
    "nested loops": LOOP.format("i")
    + "  for j in range(9999):\n    model_registry[f'{i}{j}'] = 1\n",
    "loops of nothing": LOOP.format("i")
    + "  for j in range(9999):\n    for k in 'ab':\n      pass\n",
    "many names": "".join(f"n{k} = {k}\n" for k in range(20_000))
    + LOOP.format("i")
    + "  model_registry[f'{i}'] = 1\n",
    "a name of itself": "a = a + a\nmodel_registry[a] = 1\n",
    "a long name": LOOP.format("i") + "  model_registry[f'" + "y" * 5000 + "{i}'] = 1\n",
    "deep": "x = " + "(" * 5000 + "1" + ")" * 5000 + "\nmodel_registry[x] = 1\n",
    "large": "# " + "x" * 6_000_000 + "\nmodel_registry['y'] = 1\n",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_plugin_that_is_only_read_cannot_keep_the_reader_busy(tmp_path, kind):
    for name, code in {"good": "", "hostile": HOSTILE[kind]}.items():
        plugin = tmp_path / "brainscore_vision" / "models" / name
        plugin.mkdir(parents=True)
        (plugin / "__init__.py").write_text(f"model_registry['{name}_net'] = 1\n{code}")
    begin = time.process_time()
    registry, report = read_registry(tmp_path / "brainscore_vision")
    assert time.process_time() - begin < 60  # not for ever
    assert "good_net" in set(registry["model_registry_name"]) and len(registry) < 300_000
    if kind in ("nested loops", "loops of nothing", "doubled lists", "large"):
        assert "hostile" in report["files_not_parsed"][0]
