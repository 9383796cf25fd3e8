"""Make JWTs as an identity provider would: for development, for tests, and for the provider's own backend."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

import jwt

Role = Literal["member", "service", "platform_admin"]
LONGEST_SUBJECT = 255  # tenancy.provision_user refuses longer ones
KEY_CLAIM: Final = "goldleaves_key"  # the id of an API key. Only the gateway's own tokens carry it


def mint_token(
    secret: str,
    subject: str,
    *,
    role: Role = "member",
    email: str | None = None,
    organization: str | None = None,
    lifetime: timedelta = timedelta(hours=1),
    algorithm: str = "HS256",
    audience: str | None = None,
) -> str:
    """A signed token. `organization` (UUID or slug) becomes `org_id`, which the header X-Organization-ID overrides."""
    issued = datetime.now(UTC)
    claims: dict[str, object] = {"sub": subject, "role": role, "iat": issued, "exp": issued + lifetime}
    if email is not None:
        claims["email"] = email
    if organization is not None:
        claims["org_id"] = organization
    if audience is not None:
        claims["aud"] = audience
    return jwt.encode(claims, secret, algorithm=algorithm)


class Exchange:
    """Signs what PostgREST is shown instead of a credential that it cannot check: short-lived tokens of the gateway."""

    def __init__(self, secret: str, algorithm: str, audience: str | None = None) -> None:
        self._secret = secret
        self._algorithm = algorithm
        self._always = {"aud": audience} if audience is not None else {}

    def sign(self, claims: Mapping[str, object], expires: datetime) -> str:
        return jwt.encode({**claims, **self._always, "exp": expires}, self._secret, algorithm=self._algorithm)
