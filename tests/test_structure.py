"""The rules of the house (ARCHITECTURE.md) that can be read off the code itself."""

import ast
import re
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

ROOMS = {"main", "engine", "model", "sources", "shard_cache"}
MAY_IMPORT = {
    "main": {"engine"},
    "engine": {"engine", "model", "sources"},
    "model": {"model"},
    "sources": {"sources", "shard_cache"},
    "shard_cache": {"shard_cache"},
}


def files() -> list[Path]:
    return [
        REPOSITORY / "main.py",
        *(p for room in sorted(ROOMS - {"main"}) for p in (REPOSITORY / room).rglob("*.py")),
    ]


def imports(tree: ast.AST) -> list[tuple[ast.stmt, str]]:
    """Every import statement with the top-level package it names."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node, alias.name.split(".")[0]) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            found.append((node, node.module.split(".")[0]))
    return found


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_imports_run_downhill(path: Path):
    room = path.relative_to(REPOSITORY).parts[0].removesuffix(".py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node, package in imports(tree):
        assert package not in ROOMS or package in MAY_IMPORT[room], f"{path}:{node.lineno} imports {package}"


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_own_rooms_are_imported_at_the_top(path: Path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = set(map(id, tree.body))
    late = [node.lineno for node, package in imports(tree) if package in ROOMS and id(node) not in top]
    assert not late, f"{path} imports its own rooms inside a function at lines {late}"


def test_main_is_short_and_has_no_flags():
    text = (REPOSITORY / "main.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 60
    packages = {package for _, package in imports(ast.parse(text))}
    assert not packages & {"argparse", "click", "typer", "fire", "getopt", "optparse"}


def test_every_module_says_what_it_is_for():
    silent = [path for path in files() if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))]
    assert not silent


@pytest.mark.parametrize("page", ["README.md", "ARCHITECTURE.md"])
def test_the_tree_names_every_file(page: str):
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    tree = text[text.index("```\nmain.py ") :].split("```")[1]
    folders = ("engine", "model", "sources", "shard_cache")
    there = {p.name for folder in folders for p in (REPOSITORY / folder).glob("*.py")} - {"__init__.py"} | {"main.py"}
    named = set(re.findall(r"\b(\w+\.py)\b", tree)) - {"test_loop.py", "loop.py"} | {"loop.py"}
    assert named == there
