"""What a body is, by its headers: in which format its events are, whether it is compressed, and, in the binary mode of
CloudEvents, what its headers say of the event. Source: RFC 9110, and the HTTP binding of CloudEvents 1.0.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from email.message import Message
from typing import Final
from urllib.parse import unquote_to_bytes

from starlette.requests import Request

from api.errors import Problem, problem
from api.ingestion.batch import Format

JSON: Final = "application/json"
FORMATS: Final[Mapping[str, Format]] = {
    JSON: "events",
    "application/cloudevents+json": "cloudevents",
    "application/cloudevents-batch+json": "cloudevents",
    "application/x-ndjson": "ndjson",
    "application/ndjson": "ndjson",
    "application/jsonl": "ndjson",
}
ATTRIBUTE: Final = re.compile(rb"ce-([a-z0-9]{1,64})")
CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
IDENTITY: Final = ("", "identity")
GZIP: Final = ("gzip", "x-gzip")


@dataclass(frozen=True, slots=True)
class Content:
    """`attributes`: of the one event whose `data` the body is. None where events are whole in the body."""

    format: Format
    gzip: bool = False
    attributes: Mapping[str, str] | None = None


_USUAL: Final = Content("events")
_PLAIN_JSON: Final = JSON.encode()


def content_of(request: Request) -> Content:
    """Raises UNSUPPORTED_MEDIA_TYPE (415), and INVALID_BODY (400) for headers of an event that cannot be read."""
    declared, encoding, attributes = _read_headers(request.scope["headers"])
    if declared == [_PLAIN_JSON] and not encoding and not attributes:
        return _USUAL  # as most of them come
    if len(declared) > 1:
        raise problem("AMBIGUOUS_HEADER", f"content-type was sent {len(declared)} times", hint="Send it once.")
    media_type = Message()
    media_type["Content-Type"] = declared[0].decode("latin-1") if declared else ""
    name = media_type.get_content_type() if declared else ""
    if (media_type.get_content_charset() or "utf-8") not in ("utf-8", "utf8"):
        raise problem("UNSUPPORTED_MEDIA_TYPE", "the body has to be UTF-8", hint="Encode it as UTF-8.")
    gzip = _is_gzip(encoding)
    is_binary = "specversion" in attributes and FORMATS.get(name) != "cloudevents"
    if is_binary and name in (JSON, ""):
        return Content("cloudevents", gzip, attributes)
    if is_binary:
        raise problem(
            "UNSUPPORTED_MEDIA_TYPE", "the data of an event has to be application/json", hint="Set Content-Type."
        )
    if name not in FORMATS:
        raise problem("UNSUPPORTED_MEDIA_TYPE", "the body has to be JSON, CloudEvents or NDJSON", hint=_TAKEN)
    return Content(FORMATS[name], gzip)


_TAKEN: Final = f"Set Content-Type to one of {', '.join(FORMATS)}."


def structured(attributes: Mapping[str, str], data: str) -> str:
    """The event of a request in binary mode as it would be in structured mode. Raises INVALID_BODY (400)."""
    if not data.strip():
        return json.dumps(attributes)
    try:
        json.loads(data)  # only to know that it is one value, and ends nothing else than itself
    except (ValueError, RecursionError) as error:
        raise invalid(f"the data of the event is not JSON: {error}") from None
    return f'{{"data": {data}, {json.dumps(attributes)[1:]}'


def invalid(text: str, hint: str = "Mend it and send it again. Nothing of it was stored.") -> Problem:
    return problem("INVALID_BODY", text, hint=hint)


def _read_headers(headers: Iterable[tuple[bytes, bytes]]) -> tuple[list[bytes], list[str], dict[str, str]]:
    """All of Content-Type, all codings of Content-Encoding, and the attributes of an event."""
    declared: list[bytes] = []
    encoding: list[str] = []
    attributes: dict[str, str] = {}
    for name, value in headers:
        if name == b"content-type":
            declared.append(value)
        elif name == b"content-encoding":
            encoding += [coding.strip().lower() for coding in value.decode("latin-1").split(",")]
        elif name.startswith(b"ce-"):
            _add_attribute(attributes, name, value)
    return declared, encoding, attributes


def _add_attribute(attributes: dict[str, str], name: bytes, value: bytes) -> None:
    match = ATTRIBUTE.fullmatch(name)
    text = name.decode("latin-1")
    if match is None:
        raise invalid(f"the header {text} names no attribute of an event", "Use lower case letters and digits.")
    attribute = match[1].decode("ascii")
    if attribute in attributes:
        raise problem("AMBIGUOUS_HEADER", f"{text} was sent twice", hint="Send it once.")
    if attribute == "data":
        raise invalid("the header ce-data is no attribute: data is the body", "Leave it out.")
    try:
        attributes[attribute] = unquote_to_bytes(value).decode("utf-8")
    except UnicodeDecodeError:
        raise invalid(f"the header {text} is not UTF-8", "Percent-encode it as UTF-8.") from None
    if CONTROL.search(attributes[attribute]):
        raise invalid(f"the header {text} has a control character in it", "Leave it out.")


def _is_gzip(encoding: list[str]) -> bool:
    codings = [coding for coding in encoding if coding not in IDENTITY]
    if len(codings) > 1 or (codings and codings[0] not in GZIP):
        raise problem(
            "UNSUPPORTED_MEDIA_TYPE",
            f"the body is compressed as {', '.join(codings)[:40]}",
            hint="Use Content-Encoding: gzip, or none.",
        )
    return bool(codings)
