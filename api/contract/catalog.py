"""Schema api as the database describes it (sql/ops/describe_api.sql). The OpenAPI document and the TypeScript types are
made of it.
"""

from __future__ import annotations

import re
from typing import Final

from pydantic import BaseModel, ConfigDict

from api.codes import CODES

_CODE: Final = re.compile(r"\b[A-Z]+(?:_[A-Z]+)+\b")
_RETURNED: Final = re.compile(r"^- (\w+): (.+)$", re.MULTILINE)
_NEVER_NULL: Final = "never null"


class _Described(BaseModel):
    model_config = ConfigDict(frozen=True)

    name: str
    comment: str | None = None

    @property
    def summary(self) -> str:
        return (self.comment or self.name).partition("\n")[0]

    @property
    def description(self) -> str:
        """What the comment says after its first line, which is the summary."""
        return (self.comment or "").partition("\n")[2].strip()


class Column(_Described):
    """A column of a view or of a function's result. Roles are those that may write it."""

    type: str
    nullable: bool | None = None
    has_default: bool | None = None
    values: tuple[str, ...] | None = None
    insert: tuple[str, ...] = ()
    update: tuple[str, ...] = ()

    @property
    def may_be_null(self) -> bool:
        """Postgres cannot tell of a computed column: then it may be, unless its comment says that it never is."""
        return self.nullable if self.nullable is not None else _NEVER_NULL not in (self.comment or "").lower()

    @property
    def is_required_on_insert(self) -> bool:
        return bool(self.insert) and not self.has_default


class Relationship(BaseModel):
    model_config = ConfigDict(frozen=True)

    name: str
    columns: tuple[str, ...]
    referenced: str
    referenced_columns: tuple[str, ...]
    one_to_one: bool


class View(_Described):
    select: tuple[str, ...]
    delete: tuple[str, ...]
    columns: tuple[Column, ...]
    relationships: tuple[Relationship, ...]

    @property
    def insertable(self) -> tuple[Column, ...]:
        return tuple(column for column in self.columns if column.insert)

    @property
    def updatable(self) -> tuple[Column, ...]:
        return tuple(column for column in self.columns if column.update)


class Argument(BaseModel):
    model_config = ConfigDict(frozen=True)

    name: str
    type: str
    required: bool


class Function(_Described):
    read_only: bool
    execute: tuple[str, ...]
    arguments: tuple[Argument, ...]
    set: bool
    returns: str
    returns_view: str | None
    returns_columns: tuple[Column, ...] | None

    @property
    def columns(self) -> tuple[Column, ...]:
        """What a row of the result has, each with its line of the comment: `- meter: Code of the meter. Never null.`"""
        said = dict(_RETURNED.findall(self.comment or ""))
        return tuple(
            column.model_copy(update={"comment": said.get(column.name)}) for column in self.returns_columns or ()
        )

    @property
    def codes(self) -> tuple[str, ...]:
        """The stable codes that its comment names."""
        return tuple(sorted({code for code in _CODE.findall(self.comment or "") if code in CODES}))


class Catalog(BaseModel):
    model_config = ConfigDict(frozen=True)

    comment: str | None
    views: tuple[View, ...]
    functions: tuple[Function, ...]
