"""The one place where configuration is read: environment first, then `.env`. `.env.example` lists every variable.

GOLDLEAVES_ENV_FILE names a file to read instead of the project's `.env`; when it is empty, none is read.
"""

from __future__ import annotations

import os
import re
from datetime import timedelta
from decimal import Decimal
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import unquote, urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from api.claims import is_string_or_uri
from api.cors import parse_origin
from api.rate_limits.tiers import TierRateLimits, parse_tier_rate_limits
from api.settings.malformed import explain
from api.settings.production import weak_choices

PROJECT = Path(__file__).resolve().parents[2]
ENV_FILE = "GOLDLEAVES_ENV_FILE"
LONGEST_LIFETIME_MINUTES = 10 * 366 * 24 * 60  # of a token: ten years
FINISH_REQUESTS_SECONDS = 10  # a sidecar that is told to stop lets run so long what runs

_PASSWORDS_OF_URLS = {
    "database_url": "sidecar_password",
    "admin_database_url": "admin_password",
    "migration_database_url": "migrator_password",
}
# A running sidecar, or whatever supervises it, is not told these.
OPERATOR_ONLY = (
    "admin_database_url",
    "migration_database_url",
    "admin_password",
    "migrator_password",
    "authenticator_password",
    "monitor_password",
)


