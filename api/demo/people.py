"""Who plays in the story: somebody with a token, who talks HTTP to the gateway and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import httpx

from api.tokens import Role, mint_token


class DemoError(Exception):
    """A step of the story went another way than it should. The text says which and how."""


class Person:
    """A member of an organization, or the provider's own backend or staff."""

    def __init__(
        self,
        gateway_url: str,
        secret: str,
        algorithm: str,
        subject: str,
        *,
        role: Role = "member",
        email: str | None = None,
        organization: str | None = None,
        audience: str | None = None,
    ) -> None:
        self.subject = subject
        self.token = mint_token(secret, subject, role=role, email=email, algorithm=algorithm, audience=audience)
        self._http = httpx.Client(
            base_url=gateway_url,
            headers={"Authorization": f"Bearer {self.token}"},
            timeout=30,
            trust_env=not is_loopback(gateway_url),  # a proxy that the environment names does not know our loopback
        )
        if organization is not None:
            self.act_for(organization)

    def act_for(self, organization: str) -> None:
        """Choose the organization of all further requests, by id or slug."""
        self._http.headers["X-Organization-ID"] = organization

    def ask(self, method: str, path: str, **request: Any) -> httpx.Response:
        """Any request, any answer."""
        return self._http.request(method, path, **request)

    def get(self, path: str, **params: str) -> Any:
        return _expect_success(self.ask("GET", path, params=params))

    def post(self, path: str, body: Any) -> Any:
        return _expect_success(self.ask("POST", path, json=body))

    def create(self, table: str, **row: Any) -> dict[str, Any]:
        """Insert a row through PostgREST and return it."""
        answer = self.ask("POST", f"/api/v1/{table}", json=row, headers={"Prefer": "return=representation"})
        created: dict[str, Any] = _expect_success(answer)[0]
        return created

    def change(self, table: str, row_id: str, **values: Any) -> None:
        _expect_success(self.ask("PATCH", f"/api/v1/{table}", params={"id": f"eq.{row_id}"}, json=values))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()


@dataclass(frozen=True)
class Cast:
    """Everybody in the story. `tag` makes names new, so that the demo can be played again on the same data."""

    tag: str
    ada: Person  # owner of Aurora Legal
    ben: Person  # viewer there
    kiri: Person  # owner of Kauri Chambers
    backend: Person  # the provider's own backend
    staff: Person  # the provider's staff
    aurora: dict[str, Any]
    kauri: dict[str, Any]


def _expect_success(answer: httpx.Response) -> Any:
    if answer.is_success:
        return answer.json() if answer.content else None
    raise DemoError(f"{answer.request.method} {answer.request.url.path} answered {answer.status_code}: {answer.text}")


def is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
