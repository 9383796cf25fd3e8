"""Tables of your own, which `goldleaves scaffold table` wrote the isolation test of. The tests that know every tenants'
table by name take them from there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path

from api.numbering import FIRST_NUMBER
from api.settings import PROJECT

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class OwnTable:
    """`columns` are those that members write, beside the ones that every table has. `row` makes a row: %(org)s is the
    organization, %(id)s its id and that of the rows it refers to.
    """

    name: str
    columns: tuple[str, ...]
    row: str

    @property
    def view(self) -> str:
        return f"api.{self.name.partition('.')[2]}"

    @property
    def schema(self) -> str:
        return self.name.partition(".")[0]

    @property
    def files(self) -> list[str]:
        """What a scaffold writes, but for its migrations."""
        return [
            f"policies/{self.name}.sql",
            f"sql/{self.name.replace('.', '/')}.sql",
            f"sql/{self.view.replace('.', '/')}.sql",
        ]


@cache
def own_tables() -> tuple[OwnTable, ...]:
    """In the order in which migrations make them, so that what a row refers to is there."""
    modules = [import_module(f"tests.{path.stem}") for path in sorted(_HERE.glob("test_*_isolation.py"))]
    found = [module.TABLE for module in modules if isinstance(getattr(module, "TABLE", None), OwnTable)]
    texts = [path.read_text() for path in own_migrations()]
    return tuple(
        sorted(found, key=lambda table: [f"create table {table.name} " in text for text in texts], reverse=True)
    )


def own_migrations() -> list[Path]:
    """Also those that were written by hand, and rollbacks."""
    return sorted(
        path for path in (PROJECT / "migrations").glob("[0-9]*.sql") if int(path.name.partition("_")[0]) >= FIRST_NUMBER
    )