class SettingsError(Exception):
    """A variable is missing or malformed. The text is one line that names it."""


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_file=os.environ.get(ENV_FILE, PROJECT / ".env") or None, env_ignore_empty=True, extra="ignore"
    )

    # Where things listen. All of them on `host`, which is loopback unless told otherwise.
    host: str = "127.0.0.1"
    gateway_port: int = Field(default=8000, ge=1, le=65535)
    postgrest_port: int = Field(default=3000, ge=1, le=65535)
    postgres_port: int = Field(default=54329, ge=1, le=65535)
    postgres_version: int = Field(default=18, ge=15, le=18)
    state_dir: Path = PROJECT / ".goldleaves"

    # What the sidecar talks to. The embedded stack fills these in itself.
    database_url: str | None = Field(default=None, repr=False)  # the `sidecar` role
    postgrest_url: str | None = None
    postgrest_bin: Path | None = None
    database_pool_size: int = Field(default=4, ge=1)

    # What `goldleaves migrate` and `goldleaves bootstrap` need, and nothing that runs for long may know.
    admin_database_url: str | None = Field(default=None, repr=False)  # a superuser, or a managed server's admin
    migration_database_url: str | None = Field(default=None, repr=False)  # the `goldleaves_migrator` role
    admin_password: SecretStr | None = None
    migrator_password: SecretStr | None = None
    authenticator_password: SecretStr | None = None
    monitor_password: SecretStr | None = None
    sidecar_password: SecretStr | None = None  # the sidecar knows this one of them

    jwt_secret: SecretStr | None = None
    jwt_algorithm: Literal["HS256", "HS384", "HS512"] = "HS256"
    jwt_expiration_minutes: int = Field(default=60, ge=1, le=LONGEST_LIFETIME_MINUTES)
    jwt_audience: str | None = None
    jwt_jwks_url: str | None = None  # of an identity provider's public keys: http, https, or a file
    jwt_jwks_refresh_seconds: float = Field(default=300, gt=0)
    jwt_role_claim: str = "role"  # of the identity provider's tokens

    allowed_origins: Annotated[tuple[str, ...], NoDecode] = ()  # of pages that may call from a browser; * is any

    trusted_proxies: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode] = ()  # whose X-Forwarded-For counts

    environment: Literal["development", "production"] = "development"

    # Gates of a deployment, which `goldleaves policies apply` reads. Neither switches anything off.
    rls_enabled: bool = True
    tenant_isolation_mode: Literal["row"] = "row"
    enable_docs: bool | None = None  # /docs and /openapi.json; default: not in production

    metrics_token: SecretStr | None = None  # of /metrics, which is not there in production without one

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    billable_routes: Annotated[tuple[str, ...], NoDecode] = (
        "/api/v1/documents",
        "/api/v1/cases",
        "/api/v1/clients",
        "/api/v1/forms",
        "/api/v1/ai",
        "/api/v1/search",
    )
    usage_ip: Literal["truncated", "full", "none"] = "truncated"  # how much of a client's address is stored with usage
    usage_rate_cents: Decimal = Field(default=Decimal(25), ge=0)
    max_ingest_bytes: int = Field(default=8 * 1024 * 1024, ge=1024)
    ingest_wait_seconds: float = Field(default=10, gt=0)
    # How far ahead of the database's clock the time of an event may be: seconds, or ISO 8601.
    event_max_future: timedelta = Field(default=timedelta(minutes=5), ge=timedelta(0), le=timedelta(days=1))

    # How long after its end a billing period is closed: seconds, or ISO 8601.
    billing_grace: timedelta = Field(default=timedelta(hours=1), ge=timedelta(0), le=timedelta(days=28))
    close_periods: bool = True  # by themselves; else by hand alone

    # From the next migration run on: how long a trial is, unless it is said, and for how long who is past due keeps
    # access.
    trial_days: int = Field(default=14, ge=0, le=365)
    past_due_grace_days: int = Field(default=7, ge=0, le=365)

    # Whose invoice counts, for billing periods that begin after the next migration run: ours, or Stripe's, which is
    # made of meter events, or of an item for each line of ours.
    invoice_mode: Literal["local", "stripe_meters", "stripe_items"] = "local"

    stripe_secret_key: SecretStr | None = None
    stripe_publishable_key: str | None = None
    stripe_webhook_secret: SecretStr | None = None  # several, with commas, while one follows another
    stripe_price_starter: str | None = None  # which price at Stripe is the plan of this name
    stripe_price_pro: str | None = None
    stripe_price_firm: str | None = None
    stripe_api_base: str | None = None  # of another server than Stripe's, as in tests
    app_url: str = "http://127.0.0.1:3001"  # of your application: where Stripe's pages lead back to

    tier_rate_limits: Annotated[TierRateLimits, NoDecode] = TierRateLimits()  # requests a minute of an organization
    redis_url: str | None = Field(default=None, repr=False)  # where several sidecars count them together

    # Where messages to the provider's application go, and what signs them: several keys, while one follows another.
    webhook_url: str | None = Field(default=None, repr=False)
    webhook_secret: SecretStr | None = None

    # How long clients may take. A body gets one second more for each 500 bytes that have come.
    request_head_seconds: float = Field(default=10, gt=0)
    request_body_seconds: float = Field(default=20, gt=0)

    spool_dir: Path | None = None  # default: <state_dir>/spool
    spool_max_bytes: int = Field(default=1024**3, ge=1024**2)
    spool_drain_seconds: float = Field(default=20, ge=0)

    @field_validator("event_max_future", "billing_grace", mode="before")
    @classmethod
    def _in_seconds(cls, value: object) -> object:
        if isinstance(value, str) and re.fullmatch(r"\d{1,9}(\.\d+)?", value):
            return float(value)
        return value

    @field_validator("billable_routes", mode="before")
    @classmethod
    def _billable_routes(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(_billable_route(part.strip()) for part in value.split(",") if part.strip())
        return value

    @field_validator("allowed_origins", mode="before")
    @classmethod
    def _origins(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(parse_origin(part) for part in value.split(",") if part.strip())
        return value

    @field_validator("trusted_proxies", mode="before")
    @classmethod
    def _networks(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(_network(part.strip()) for part in value.split(",") if part.strip())
        return value

    @field_validator("tier_rate_limits", mode="before")
    @classmethod
    def _tiers(cls, value: object) -> object:
        return parse_tier_rate_limits(value) if isinstance(value, str) else value

    @field_validator("redis_url")
    @classmethod
    def _is_a_redis(cls, value: str | None) -> str | None:
        if value is not None and not _names_a_redis(value):
            raise ValueError("expected a URL such as redis://:password@host:6379/0, or rediss:// for TLS")
        return value

    @field_validator("database_url", "admin_database_url", "migration_database_url")
    @classmethod
    def _is_a_database(cls, value: str | None) -> str | None:
        if value is not None:
            from api.settings.database_urls import is_database_url

            if not is_database_url(value):  # what is wrong with it would show the value
                raise ValueError("expected a URL such as postgresql://role@host:5432/database")
        return value

    @field_validator("postgrest_url")
    @classmethod
    def _is_an_address(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"https?://[^/\s]+\S*", value):
            raise ValueError("expected a URL such as http://127.0.0.1:3000")
        return value

    @model_validator(mode="after")
    def _complete_urls(self) -> Self:
        """A URL that leaves its password out gets it from the variable beside it, where nothing has to be quoted."""
        for url_name, password_name in _PASSWORDS_OF_URLS.items():
            url, password = getattr(self, url_name), getattr(self, password_name)
            if url is not None and password is not None:
                from api.settings.database_urls import with_password

                setattr(self, url_name, with_password(url, password.get_secret_value()))
        return self

    @field_validator("webhook_url")
    @classmethod
    def _can_be_posted_to(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"https?://[^/\s#]+[^\s#]*", value):  # it may hold a password
            raise ValueError("expected a URL such as https://app.example.com/webhooks")
        return value

    @field_validator("stripe_secret_key")
    @classmethod
    def _is_a_stripe_key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not re.fullmatch(r"(sk|rk)_(test|live)_\w+", value.get_secret_value()):
            raise ValueError("expected a secret key of Stripe, such as sk_test_…")
        return value

    @field_validator("stripe_publishable_key")
    @classmethod
    def _may_be_told(cls, value: str | None) -> str | None:
        """It is shown to whoever asks for a checkout: the secret key must not stand here by a slip."""
        if value is not None and not re.fullmatch(r"pk_(test|live)_\w+", value):
            raise ValueError("expected a publishable key of Stripe, such as pk_test_…")
        return value

    @field_validator("stripe_webhook_secret")
    @classmethod
    def _verifies_stripe(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not all(part.strip() for part in value.get_secret_value().split(",")):
            raise ValueError("expected secrets such as whsec_…, with commas between")
        return value

    @field_validator("stripe_api_base", "app_url")
    @classmethod
    def _is_a_server(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"https?://[^/\s?#]+[^\s?#]*", value):
            raise ValueError("expected a URL such as https://app.example.com")
        return value.rstrip("/") if value is not None else None

    @field_validator("webhook_secret")
    @classmethod
    def _can_sign(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            from api.webhooks.signing import parse_secrets

            parse_secrets(value.get_secret_value())
        return value

    @field_validator("jwt_secret")
    @classmethod
    def _long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value()) < 32:
            raise ValueError(f"expected at least 32 characters, got {len(value.get_secret_value())}")
        return value

    @field_validator("jwt_audience")
    @classmethod
    def _can_be_claimed(cls, value: str | None) -> str | None:
        if value is not None and not is_string_or_uri(value):
            raise ValueError(f"{value!r} has a colon and is no URI, so no token can be for it")
        return value

    @field_validator("jwt_jwks_url")
    @classmethod
    def _names_a_key_set(cls, value: str | None) -> str | None:
        """A path counts from where the command is run, and the sidecar runs elsewhere."""
        if value is None or re.fullmatch(r"https?://[^/\s]+\S*", value):
            return value
        path = unquote(urlsplit(value).path) if value.startswith("file:") else value
        if "://" in path:
            raise ValueError("expected a URL such as https://login.example.com/jwks.json, or the path of a file")
        return str(Path(path).absolute())

    @property
    def docs_are_served(self) -> bool:
        return self.environment != "production" if self.enable_docs is None else self.enable_docs

    @property
    def metrics_are_served(self) -> bool:
        return self.environment != "production" or self.metrics_token is not None

    @classmethod
    def passwords(cls) -> tuple[str, ...]:
        return tuple(name for name in cls.model_fields if name.endswith("_password"))

    def stripe_prices(self) -> dict[str, str]:
        """Of plans, which price at Stripe they are."""
        prefix = "stripe_price_"
        of_plans = (
            (name.removeprefix(prefix), getattr(self, name))
            for name in type(self).model_fields
            if name.startswith(prefix)
        )
        return {plan: price for plan, price in of_plans if price is not None}

    def require(self, name: str) -> str:
        """The value of an optional setting as text, or a SettingsError that names the variable."""
        value = getattr(self, name)
        if value is None:
            raise SettingsError(f"{name.upper()} is not set. See .env.example.")
        return value.get_secret_value() if isinstance(value, SecretStr) else str(value)


def _billable_route(path: str) -> str:
    """A path that nothing is served at would be a meter that never counts."""
    if not re.fullmatch(r"/api/v1(/[^/\s]+)+/?", path):
        raise ValueError(f"{path!r} is no path below /api/v1/; write /api/v1/documents")
    return path.rstrip("/")


def _names_a_redis(url: str) -> bool:
    try:
        parts = urlsplit(url)
        has_a_port = parts.port != 0
    except ValueError:
        return False
    is_path_good = re.fullmatch(r"(/\d*)?", parts.path) is not None
    return parts.scheme in ("redis", "rediss") and bool(parts.hostname) and has_a_port and is_path_good


def _network(text: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(text)
    except ValueError:
        raise ValueError(f"{text!r} is no address or network; write 10.1.2.3 or 10.0.0.0/8") from None


def load_settings() -> Settings:
    """Read and check the configuration. Raises SettingsError with one line for the first bad variable."""
    try:
        settings = Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        reason = explain(Settings.model_fields[name], first)
        raise SettingsError(f"{name.upper()} is malformed: {reason}. See .env.example.") from None
    if settings.environment == "production" and (weak := next(weak_choices(settings), None)):
        raise SettingsError(f"Refused with ENVIRONMENT=production: {weak}.")
    return settings
