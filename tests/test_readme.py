"""The README's Python example runs as it stands."""

import re
from pathlib import Path

import numpy as np

README = Path(__file__).parents[1] / "README.md"


def test_example(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    names = {}
    exec(compile(code, str(README), "exec"), names)  # our own README
    assert names["forces"].shape == (9, 3)
    assert np.isfinite(names["forces"]).all()
    assert "of 4 replicas survived" in capsys.readouterr().out


def test_commands_exist():
    """Every `iqagp` command in the README is one that the program has."""
    from iqagp_jax.cli import app

    known = {command.callback.__name__ for command in app.registered_commands}
    assert set(re.findall(r"^(?:pip.*&& )?iqagp (\w+)", README.read_text(), flags=re.MULTILINE)) <= known
