"""Groups of commands whose modules are imported only when one of them is called, or help is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from typer.core import TyperGroup
from typer.main import get_group


def lazy_group(modules: Mapping[str, str]) -> type[TyperGroup]:
    """A class for `typer.Typer(cls=…)`. `modules`: of each command, the module that registers it on its `commands`."""

    class LazyGroup(TyperGroup):
        def list_commands(self, ctx: Any) -> list[str]:
            return list(modules)

        def get_command(self, ctx: Any, cmd_name: str) -> Any:
            # Whoever mistypes is told what is similar, and that takes all of them.
            for name in [cmd_name] if cmd_name in modules else modules:
                if name not in self.commands:
                    self.commands.update(get_group(import_module(modules[name]).commands).commands)
            return super().get_command(ctx, cmd_name)

    return LazyGroup
