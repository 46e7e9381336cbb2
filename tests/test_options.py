"""Options of a family as data: Python's keywords, the command line and the docs' table are made of one dataclass."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from iqagp_jax.cli.options import table_of, taking
from iqagp_jax.families.gp.options import GPOptions, shares_of
from iqagp_jax.families.options import as_in, check, made_of, option, signature_of
from iqagp_jax.families.so3krates.options import SO3kratesOptions


@dataclass(frozen=True)
class Plain:
    size: int = option(3, "How large.", least=1, most=1000)
    colour: str = option("red", "Which | one.", names=("red", "blue"))
    smooth: bool | None = option(None, "Whether.")
    turned: bool = option(False, "Turned.")
    n_parts: float | None = option(None, "Parts.", flag="parts", once="pieces")
    names: tuple | None = option(None, "Names.", read=lambda text: tuple(text.split("+")))
    hidden: float = option(0.5, "Not on the command line.", flag=None)


def run(*arguments):
    """(exit code, output, what the command got)."""
    app, got = typer.Typer(), []

    @app.command()
    @taking(Plain, size=4)
    def command(place: str, own: int = 1, **options):
        """A command."""
        got.append((place, own, options))

    result = CliRunner().invoke(app, [str(a) for a in arguments])
    return result.exit_code, result.output, got


def test_fields_become_options_with_their_defaults():
    usual = {"size": 4, "colour": "red", "smooth": None, "turned": False, "n_parts": None, "names": None}
    assert run("here") == (0, "", [("here", 1, usual)])
    given = ("here", "--own", 2, "--size", 5, "--colour", "blue", "--no-smooth", "--turned", "--parts", 1.5, "--names", "a+b")
    found = {"size": 5, "colour": "blue", "smooth": False, "turned": True, "n_parts": 1.5, "names": ("a", "b")}
    assert run(*given)[2] == [("here", 2, found)]


@pytest.mark.parametrize("wrong", [("--size", 0), ("--colour", "green"), ("--hidden", 1), ("--no-turned",)])
def test_what_is_no_option_is_refused(wrong):
    assert run("here", *wrong)[0] == 2


def test_an_earlier_name_is_taken_and_the_new_one_told(capsys):
    code, _, got = run("here", "--pieces", 2)
    assert code == 0 and got[0][2]["n_parts"] == 2.0 and "n_parts_once" not in got[0][2]
    assert "pieces" not in run("--help")[1]


def test_the_table_has_a_row_for_every_field():
    rows = table_of(Plain).splitlines()
    assert len(rows) == 2 + 7
    assert rows[3] == r"| `colour` | `--colour` | `red` | Which \| one. One of red, blue. |"
    assert rows[6] == "| `n_parts` | `--parts` |  | Parts. |" and rows[8].startswith("| `hidden` |  | `0.5` |")


def test_bad_values_and_names_get_a_sentence():
    with pytest.raises(ValueError, match="expected size of at least 1, found 0"):
        check(Plain(size=0))
    with pytest.raises(ValueError, match="expected colour among red, blue, found None"):
        check(Plain(colour=None))
    with pytest.raises(TypeError, match=r"expected options among size, colour, .* hidden, found shape"):
        made_of(Plain, (), {"shape": 1})
    with pytest.raises(TypeError, match="found size twice"):
        made_of(Plain, (1,), {"size": 2})
    with pytest.raises(TypeError, match="found 8 of them"):
        made_of(Plain, tuple(range(8)), {})
    assert made_of(Plain, (1, "blue"), {"turned": True}) == Plain(1, "blue", turned=True)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"size": 2.5}, "expected size to be a whole number, found 2.5"),
        ({"size": "3"}, "expected size to be a whole number, found '3'"),
        ({"size": True}, "expected size to be a whole number, found True"),
        ({"size": 10**9}, "expected size of at most 1000, found 1000000000"),
        ({"hidden": float("nan")}, "expected hidden to be a finite number, found nan"),
        ({"hidden": float("inf")}, "expected hidden to be a finite number, found inf"),
        ({"n_parts": "few"}, "expected n_parts to be a finite number, found 'few'"),
        ({"turned": "no"}, "expected turned to be True or False, found 'no'"),
        ({"colour": ["red"]}, "expected colour among red, blue, found ['red']"),
    ],
)
def test_values_of_another_kind_get_a_sentence(given, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        check(Plain(**given))
    check(Plain(np.int64(2), turned=np.bool_(True), n_parts=2, hidden=np.float32(0.5)))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"targets": 5}, "expected targets among"),
        ({"targets": ("",)}, "found ('',)"),
        ({"targets": ("energy", "energy")}, "expected each target once"),
        ({"noise": "1e-8"}, "expected a noise between 0 and 1 (a share of the signal variance), found '1e-8'"),
        ({"noise": (1e-8, 1e-6)}, "expected a noise, or a mapping of targets to theirs"),
        ({"noise": float("nan")}, "found nan"),
        ({"prior_mean": 5}, "expected a prior mean's name or a function of positions, found 5"),
        ({"n_train": 2.5}, "expected n_train to be a whole number"),
    ],
)
def test_options_of_a_fit_get_a_sentence(dataset, given, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        GPOptions(**given).resolved(dataset)


@pytest.mark.parametrize("text", ["", "a", "energy=", "energy=1e-8,energy=1e-6", "energy=1=2", "=1"])
def test_noise_as_text_gets_a_sentence(dataset, text):
    with pytest.raises(ValueError, match=r"expected (--noise as 1e-8 or energy=1e-8,forces=1e-6, found|a noise for each)"):
        GPOptions(noise=shares_of(text)).resolved(dataset)


def test_signatures_and_borrowed_fields():
    assert str(signature_of(Plain, "data", progress=None)).startswith("(data, size=3, colour='red', smooth=None")

    @dataclass(frozen=True)
    class Other:
        colour: str = as_in(Plain, "colour", default="blue")

    assert Other().colour == "blue"
    with pytest.raises(ValueError, match="expected colour among red, blue, found 'green'"):
        check(Other("green"))


def test_the_page_of_options_is_of_today():
    page = (Path(__file__).parents[1] / "docs" / "options.md").read_text()
    for options in (GPOptions, SO3kratesOptions):
        assert table_of(options) in page
