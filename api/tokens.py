"""Make JWTs as an identity provider would: for development, for tests, and for the provider's own backend."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Literal

import jwt

Role = Literal["member", "service", "platform_admin"]
LONGEST_SUBJECT = 255  # tenancy.provision_user refuses longer ones


def mint_token(
    secret: str,
    subject: str,
    *,
    role: Role = "member",
    email: str | None = None,
    organization: str | None = None,
    lifetime: timedelta = timedelta(hours=1),
    algorithm: str = "HS256",
) -> str:
    """A signed token. `organization` (UUID or slug) becomes `org_id`, which the header X-Organization-ID overrides."""
    issued = datetime.now(UTC)
    claims: dict[str, object] = {"sub": subject, "role": role, "iat": issued, "exp": issued + lifetime}
    if email is not None:
        claims["email"] = email
    if organization is not None:
        claims["org_id"] = organization
    return jwt.encode(claims, secret, algorithm=algorithm)
