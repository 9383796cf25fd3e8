"""What the stack keeps on disk: data, process records, logs, secrets, and one lock so that two commands never race."""

from __future__ import annotations

import fcntl
import hmac
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from api.stack.endpoints import StackError


@dataclass(frozen=True)
class Secrets:
    """Passwords of the login roles, and the key that signs tokens. Made once, kept in `secrets.json` (0600)."""

    postgres: str = field(repr=False)
    goldleaves_migrator: str = field(repr=False)
    authenticator: str = field(repr=False)
    sidecar: str = field(repr=False)
    monitor: str = field(repr=False)
    jwt: str = field(repr=False)

    @property
    def stripe_webhook(self) -> str:
        """Made of the key of tokens, which it does not give away: state from before there was one has it, too."""
        return f"whsec_{hmac.new(self.jwt.encode(), b'webhooks of Stripe', 'sha256').hexdigest()}"

    def of_services(self) -> dict[str, str]:
        """The passwords of the roles that the migrations make."""
        return {"authenticator": self.authenticator, "sidecar": self.sidecar, "monitor": self.monitor}


@dataclass(frozen=True)
class StateDir:
    root: Path

    @property
    def data(self) -> Path:
        return self.root / "postgres"

    @property
    def spool(self) -> Path:
        return self.root / "spool"

    @property
    def secrets_file(self) -> Path:
        return self.root / "secrets.json"

    @property
    def stack_file(self) -> Path:
        return self.root / "stack.json"

    @property
    def supervision(self) -> Path:
        return self.root / "run" / "supervision.json"

    def record(self, part: str) -> Path:
        return self.root / "run" / f"{part}.json"

    def log(self, part: str) -> Path:
        return self.root / "logs" / f"{part}.log"

    def create(self) -> None:
        """Make the directory, closed to others: it holds secrets."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in ("run", "logs", "spool"):
            (self.root / name).mkdir(mode=0o700, exist_ok=True)

    def exists(self) -> bool:
        return self.root.is_dir()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the stack's lock. It is a lock of the kernel: a killed command releases it."""
        descriptor = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def locked_unless_busy(self) -> Iterator[bool]:
        """Hold the stack's lock if nobody else does. Whether that is so."""
        descriptor = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield True
        except BlockingIOError:
            yield False
        finally:
            os.close(descriptor)

    def read_secrets(self) -> Secrets | None:
        """The stack's secrets, or None before its first start."""
        try:
            stored = json.loads(self.secrets_file.read_text())
        except FileNotFoundError:
            return None
        except ValueError:
            raise StackError(f"{self.secrets_file} is not valid JSON. Restore it from a backup.") from None
        try:
            return Secrets(**{item.name: stored[item.name] for item in fields(Secrets)})
        except KeyError as error:
            raise StackError(f"{self.secrets_file} lacks {error}. Restore it from a backup.") from None

    def ensure_secrets(self) -> Secrets:
        found = self.read_secrets()
        if found is not None:
            return found
        if self.data.exists():
            raise StackError(
                f"{self.secrets_file} is gone, but {self.data} still holds a database it opened. "
                f"Restore it, or remove {self.root} to start anew without the data."
            )
        passwords = {item.name: secrets.token_urlsafe(24) for item in fields(Secrets) if item.name != "jwt"}
        made = Secrets(**passwords, jwt=secrets.token_urlsafe(48))
        write_private(self.secrets_file, asdict(made))
        return made


def write_private(path: Path, content: dict[str, object]) -> None:
    """Write JSON that only its owner can read, whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
    draft.replace(path)
