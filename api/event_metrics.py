"""What became of usage events: since the start, and whether the last minutes look as if a client went wrong.

Who sends the same again and again, or for periods that are closed, is not refused, and may never look at the answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from api.ingestion.answers import OUTCOMES, Count
from api.recent import Recent

SOURCES: Final = ("api", "gateway", "other")  # other: CloudEvents, which name sources of their own
FEWEST_EVENTS: Final = 100
MOST_DUPLICATES: Final = 0.5


class EventMetrics(Collector):
    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._total: Counter[str] = Counter()
        self._recent = Recent[tuple[str, str]](clock)

    def of(self, source: str) -> Count:
        """Counts what became of the events of one of SOURCES."""

        def count(outcome: str, number: int) -> None:
            self._total[outcome] += number
            self._recent.add((source, outcome), number)

        return count

    def collect(self) -> Iterator[Metric]:
        events = CounterMetricFamily(
            "goldleaves_events",
            "Usage events that came, over POST /v1/events and from the spool, by what became of them.",
            labels=["outcome"],
        )
        for outcome in OUTCOMES:
            events.add_metric([outcome], self._total[outcome])
        yield events
        recent = self._recent.total()
        duplicates = GaugeMetricFamily(
            "goldleaves_duplicates_alert",
            "1 when more than half of the events of the last 5 minutes, of at least 100, were duplicates.",
            labels=["source"],
        )
        locked = GaugeMetricFamily(
            "goldleaves_locked_period_attempts_alert",
            "1 when an event of the last 5 minutes was refused because its period is finalized.",
            labels=["source"],
        )
        for source in SOURCES:
            came = sum(recent[source, outcome] for outcome in OUTCOMES)
            repeated = came >= FEWEST_EVENTS and recent[source, "duplicate"] > MOST_DUPLICATES * came
            duplicates.add_metric([source], float(repeated))
            locked.add_metric([source], float(recent[source, "locked"] > 0))
        yield duplicates
        yield locked
