"""All that ENVIRONMENT=production refuses: choices that are fine on a laptop, and a hole in front of customers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from pydantic import SecretStr

from api.cors import ANY

if TYPE_CHECKING:
    from api.settings import Settings

SHORTEST_PASSWORD: Final = 16
FEWEST_LETTERS: Final = 8
_PLACEHOLDER: Final = re.compile(r"change.?me|replace.?me|example|placeholder|your.|<.*>|secret|password|default", re.I)
_MAKE_ONE: Final = "make one with `openssl rand -hex 32`"


def weak_choices(settings: Settings) -> Iterator[str]:
    """One line for each, with the variable's name and without its value."""
    if ANY in settings.allowed_origins:
        yield "ALLOWED_ORIGINS=* lets every web page in; name the origins of yours"
    if any(network.prefixlen == 0 for network in settings.trusted_proxies):
        yield "TRUSTED_PROXIES has everybody in it, so every client could say where it comes from; name your proxies"
    if not settings.rls_enabled:
        yield "RLS_ENABLED=false keeps policies from being applied, and tenants from being apart; leave it out"
    secret = settings.jwt_secret
    if secret is not None and _is_guessable(secret):
        yield f"JWT_SECRET is a placeholder; {_MAKE_ONE}"
    if settings.jwt_jwks_url is not None:
        if settings.jwt_audience is None:
            yield "JWT_JWKS_URL without JWT_AUDIENCE takes what its owner signs for other applications; set both"
        if settings.jwt_jwks_url.startswith("http:") and not _is_inside(urlsplit(settings.jwt_jwks_url).hostname or ""):
            yield "JWT_JWKS_URL over http lets everybody on the way there sign tokens; use https, or a file"
    if (url := settings.webhook_url) and url.startswith("http:") and not _is_inside(urlsplit(url).hostname or ""):
        yield "WEBHOOK_URL over http lets everybody on the way there read what is sent; use https"
    if settings.stripe_secret_key is not None and settings.app_url.startswith("http:"):
        yield "APP_URL over http lets everybody on the way there change where people are led back to; use https"
    if settings.webhook_secret is not None:
        from api.webhooks.signing import parse_secrets

        if any(len(set(key)) < FEWEST_LETTERS for key in parse_secrets(settings.webhook_secret.get_secret_value())):
            yield "WEBHOOK_SECRET is a placeholder; make one with `echo whsec_$(openssl rand -base64 32)`"
    if settings.stripe_api_base is not None:
        yield "STRIPE_API_BASE is for tests: who stands there is told the secret key; leave it out"
    for name in (*settings.passwords(), "metrics_token"):
        password: SecretStr | None = getattr(settings, name)
        if password is not None and (len(password.get_secret_value()) < SHORTEST_PASSWORD or _is_guessable(password)):
            yield f"{name.upper()} is a placeholder, or shorter than {SHORTEST_PASSWORD} characters; {_MAKE_ONE}"


def _is_inside(host: str) -> bool:
    """Whether it is on this machine or in a network of ours: by its address, or by a name that only such have."""
    try:
        return ip_address(host).is_private
    except ValueError:
        return "." not in host


def _is_guessable(secret: SecretStr) -> bool:
    text = secret.get_secret_value()
    return len(set(text)) < FEWEST_LETTERS or _PLACEHOLDER.search(text) is not None
