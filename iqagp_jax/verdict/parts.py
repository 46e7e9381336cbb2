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
    so_far: Grade | None = None
    """what the little that was looked at would give, where the grade is unknown for want of evidence"""

    @property
    def good(self) -> bool:
        """Whether the grade is good."""
        return self.grade == "good"

    @property
    def flawless(self) -> bool:
        """Whether nothing was found wrong, be the evidence enough for a good grade or not."""
        return "good" in (self.grade, self.so_far)

    def short_of(self, missing: str) -> "Part[Row, Evidence]":
        """The part, unknown where evidence is ``missing`` (in words, or empty); what is poor already needs no more of it."""
        if not missing or self.grade in ("poor", "unknown"):
            return self
        return replace(self, grade="unknown", so_far=self.grade, sentence=f"{self.sentence}; {missing}")

    def at_most(self, grade: Grade, why: str) -> "Part[Row, Evidence]":
        """The part with this grade where its own is better, and ``why`` beside its sentence."""
        worse = max(self.so_far or self.grade, grade, key=get_args(Grade).index)
        told = replace(self, sentence=f"{self.sentence}; {why}")
        if self.so_far and worse != "poor":
            return replace(told, so_far=worse)
        return replace(told, grade=worse, so_far=None)

    def as_dict(self) -> dict[str, Any]:
        """Grades, sentence and evidence; the rows have a place of their own in ``robustness.json``."""
        evidence = [asdict(e) for e in self.evidence]  # type: ignore[call-overload]
        return {"grade": self.grade, "so_far": self.so_far, "sentence": self.sentence, "evidence": evidence}
