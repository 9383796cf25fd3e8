"""Where the story is played: the embedded stack, or a gateway anywhere that the same key signs tokens for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from api.demo.people import DemoError, Person, is_loopback
from api.settings import Settings
from api.stack.endpoints import DATABASE, Endpoints
from api.stack.state import StateDir

TIMEOUT_SECONDS = 10
PAPERS = "demo"


@dataclass(frozen=True)
class Venue:
    """`superuser_url` is None where nobody is let into the database. `afterwards` says what is left there.

    `papers` is a folder of ours for what is printed. `settings` are those of the embedded stack; None elsewhere.
    """

    gateway_url: str
    jwt_secret: str = field(repr=False)
    algorithm: str
    audience: str | None
    superuser_url: str | None = field(repr=False)
    papers: Path
    afterwards: str
    settings: Settings | None = field(default=None, repr=False)

    def person(self, subject: str, **options: Any) -> Person:
        return Person(self.gateway_url, self.jwt_secret, self.algorithm, subject, audience=self.audience, **options)


def stack_venue(endpoints: Endpoints, settings: Settings) -> Venue:
    return Venue(
        gateway_url=endpoints.gateway_url,
        jwt_secret=endpoints.jwt_secret,
        algorithm=settings.jwt_algorithm,
        audience=settings.jwt_audience,
        superuser_url=endpoints.database_url,
        papers=settings.state_dir / PAPERS,
        afterwards=(
            "`make up` starts this stack and leaves it running, with the data of this story. Then:\n"
            f"  gateway   {endpoints.gateway_url}/api/v1/   (what your frontends talk to)\n"
            f"  health    {endpoints.gateway_url}/health\n"
            f"  database  psql, with database_url from {StateDir(settings.state_dir).stack_file}\n"
        ),
        settings=settings,
    )


def running_venue(url: str, settings: Settings) -> Venue:
    """A gateway that runs at `url`. Raises DemoError when none does, or not with this JWT_SECRET."""
    gateway_url = url.rstrip("/")
    _require_gateway(gateway_url)
    venue = Venue(
        gateway_url=gateway_url,
        jwt_secret=settings.require("jwt_secret"),
        algorithm=settings.jwt_algorithm,
        audience=settings.jwt_audience,
        superuser_url=_superuser_url(settings),
        papers=settings.state_dir / PAPERS,
        afterwards=(
            "The organizations of this story stay, and what they used. Nobody else's rows were touched.\n"
            f"  gateway   {gateway_url}/api/v1/   (what your frontends talk to)\n"
            f"  health    {gateway_url}/health\n"
        ),
    )
    with venue.person("demo", role="platform_admin") as staff:
        if staff.ask("GET", "/api/v1/organizations", params={"limit": "0"}).status_code == 401:
            raise DemoError(
                f"{gateway_url} refuses tokens signed with this JWT_SECRET and {settings.jwt_algorithm}, for "
                f"JWT_AUDIENCE {settings.jwt_audience or 'unset'}; set its own"
            )
    return venue


def _require_gateway(url: str) -> None:
    try:
        answer = httpx.get(f"{url}/health", timeout=TIMEOUT_SECONDS, trust_env=not is_loopback(url))
        health = answer.json()
    except (httpx.InvalidURL, httpx.UnsupportedProtocol):
        raise DemoError(f"--against {url} is no URL; write http://127.0.0.1:8000") from None
    except httpx.HTTPError as error:
        raise DemoError(f"nobody answers at {url}: {error}") from None
    except ValueError:
        health = None
    if not isinstance(health, dict) or "spool" not in health:
        raise DemoError(f"{url} is no Goldleaves gateway: /health answered {answer.status_code} and not as one does")
    if health["status"] != "ok":
        raise DemoError(f"{url}/health says {health['status']}: {answer.text}")


def _superuser_url(settings: Settings) -> str | None:
    """That of ADMIN_DATABASE_URL, in the database of the migrations; None when it is not set or not a superuser's."""
    if settings.admin_database_url is None:
        return None
    migrated = conninfo_to_dict(settings.migration_database_url or "").get("dbname") or DATABASE
    url = make_conninfo(settings.admin_database_url, dbname=migrated)
    try:
        with psycopg.connect(url) as connection:
            is_superuser = connection.info.parameter_status("is_superuser") == "on"
    except psycopg.Error as error:
        raise DemoError(f"ADMIN_DATABASE_URL, which one scene would use: {error}") from None
    return url if is_superuser else None
