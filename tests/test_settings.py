"""Settings: `.env.example` tells the truth, a bad value is one line that keeps secrets, weak ones are refused."""

from __future__ import annotations

import re
import secrets
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict
from typer.testing import CliRunner

from api.cli import app
from api.settings import OPERATOR_ONLY, PROJECT, Settings, SettingsError, load_settings
from api.stack.services import as_environment, sidecar_part

# Paths below the project, which .env.example says in words.
DEFAULTS_IN_WORDS = {"STATE_DIR"}
NO_KEY_SET = "expected a URL such as https://login.example.com/jwks.json, or the path of a file"
GOOD = "0f8a6d1c47b29e35" * 2
SIGNING = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
MAKE_A_SECRET = "make one with `echo whsec_$(openssl rand -base64 32)`"


def example() -> dict[str, str]:
    lines = (PROJECT / ".env.example").read_text().splitlines()
    pairs = [line.partition("=") for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch("[A-Z0-9_]+", name) for name, _, _ in pairs)
    assert len({name for name, _, _ in pairs}) == len(pairs)
    return {name: value for name, _, value in pairs}


def test_the_example_names_every_setting_and_no_other() -> None:
    assert set(example()) == {name.upper() for name in Settings.model_fields}


def test_the_example_spells_out_the_defaults() -> None:
    given = {name for name, value in example().items() if value}
    assert given == {name for name, value in as_environment(Settings()).items() if value} - DEFAULTS_IN_WORDS


def test_the_example_holds_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POSTGRES_VERSION")  # the tests choose theirs
    assert Settings(_env_file=PROJECT / ".env.example") == Settings()  # type: ignore[call-arg]  # of the library


