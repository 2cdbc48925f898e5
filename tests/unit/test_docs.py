"""What the documents promise about the code, as far as it can be read off both."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from engine import Preset
from engine.errors import RunError
from tests.helpers.text import REPOSITORY

README = REPOSITORY / "README.md"
ARCHITECTURE = REPOSITORY / "ARCHITECTURE.md"
LOG = REPOSITORY / "benchmarks" / "LOG.md"
DOCS = REPOSITORY / "docs"
PAGES = [README, ARCHITECTURE, REPOSITORY / "CONTRIBUTING.md", REPOSITORY / "CHANGELOG.md", LOG, *DOCS.glob("*.md")]
CODE = ["main.py", "storage.py", "engine", "model", "sources", "shard_cache"]
LINK = re.compile(r"(?<!!)\[[^]]*\]\(([^)\s]+)\)|!\[[^]]*\]\(([^)\s]+)\)")


def without_code(text: str) -> str:
    """A page without what stands in fences."""
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The names that a link may give after a #, as GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", without_code(page.read_text(encoding="utf-8")), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def rows(page: Path, section: str) -> Iterator[list[str]]:
    """The cells of the tables under a heading, without the tables' own first two lines."""
    text = page.read_text(encoding="utf-8")
    body = re.split(rf"^## {re.escape(section)}$", text, flags=re.MULTILINE)[1].split("\n## ")[0]
    for table in re.findall(r"(?:^\|.*\n)+", body, flags=re.MULTILINE):
        for line in table.splitlines()[2:]:
            yield [cell.strip() for cell in line.strip("|").split(" | ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    for found in LINK.findall(without_code(page.read_text(encoding="utf-8"))):
        address = found[0] or found[1]
        if "://" in address:
            continue
        path, _, anchor = address.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name} links to {address}"
        assert not anchor or anchor in anchors(target), f"{page.name} links to {address}"


def test_readme_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("section", ["model", "train", "data", "auxiliary"])
def test_presets_page_lists_every_key_and_default(section: str):
    config = getattr(Preset(name="defaults"), section)
    assert isinstance(config, BaseModel)
    defaults = config.model_dump(mode="json")
    if section == "data":
        defaults["sources"] = ["wikipedia"]  # the page has the built-in name, not what it stands for
    listed = {cells[0].strip("`"): json.loads(cells[1]) for cells in rows(DOCS / "presets.md", section) if cells[1]}
    assert listed == defaults


def test_survival_page_lists_every_exit_status():
    listed = {int(number) for cells in rows(DOCS / "survival.md", "Exit statuses") for number in cells[0].split(",")}
    assert listed == {0, 1, 129, 130, 143} | {kind.status for kind in RunError.__subclasses__()}


def test_quoted_messages_are_what_the_code_says():
    """The rows of troubleshooting.md quote messages, with dots for what differs."""
    said = "\n".join(texts())
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = [
        cell
        for line in page.splitlines()
        if line.startswith("| `")
        for cell in re.findall(r"`([^`]+)`", line.split(" | ")[0])
    ]
    assert quoted
    missing = [part for message in quoted for part in map(str.strip, message.split("...")) if part not in said]
    assert not missing


def texts() -> Iterator[str]:
    """Every string in the code; an f-string's parts one by one."""
    for source in code().values():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def code() -> dict[Path, str]:
    """The text of each file of the code."""
    roots = [REPOSITORY / name for name in CODE]
    files = [file for root in roots for file in ([root] if root.is_file() else root.rglob("*.py"))]
    return {file: file.read_text(encoding="utf-8") for file in files}


@pytest.mark.parametrize("page", [ARCHITECTURE, DOCS / "internals.md"], ids=lambda page: page.name)
def test_names_in_the_text_are_in_the_code(page: Path):
    """What stands in backticks and looks like the name of a Python file or, by an underscore or a capital, in one."""
    sources = code()
    said = "\n".join(sources.values())
    files = [path.relative_to(REPOSITORY).as_posix() for path in (*sources, *REPOSITORY.glob("tests/**/*.py"))]
    for name in re.findall(r"`([A-Za-z_][\w./]*)`", without_code(page.read_text(encoding="utf-8"))):
        if name.endswith(".py"):
            assert any(f"/{file}".endswith(f"/{name}") for file in files), f"there is no {name}"
        elif re.search(r"[_A-Z]", name):
            assert name.strip("/").split(".")[-1] in said, f"{name} is not in the code"


def test_the_log_has_an_index_of_all_entries():
    text = LOG.read_text(encoding="utf-8")
    index = text.split("\n## ")[1]
    assert index.startswith("Index")
    linked = set(re.findall(r"\(#([^)]+)\)", index))
    assert linked == anchors(LOG) - {"log-of-measurements", "index"}
