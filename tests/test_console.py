"""What commands print: readable in a terminal of 80 columns, whole in a file."""

import io

import pytest

from iqagp_jax.cli import console

REASON = "RuntimeError: the SCF did not converge in 100 cycles at this geometry, which takes more than one line of a terminal"
HEADER = ["start", "target K", "survived", "mean K", "median E, kcal/mol", "max E, kcal/mol", "drift, meV/ps"]
ROW = ("equilibrium", "500", "20/20", 512.34, -12345.6, 7.84, float("nan"))


@pytest.fixture
def terminal(monkeypatch):
    """What is shown in one of 80 columns."""
    out = io.StringIO()
    monkeypatch.setattr(console, "console", console.Printer(file=out, width=80, force_terminal=True, color_system=None))
    return out


@pytest.fixture
def pipe(monkeypatch):
    """What arrives in a file, whatever the shell says of its width."""
    monkeypatch.setenv("COLUMNS", "80")
    out = io.StringIO()
    monkeypatch.setattr(console, "console", console.Printer(file=out))
    return out


def lines_of(out):
    return out.getvalue().splitlines()


def test_a_wide_table_keeps_its_numbers_whole_in_a_terminal(terminal):
    console.table("a title of a table that is longer than the table itself, by a word or two", HEADER, [ROW])
    lines = lines_of(terminal)
    assert max(map(len, lines)) <= 80 and lines[0].endswith("by a word or two")
    cells = [cell.strip() for cell in lines[-2].split("│")[1:-1]]
    assert cells == ["equilibrium", "500", "20/20", "512", "-12346", "7.84", "nan"]
    assert "median" in terminal.getvalue() and "kcal/mol" in terminal.getvalue()


def test_text_is_folded_and_no_number(terminal):
    console.table("set aside", ["geometry", "reason"], [(3, REASON), (1234567, "/a/path" * 30)])
    lines = lines_of(terminal)
    assert max(map(len, lines)) <= 80
    assert any("1234567" in line for line in lines) and any("which takes" in line for line in lines)
    assert "".join(line.split("│")[2].strip() for line in lines if "/pa" in line) == "/a/path" * 30


def test_nothing_is_wrapped_in_a_file(pipe):
    console.table("reasons", ["geometry", "reason"], [(3, REASON)])
    console.console.print(REASON * 3)
    console.then(f"iqagp label {'x' * 200}.extxyz")
    lines = lines_of(pipe)
    assert any(REASON in line for line in lines) and lines[-2] == REASON * 3
    assert lines[-1] == f"next: iqagp label {'x' * 200}.extxyz"
    assert lines[0] == "reasons"


def test_names_in_brackets_are_told_as_they_are(pipe):
    console.table("[x].safetensors", ["[bold]"], [("[red]",)])
    assert "[x].safetensors" in pipe.getvalue() and "[bold]" in pipe.getvalue() and "[red]" in pipe.getvalue()


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"where .*file is a file; choose another name"):
        console.output_file(tmp_path / "file" / "x.safetensors")
    for nowhere in (tmp_path, "/dev/null", "/proc/x", tmp_path / "no" / "x"):
        with pytest.raises(ValueError, match=r"expected a file in a writable folder, found .*; choose another name"):
            console.output_file(nowhere)
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]
    assert console.output_file(tmp_path / "file") == tmp_path / "file"


def test_a_bar_tells_what_was_enough(capsys):
    for k in console.track(range(1800), "steps"):
        if k == 139:
            break
    shown = capsys.readouterr().err
    assert "steps, ended after 140 of at most 1800:" in shown and "140/140" in shown
    assert list(console.track(range(3), "steps")) == [0, 1, 2]
    shown = capsys.readouterr().err
    assert "ended" not in shown and "3/3" in shown