@pytest.mark.parametrize(
    ("variable", "value", "line"),
    [
        ("GATEWAY_PORT", "http", "expected a whole number from 1 to 65535, got 'http'"),
        ("GATEWAY_PORT", "0", "expected a whole number from 1 to 65535, got '0'"),
        ("DATABASE_POOL_SIZE", "2.5", "expected a whole number of at least 1, got '2.5'"),
        ("INGEST_WAIT_SECONDS", "0", "expected a number greater than 0, got '0'"),
        ("USAGE_RATE_CENTS", "a lot", "expected a decimal number of at least 0, got 'a lot'"),
        ("JWT_EXPIRATION_MINUTES", "99999999999", "expected a whole number from 1 to 5270400, got '99999999999'"),
        ("POSTGREST_URL", "postgrest:3000", "expected a URL such as http://127.0.0.1:3000"),
        ("BILLABLE_ROUTES", "cases,/api/v1/documents", "'cases' is no path below /api/v1/; write /api/v1/documents"),
        ("BILLABLE_ROUTES", "/", "'/' is no path below /api/v1/; write /api/v1/documents"),
        ("ENABLE_DOCS", "perhaps", "expected true or false, got 'perhaps'"),
        ("LOG_LEVEL", "LOUD", "expected one of DEBUG, INFO, WARNING, ERROR, got 'LOUD'"),
        (
            "EVENT_MAX_FUTURE",
            "soon",
            "expected a duration, in seconds or as PT5M (ISO 8601), from 0:00:00 to 1 day, 0:00:00, got 'soon'",
        ),
        (
            "BILLING_GRACE",
            "P40D",
            "expected a duration, in seconds or as PT5M (ISO 8601), from 0:00:00 to 28 days, 0:00:00, "
            "got '40 days, 0:00:00'",
        ),
        ("ENVIRONMENT", "x" * 200, f"expected one of development, production, got '{'x' * 60}…'"),
        ("ALLOWED_ORIGINS", "a/b", "'a/b' is no origin; write https://app.example.com, without a path or final slash"),
        ("JWT_SECRET", "hunter2", "expected at least 32 characters, got 7"),
        ("TRUSTED_PROXIES", "10.0.0.1/8", "'10.0.0.1/8' is no address or network; write 10.1.2.3 or 10.0.0.0/8"),
        ("JWT_AUDIENCE", "my api: v1", "'my api: v1' has a colon and is no URI, so no token can be for it"),
        ("JWT_JWKS_URL", "ftp://x/y", NO_KEY_SET),
        ("JWT_JWKS_URL", "https:///y", NO_KEY_SET),
        ("JWT_JWKS_REFRESH_SECONDS", "0", "expected a number greater than 0, got '0'"),
        ("WEBHOOK_URL", "ftp://app:hunter2@host/x", "expected a URL such as https://app.example.com/webhooks"),
        ("WEBHOOK_URL", "https://", "expected a URL such as https://app.example.com/webhooks"),
        ("WEBHOOK_SECRET", "hunter2", f"secret 1 is not whsec_ and base64; {MAKE_A_SECRET}"),
        ("WEBHOOK_SECRET", f"{SIGNING} whsec_hunter2!", f"secret 2 is not whsec_ and base64; {MAKE_A_SECRET}"),
        ("WEBHOOK_SECRET", "whsec_aHVudGVyMg==", "secret 1 has 7 bytes, expected 24 to 64"),
        ("WEBHOOK_SECRET", " ", f"expected whsec_ and base64, got nothing; {MAKE_A_SECRET}"),
        ("TIER_RATE_LIMITS", "starter: 60", 'it is not JSON; write {"starter": {"api": 60}}'),
        ("TIER_RATE_LIMITS", "[60]", 'expected an object of plans; write {"starter": {"api": 60}}'),
        (
            "TIER_RATE_LIMITS",
            '{"starter": {"api": 60, "events": 9}}',
            'of \'starter\' expected one limit, of the class api; write {"starter": {"api": 60}}',
        ),
        ("TIER_RATE_LIMITS", '{"pro": {"api": 0}}', "api of 'pro' is 0; expected requests a minute, from 1 to 1000000"),
        (
            "TIER_RATE_LIMITS",
            '{"Pro": {"api": 60}}',
            '\'Pro\' is not the code of a plan: lowercase letters, digits, _ and -; write {"starter": {"api": 60}}',
        ),
        ("TIER_RATE_LIMITS", '{"pro": {"api": 1}, "pro": {"api": 2}}', "'pro' is there twice"),
        (
            "REDIS_URL",
            "redis:/x:hunter2@",
            "expected a URL such as redis://:password@host:6379/0, or rediss:// for TLS",
        ),
        (
            "REDIS_URL",
            "redis://:hunter2@h:x",
            "expected a URL such as redis://:password@host:6379/0, or rediss:// for TLS",
        ),
        ("STRIPE_PUBLISHABLE_KEY", "sk_live_hunter2", "expected a publishable key of Stripe, such as pk_test_…"),
        ("DATABASE_URL", "postgres:/x:hunter2@", "expected a URL such as postgresql://role@host:5432/database"),
    ],
)
def test_a_malformed_value_is_one_line(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, line: str) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError) as raised:
        load_settings()
    assert str(raised.value) == f"{variable} is malformed: {line}. See .env.example."
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ALLOWED_ORIGINS", "https://app.example.com,*"),
        ("JWT_SECRET", "change-me-" + GOOD),
        ("JWT_SECRET", "x" * 64),
        ("TRUSTED_PROXIES", "10.0.0.0/8,::/0"),
        ("JWT_JWKS_URL", "https://login.example.com/jwks.json"),
        ("SIDECAR_PASSWORD", "sidecar"),
        ("AUTHENTICATOR_PASSWORD", "your-password-here-please"),
        ("MONITOR_PASSWORD", GOOD[:15]),
        ("METRICS_TOKEN", "prometheus"),
        ("WEBHOOK_URL", "http://app.example.com/webhooks"),
        ("WEBHOOK_SECRET", f"{SIGNING} whsec_{'A' * 32}"),
    ],
)
def test_production_refuses_a_weak_choice(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    load_settings()
    monkeypatch.setenv("ENVIRONMENT", "production")
    with pytest.raises(SettingsError, match=f"^Refused with ENVIRONMENT=production: {variable}") as raised:
        load_settings()
    assert value not in str(raised.value).removeprefix(f"Refused with ENVIRONMENT=production: {variable}")


def test_production_takes_what_the_advice_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVIRONMENT", "production")
    monkeypatch.setenv("JWT_SECRET", secrets.token_hex(32))
    for name in Settings.passwords():
        monkeypatch.setenv(name.upper(), secrets.token_hex(32))
    assert not load_settings().docs_are_served


@pytest.mark.parametrize(
    ("url", "is_taken"),
    [
        ("https://login.example.com/jwks.json", True),
        ("/etc/goldleaves/jwks.json", True),
        ("http://keycloak:8080/realms/x/protocol/openid-connect/certs", True),
        ("http://10.1.2.3/jwks.json", True),
        ("http://[::1]/jwks.json", True),
        ("http://login.example.com/jwks.json", False),
        ("http://8.8.8.8/jwks.json", False),
    ],
)
def test_production_fetches_keys_over_the_internet_by_https_alone(
    monkeypatch: pytest.MonkeyPatch, url: str, is_taken: bool
) -> None:
    monkeypatch.setenv("ENVIRONMENT", "production")
    monkeypatch.setenv("JWT_AUDIENCE", "https://api.example.com")
    monkeypatch.setenv("JWT_JWKS_URL", url)
    if is_taken:
        assert load_settings().jwt_jwks_url == url
    else:
        with pytest.raises(SettingsError, match=r"^Refused with .*: JWT_JWKS_URL over http lets "):
            load_settings()


@pytest.mark.parametrize("value", ["keys/jwks.json", "{here}/keys/jwks.json", "file://{here}/keys/jwks.json"])
def test_a_file_of_keys_counts_from_where_the_command_is_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JWT_JWKS_URL", value.format(here=tmp_path))
    assert load_settings().jwt_jwks_url == str(tmp_path / "keys/jwks.json")


def test_a_url_takes_the_password_beside_it_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    password = "a@b:c/d'e%20f# \\"
    monkeypatch.setenv("DATABASE_URL", "postgresql://sidecar@db:5432/goldleaves")
    monkeypatch.setenv("SIDECAR_PASSWORD", password)
    assert conninfo_to_dict(load_settings().require("database_url"))["password"] == password
    monkeypatch.setenv("DATABASE_URL", "postgresql://sidecar:own@db:5432/goldleaves")
    assert conninfo_to_dict(load_settings().require("database_url"))["password"] == "own"


def test_the_sidecar_is_told_nothing_that_only_operators_need(tmp_path: Path) -> None:
    everything = {name: "postgresql://role:secret@db/x" if name.endswith("_url") else GOOD for name in OPERATOR_ONLY}
    part = sidecar_part(Settings(**everything), "postgresql://sidecar@db/x", GOOD, tmp_path)  # type: ignore[arg-type]
    assert not {name.upper() for name in OPERATOR_ONLY} & set(part.environment)


def test_secrets_are_not_in_what_is_printed() -> None:
    urls = {name: "postgresql://role:hunter2@db/x" for name in Settings.model_fields if name.endswith("database_url")}
    keys = {name: "hunter2" + GOOD for name in ("jwt_secret", *Settings.passwords())}
    assert "hunter2" not in repr(Settings(**urls, **keys))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "arguments", [["--sub", ""], ["--sub", "x" * 256], ["--sub", "ann", "--minutes", "99999999999"]]
)
def test_no_token_is_made_that_nothing_takes(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, ["token", *arguments], env={"JWT_SECRET": GOOD})
    assert result.exit_code == 2
    assert arguments[-2] in result.output
    assert "Traceback" not in result.output
