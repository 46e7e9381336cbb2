"""Text files of other programs, read so that every error names the file, the line and the reason."""

import codecs
import math
import re
from pathlib import Path

UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
"""How text begins that is in UTF-16."""


def decoded(content: bytes) -> str:
    """Text in UTF-16 or UTF-8, with or without a mark of it; what is neither is read as Latin-1."""
    if content.startswith(UTF16):
        return content.decode("utf-16", errors="replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


class TextFile:
    """The ``lines`` of a text file, whatever their ends; ``what`` it should be, for the sentence where there is none."""

    def __init__(self, path, what="a text file"):
        self.path = Path(path)
        if not self.path.is_file():
            found = "a folder" if self.path.is_dir() else "nothing"
            raise FileNotFoundError(f"expected {what}, found {found} at {str(path)!r}; correct the name")
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise ValueError(f"expected {what}, found that {path} cannot be read ({error.strerror})") from error
        if not content.startswith(UTF16) and b"\0" in content:
            raise ValueError(f"expected {what}, found a binary one at {str(path)!r}; name another")
        text = decoded(content)
        self.lines = text.splitlines()
        self.ends_amid_a_line = bool(text) and not text.endswith(("\n", "\r"))

    def error(self, line, reason):
        """The ValueError of a line, numbered from 0, to be raised."""
        return ValueError(f"{self.path}, line {max(min(line, len(self.lines) - 1), 0) + 1}: {reason}")

    def line(self, number):
        """A line, numbered from 0; an error where the file ends before."""
        if number >= len(self.lines):
            raise self.error(number, f"expected line {number + 1}, found the end of the file; was it cut off?")
        return self.lines[number]

    def find(self, text, start=0, at_start=False):
        """Number of the first line from ``start`` that contains ``text`` or begins with it; an error where there is none."""
        for k in range(start, len(self.lines)):
            if self.lines[k].startswith(text) if at_start else text in self.lines[k]:
                return k
        raise self.error(len(self.lines), f"expected a line with {text!r}, found the end of the file; was it cut off?")

    def number(self, line, token):
        """A finite number, also with Fortran's exponent D; an error that names the line otherwise."""
        try:
            value = float(token.upper().replace("D", "E"))
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise self.error(line, f"expected a number, found {token!r}; did the program that wrote it fail?")
        return value


def check_counts(path):
    """ValueError where a frame of an xyz file tells more atoms or columns than there can be: ASE would make room for all."""
    file = TextFile(path)
    start = 0
    while start < len(file.lines) and (count := file.lines[start].strip()).isdecimal():
        there = len(file.lines) - start - 2
        if int(count) > there:
            raise file.error(start, f"expected {count[:20]} atoms, found {max(there, 0)} lines of them; was the file cut off?")
        columns = re.search(r"Properties=\S*?:[SRIL]:\d{4}", file.lines[start + 1]) if there >= 0 else None
        if columns:
            raise file.error(start + 1, f"expected fewer than 1000 columns of a kind, found {columns[0][:60]}")
        start += int(count) + 2
