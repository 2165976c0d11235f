"""The columns of the verdict, and the findings that make a column bad."""

from collections import Counter
from dataclasses import dataclass, field

# Each must be 0 in a good run.
BAD_COLUMNS = (
    "lost", "duplicated", "reordered", "leaked", "acknowledged_but_replayed", "unexplained_gap", "count_mismatch",
    "not_drained", "readiness_untrue", "memory_above_bound", "log_leaks", "unexpected", "recovery_above_bound",
)

# Most findings of a column that the report shows.
EVIDENCE_MAX = 5


@dataclass(slots=True)
class Evidence:
    text: str
    at: tuple[int, ...]  # places, see reading.Run.place


@dataclass(slots=True)
class Findings:
    counts: Counter[str] = field(default_factory=Counter)
    evidence: dict[str, list[Evidence]] = field(default_factory=dict)
    comparisons: Counter[str] = field(default_factory=Counter)  # of each column; one without any was not judged

    def add(self, column: str, text: str, *at: int) -> None:
        self.counts[column] += 1
        shown = self.evidence.setdefault(column, [])
        if len(shown) < EVIDENCE_MAX:
            shown.append(Evidence(text, at))

    def judged(self, column: str, count: int) -> None:
        """Counts comparisons that could have made the column bad."""
        self.comparisons[column] += count
