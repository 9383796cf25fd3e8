"""When the price of a line was in force, where that is not all of its period: between changes of the plan."""

from __future__ import annotations

from datetime import datetime, time, timedelta
from zoneinfo import ZoneInfo

from api.invoices.document import Period, Price, Span


def days_in_force(price: Price, period: Period) -> str:
    """`1 Jan 2026 - 15 Jan 2026, 15 of 31 days`, by the days of the period; empty where it was all of it."""
    spans = [local(span, period) for span in price.in_force]
    if not spans:
        return ""
    text = " and ".join(_span(*span) for span in spans)
    if all(moment.time() == time() for span in spans for moment in span):
        days = sum((end.date() - start.date()).days for start, end in spans)
        text += f", {days} of {(period.end_date - period.start_date).days} days"
    return text


def intervals_in_force(price: Price, period: Period) -> str:
    """The same for a spreadsheet: intervals of ISO 8601, which end with the first moment after them."""
    spans = (local(span, period) for span in price.in_force)
    return "; ".join(f"{start.isoformat()}/{end.isoformat()}" for start, end in spans)


def local(span: Span, period: Period) -> tuple[datetime, datetime]:
    zone = ZoneInfo(period.timezone)
    return span.starts.astimezone(zone), span.ends.astimezone(zone)


def _span(start: datetime, end: datetime) -> str:
    if end.time() != time():
        return f"{_moment(start)} – {_moment(end)}"  # noqa: RUF001 - as the page has it
    last_day = _day(end - timedelta(days=1))
    return last_day if _moment(start) == last_day else f"{_moment(start)} – {last_day}"  # noqa: RUF001


def _moment(at: datetime) -> str:
    if at.time() == time():
        return _day(at)
    return f"{_day(at)} {at:%H:%M:%S}" if at.second or at.microsecond else f"{_day(at)} {at:%H:%M}"


def _day(at: datetime) -> str:
    return f"{at.day} {at:%b %Y}"
