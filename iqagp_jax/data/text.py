"""Text files of other programs, read so that every error names the file, the line and the reason."""

import math
from pathlib import Path


class TextFile:
    """The ``lines`` of a text file, whatever their ends."""

    def __init__(self, path):
        self.path = Path(path)
        self.lines = self.path.read_text(errors="replace").splitlines()

    def error(self, line, reason):
        """The ValueError of a line, numbered from 0, to be raised."""
        return ValueError(f"{self.path}, line {min(line, len(self.lines) - 1) + 1}: {reason}")

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
