"""The table that a campaign ends with."""

from __future__ import annotations

import statistics
from typing import List, NamedTuple, Sequence

from .clients import ACKNOWLEDGED, IN_DOUBT, Record
from .faults import FAULTS
from .verdict import CREATED_TWICE, LOST, ORPHANED, REFUSED, Verdict


class Round(NamedTuple):
    """A fault, and the time until the cluster was whole again."""

    kind: str
    struck_at: float
    began: float
    ended: float

    def downtime(self, record: Record) -> float:
        """For the clients: how long none of them got a commit acknowledged."""
        return record.longest_silence(self.struck_at, self.ended)


HEADINGS = (
    "leader",
    "times",
    "downtime s, median",
    "longest",
    "acknowledged",
    "in doubt",
    REFUSED,
    LOST,
    ORPHANED,
    CREATED_TWICE,
)


def table(rounds: Sequence[Round], record: Record, verdict: Verdict) -> str:
    lines = [HEADINGS]
    for kind in FAULTS:
        chosen = [each for each in rounds if each.kind == kind]
        if chosen:
            lines.append(_line(kind, chosen, record, verdict))
    lines.append(_line("all", rounds, record, verdict))
    return _aligned([[str(cell) for cell in line] for line in lines])


def _line(name: str, rounds: Sequence[Round], record: Record, verdict: Verdict) -> tuple:
    downtimes = [each.downtime(record) for each in rounds]

    def recorded(result: str) -> int:
        return sum(record.count(result, each.began, each.ended) for each in rounds)

    def found(kind: str) -> int:
        return sum(len(verdict.found(kind, each.began, each.ended)) for each in rounds)

    return (
        name,
        len(rounds),
        f"{statistics.median(downtimes):.1f}",
        f"{max(downtimes):.1f}",
        recorded(ACKNOWLEDGED),
        recorded(IN_DOUBT),
        *(found(kind) for kind in (REFUSED, LOST, ORPHANED, CREATED_TWICE)),
    )


def _aligned(lines: List[List[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join(" | ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)
