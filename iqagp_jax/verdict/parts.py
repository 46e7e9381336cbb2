"""A part of a verdict, as data: a grade and a sentence with the rows and the evidence that they rest on."""

from dataclasses import asdict, dataclass
from typing import Any, Generic, Literal, TypeVar

Grade = Literal["good", "fair", "poor", "unknown"]

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

    def as_dict(self) -> dict[str, Any]:
        """Grade, sentence and evidence; the rows have a place of their own in ``robustness.json``."""
        evidence = [asdict(e) for e in self.evidence]  # type: ignore[call-overload]
        return {"grade": self.grade, "sentence": self.sentence, "evidence": evidence}
