"""A part of a verdict, as data: a grade and a sentence with the rows and the evidence that they rest on."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Generic, Literal, TypeVar, get_args

Grade = Literal["good", "fair", "poor", "unknown"]
"""The better one first; what is unknown is neither."""

Row = TypeVar("Row")
Evidence = TypeVar("Evidence")


@dataclass(frozen=True)
class Part(Generic[Row, Evidence]):
    """One part of a verdict."""

    grade: Grade
    sentence: str
    rows: tuple[Row, ...]
    evidence: tuple[Evidence, ...]
    """how much was looked at: one for each temperature, or one for all"""

    @property
    def good(self) -> bool:
        """Whether the grade is good."""
        return self.grade == "good"

    def at_most(self, grade: Grade, why: str) -> "Part[Row, Evidence]":
        """The part with this grade where its own is better, and ``why`` beside its sentence."""
        worse = max(self.grade, grade, key=get_args(Grade).index)
        return replace(self, grade=worse, sentence=f"{self.sentence}; {why}")

    def as_dict(self) -> dict[str, Any]:
        """Grade, sentence and evidence; the rows have a place of their own in ``robustness.json``."""
        evidence = [asdict(e) for e in self.evidence]  # type: ignore[call-overload]
        return {"grade": self.grade, "sentence": self.sentence, "evidence": evidence}
