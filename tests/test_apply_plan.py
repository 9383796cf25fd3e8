"""A plan for files: what is absent is created whole, nothing is ever overwritten, no path leads out of the project."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from typer.testing import CliRunner, Result

from api.cli import app
from api.release.files import Tree
from api.scaffold.files import State, apply_plan
from api.scaffold.plan import FOLDERS, plan_of
from api.settings import PROJECT
from tests.observe import eventually

ONE, TWO = "policies/app.one.sql", "sql/app/deeper/two.sql"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "project"
    root.mkdir()
    monkeypatch.setattr("api.scaffold.cli.PROJECT", root)
    return root


def plan_file(
    root: Path, files: Mapping[str, str] | None = None, overrides: Mapping[str, object] | None = None
) -> Path:
    actions = [{"action": "create", "path": path, "content": text} for path, text in (files or {}).items()]
    path = root.parent / "plan.json"
    path.write_text(json.dumps({"kind": "files", "version": 1, "actions": actions, **(overrides or {})}))
    return path


def run(plan: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["apply-plan", str(plan), *options])


def files(root: Path) -> dict[str, str]:
    return {path.relative_to(root).as_posix(): path.read_text() for path in root.rglob("*") if path.is_file()}


def lines(result: Result) -> list[list[str]]:
    return [line.split() for line in result.output.splitlines()[:-1]]


def test_a_dry_run_says_what_it_would_do_and_writes_nothing(project: Path) -> None:
    plan = plan_file(project, {ONE: "one\n", TWO: "two\n"})
    (project / "policies").mkdir()
    (project / ONE).write_text("mine\n")
    result = run(plan)
    assert result.exit_code == 3
    assert lines(result) == [["conflict", ONE, "would", "write", f"{ONE}.new"], ["create", TWO]]
    assert result.output.splitlines()[-1] == (
        "Would create 1 file, 0 unchanged, 1 conflict. Nothing was written: --apply does."
    )
    assert files(project) == {ONE: "mine\n"}


def test_what_is_absent_is_created_once(project: Path) -> None:
    plan = plan_file(project, {ONE: "one ä\n", TWO: ""})
    result = run(plan, "--apply")
    assert (result.exit_code, lines(result)) == (0, [["created", ONE], ["created", TWO]])
    assert files(project) == {ONE: "one ä\n", TWO: ""}
    for options in ((), ("--apply",)):
        again = run(plan, *options)
        assert (again.exit_code, lines(again)) == (0, [["unchanged", ONE], ["unchanged", TWO]])
    assert files(project) == {ONE: "one ä\n", TWO: ""}


def test_nothing_is_overwritten_not_even_what_was_left_beside(project: Path) -> None:
    first, second = {ONE: "first\n"}, {ONE: "second\n"}
    run(plan_file(project, {ONE: "mine\n"}), "--apply")
    for number in (1, 2):  # again says the same
        result = run(plan_file(project, first), "--apply")
        assert result.exit_code == 3, number
        assert lines(result) == [["conflict", ONE, "see", f"{ONE}.new"]]
    result = run(plan_file(project, second), "--apply")
    assert lines(result) == [["conflict", ONE, "see", f"{ONE}.new.2"]]
    assert "1 conflict. Take from each .new what you want, then delete it." in result.output
    assert files(project) == {ONE: "mine\n", f"{ONE}.new": "first\n", f"{ONE}.new.2": "second\n"}


def test_what_lies_beside_is_no_part_of_a_release(project: Path) -> None:
    beside = {f"{ONE}.new": "x", f"{TWO}.new.2": "x", f"policies/.{ONE}.0a1b": "x", TWO: "select 1;"}
    run(plan_file(project, beside), "--apply")
    assert set(Tree.read(project).files) == {TWO}


REFUSED = {
    "/etc/policies.sql": "is not relative to the project",
    "../policies/x.sql": "has a part that is empty, . or ..",
    "policies/../../x.sql": "has a part that is empty, . or ..",
    "policies//x.sql": "has a part that is empty, . or ..",
    "policies/./x.sql": "has a part that is empty, . or ..",
    "policies/": "has a part that is empty, . or ..",
    "policies\\x.sql": "is not relative to the project",
    "C:policies/x.sql": "is not relative to the project",
    "policies": "lies outside of migrations/, sql/, policies/, tests/, docs/",
    "api/cli.py": "lies outside of migrations/, sql/, policies/, tests/, docs/",
    ".github/x.yml": "lies outside of migrations/, sql/, policies/, tests/, docs/",
    "Makefile": "lies outside of migrations/, sql/, policies/, tests/, docs/",
    "sql/a\nb.sql": "holds characters that cannot be seen",
}


@pytest.mark.parametrize("path", REFUSED)
def test_paths_that_are_not_ours_are_refused(project: Path, path: str) -> None:
    result = run(plan_file(project, {TWO: "fine", path: "x"}), "--apply")
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [f"{project.parent}/plan.json: actions.1.path: {path!r} {REFUSED[path]}"]
    assert files(project) == {}


@pytest.mark.parametrize("link", ["policies", "sql/app"])
def test_a_link_does_not_lead_out_of_the_project(project: Path, link: str) -> None:
    elsewhere = project.parent / "elsewhere"
    elsewhere.mkdir()
    (project / link).parent.mkdir(exist_ok=True)
    (project / link).symlink_to(elsewhere)
    result = run(plan_file(project, {"docs/fine.md": "x", f"{link}/x.sql": "x"}), "--apply")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"{link}/x.sql: a symbolic link leads out of ")
    assert (files(project), files(elsewhere)) == ({}, {})


def test_a_file_in_the_place_of_a_folder_is_named(project: Path) -> None:
    (project / "sql").mkdir()
    (project / "sql/app").write_text("mine")
    for options in ((), ("--apply",)):
        result = run(plan_file(project, {ONE: "x", TWO: "x"}), *options)
        assert (result.exit_code, result.stderr) == (
            1,
            f"{TWO}: sql/app is a file and no folder, nothing was written\n",
        )
    assert files(project) == {"sql/app": "mine"}


def test_a_link_in_the_place_of_a_file_is_not_written_through(project: Path) -> None:
    (project / "policies").mkdir()
    (project / ONE).symlink_to("nothing.sql")
    assert run(plan_file(project, {ONE: "x"}), "--apply").exit_code == 3
    assert files(project) == {f"{ONE}.new": "x"}


NO_PLANS: dict[str, tuple[dict[str, object], str]] = {
    "of policies": ({"kind": "policies"}, "a plan for policies: apply it with `goldleaves policies apply`"),
    "of something": ({"kind": "pictures"}, 'this is no plan for files: expected "kind": "files", got "pictures"'),
    "of nothing": ({"kind": None}, 'this is no plan for files: expected "kind": "files", got null'),
    "a later version": ({"version": 2}, "version: Input should be 1"),
    "another action": (
        {"actions": [{"action": "delete", "path": ONE, "content": ""}]},
        "actions.0.action: 'delete' Input should be 'create'",
    ),
    "more than we know": ({"mode": "force"}, "mode: 'force' Extra inputs are not permitted"),
    "twice the same": ({"actions": [{"path": ONE, "content": text} for text in "ab"]}, f"names {ONE} more than once"),
}


@pytest.mark.parametrize("name", NO_PLANS)
def test_what_is_no_plan_for_files_is_named(project: Path, name: str) -> None:
    overrides, said = NO_PLANS[name]
    result = run(plan_file(project, overrides=overrides), "--apply")
    assert (result.exit_code, result.stderr) == (1, f"{project.parent}/plan.json: {said}\n")


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "\xff", "[" * 100_000], ids=["nothing", "a list", "half", "bytes", "deep"]
)
def test_a_file_that_is_something_else_is_named(project: Path, text: str) -> None:
    path = project.parent / "plan.json"
    path.write_bytes(text.encode("latin-1"))
    result = run(path)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"{path}: this is no ")
    assert len(result.stderr.splitlines()) == 1


def test_of_two_that_apply_at_once_each_finds_its_content(tmp_path: Path) -> None:
    writers = 4
    for number in range(15):
        root, barrier = tmp_path / str(number), Barrier(writers)

        def work(writer: int, root: Path = root, barrier: Barrier = barrier) -> State:
            plan = plan_of({ONE: f"{writer % 3}" * 20_000})  # two of them say the same
            barrier.wait(10)
            return apply_plan(plan, root, write=True).outcomes[0].state

        with ThreadPoolExecutor(writers) as pool:
            states = list(pool.map(work, range(writers)))
        assert states.count(State.CREATE) == 1
        assert sorted(text[0] for text in files(root).values()) == ["0", "1", "2"]
        assert all(text == text[0] * 20_000 for text in files(root).values())


APPLY = """
import sys
from pathlib import Path
from api.scaffold.files import apply_plan
from api.scaffold.plan import read_plan
apply_plan(read_plan(Path(sys.argv[1])), Path(sys.argv[2]), write=True)
"""


def test_a_kill_leaves_no_half_of_a_file(project: Path) -> None:
    wanted = {f"sql/app/{number}.sql": f"{number} " * 50_000 for number in range(30)}
    plan = plan_file(project, wanted)
    killed = subprocess.Popen([sys.executable, "-c", APPLY, plan, project], cwd=PROJECT)
    assert eventually(lambda: list((project / "sql").rglob("*.sql")), bool)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    left = {path: text for path, text in files(project).items() if not Path(path).name.startswith(".")}
    assert left.items() <= wanted.items()
    run(plan, "--apply")
    assert files(project).items() >= wanted.items()


def test_the_folders_are_there() -> None:
    assert all((PROJECT / folder).is_dir() for folder in FOLDERS)
