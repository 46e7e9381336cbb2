"""Text files of other programs, read so that every error names the file, the line and the reason."""

import codecs
import math
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
    """The ``lines`` of a text file, whatever their ends."""

    def __init__(self, path):
        self.path = Path(path)
        if self.path.is_dir():
            raise ValueError(f"expected a text file, found a folder at {self.path}; name a file in it")
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            raise FileNotFoundError(f"expected a text file, found nothing at {self.path}; correct the name") from None
        except OSError as error:
            raise ValueError(f"expected a text file, found that {self.path} cannot be read ({error.strerror})") from error
        if not content.startswith(UTF16) and b"\0" in content:
            raise ValueError(f"expected a text file, found a binary one at {self.path}; name another")
        self.lines = decoded(content).splitlines()

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
