"""The scripts' dialect, and that docs spell their commands as they are; `.ci/scripts` runs each of them."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

TEXTS = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("scripts/*.py")]

ARGUMENTS = {"model": {"nargs": "?"}, "--temperature": {"type": float, "action": "append"}, "--replicas": {"type": int}}
ARGUMENTS |= {"--xtb": {"action": "store_true"}, "--out": {"type": Path}}

FORMS = {"temperature": [300.0, 500.0], "replicas": 20}, {"model": "small", "out": None, "replicas": 2, "xtb": True}


@pytest.fixture(scope="module")
def dialect():
    spec = importlib.util.spec_from_file_location("dialect", ROOT / "scripts/dialect.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def parsed(dialect, monkeypatch):
    def call(*words):
        monkeypatch.setattr(sys, "argv", ["script", *words])
        return dialect.parsed("A script.", ARGUMENTS, *FORMS)

    return call


def test_usual_form(parsed):
    options = parsed("file", "--out", "folder", "--replicas", "0")
    assert (options.model, options.temperature, options.replicas, options.xtb) == ("file", [300.0, 500.0], 0, False)
    assert options.out == Path("folder")


def test_what_is_given_takes_the_place_of_defaults(parsed):
    options = parsed("--short", "--temperature", "700", "--replicas", "3")
    assert (options.model, options.temperature, options.replicas, options.xtb) == ("small", [700.0], 3, True)


def test_short_form_has_a_new_folder(parsed):
    first, second = parsed("--short").out, parsed("--short").out
    assert first != second
    assert first.parent.is_dir()


def test_usual_form_asks_for_what_only_the_short_one_has(parsed, capsys):
    with pytest.raises(SystemExit) as stop:
        parsed("--replicas", "3")
    assert stop.value.code == 2
    assert "expected model, out, found none; give it, or --short" in capsys.readouterr().err


def test_reference_files(dialect, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("IQAGP_REFERENCE", str(tmp_path))
    assert dialect.reference_files("water", short=True) is None
    assert "left out: expected reference files in" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="expected reference files in"):
        dialect.reference_files("water", short=False)
    (tmp_path / "water").mkdir()
    assert dialect.reference_files("water", short=False) == tmp_path / "water"


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.name)
def test_commands_are_spelled_as_they_are(text):
    """Scripts and options named in `python scripts/...` are there."""
    commands = re.findall(r"python scripts/(\w+\.py)((?:\\\n|[^`#\n]|\n(?=[^\n]*`))*)", text.read_text())
    for name, words in commands:
        source = (ROOT / "scripts" / name).read_text()
        for option in re.findall(r"--[a-z][a-z-]*", words.partition("`")[0]):
            assert option == "--short" or f'"{option}"' in source, f"{text.name}: {name} has no {option}"
