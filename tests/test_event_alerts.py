"""Alerts on clients that went wrong: who sends the same again and again, or for periods that are closed."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from api.event_metrics import EventMetrics
from api.recent import WINDOW_SECONDS


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def alerts(registry: CollectorRegistry, name: str) -> dict[str, float]:
    samples = (sample for family in registry.collect() for sample in family.samples)
    return {sample.labels["source"]: sample.value for sample in samples if sample.name == f"goldleaves_{name}_alert"}


def test_more_duplicates_than_events_raise_an_alert_while_it_lasts() -> None:
    clock, registry = Clock(), CollectorRegistry()
    metrics = EventMetrics(clock)
    registry.register(metrics)
    api, other = metrics.of("api"), metrics.of("other")
    nowhere = {"api": 0.0, "gateway": 0.0, "other": 0.0}

    other("duplicate", 99)  # of too few to tell
    api("accepted", 60)
    api("duplicate", 60)  # a half is not more than a half
    assert alerts(registry, "duplicates") == nowhere
    clock.now += WINDOW_SECONDS / 2
    api("duplicate", 1)
    other("duplicate", 1)
    assert alerts(registry, "duplicates") == {**nowhere, "api": 1.0, "other": 1.0}
    clock.now += WINDOW_SECONDS / 2
    assert alerts(registry, "duplicates") == nowhere


def test_an_event_of_a_closed_period_raises_an_alert_while_it_lasts() -> None:
    clock, registry = Clock(), CollectorRegistry()
    metrics = EventMetrics(clock)
    registry.register(metrics)
    metrics.of("api")("rejected", 1000)
    assert set(alerts(registry, "locked_period_attempts").values()) == {0.0}
    metrics.of("api")("locked", 1)
    clock.now += WINDOW_SECONDS - 1
    assert alerts(registry, "locked_period_attempts") == {"api": 1.0, "gateway": 0.0, "other": 0.0}
    clock.now += 1
    assert set(alerts(registry, "locked_period_attempts").values()) == {0.0}


def test_everything_is_counted_for_ever() -> None:
    clock, registry = Clock(), CollectorRegistry()
    metrics = EventMetrics(clock)
    registry.register(metrics)
    for source in ("api", "gateway", "other"):
        metrics.of(source)("accepted", 2)
        clock.now += 10 * WINDOW_SECONDS
    samples = {tuple(sample.labels.values()): sample.value for sample in next(iter(registry.collect())).samples}
    assert samples == {
        ("accepted",): 6,
        ("duplicate",): 0,
        ("conflict",): 0,
        ("rejected",): 0,
        ("locked",): 0,
    }
