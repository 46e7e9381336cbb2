"""The README's Python examples run as they stand."""

import re
from pathlib import Path

import numpy as np
from typer.main import get_command

README = Path(__file__).parents[1] / "README.md"


def test_example(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    for code in re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL):
        exec(compile(code, str(README), "exec"), names)  # our own README
    assert callable(names["water_box"])
    assert names["forces"].shape == (9, 3)
    assert np.isfinite(names["forces"]).all()
    assert "of 4 replicas survived" in capsys.readouterr().out


def test_commands_exist():
    """Every `iqagp` command in the README is one that the program has, with its options."""
    from iqagp_jax.cli import app

    for line in re.findall(r"^(?:pip.*&& )?iqagp (.*)", README.read_text(), flags=re.MULTILINE):
        command, words = get_command(app), line.partition("#")[0].split()
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if re.match("--?[a-z]", word)} <= options, line
