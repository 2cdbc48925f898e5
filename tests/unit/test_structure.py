"""The rules of the house (ARCHITECTURE.md) that can be read off the code itself."""

import ast
import re
from collections import Counter
from collections.abc import Iterable
from importlib.metadata import packages_distributions

import pytest

from benchmarks.house import measure
from tests.helpers.imports import IMPORTS, PATHS, SOURCES, TREES, reachable, third_party
from tests.helpers.text import REPOSITORY

ROOMS = {"main", "engine", "model", "sources", "shard_cache", "storage"}
MAY_IMPORT = {
    "main": {"engine"},
    "storage": {"storage"},
    "engine": {"engine", "model", "sources", "storage"},
    "model": {"model"},
    "sources": {"sources", "shard_cache", "storage"},
    "shard_cache": {"shard_cache", "storage"},
}
SHOWS_THE_SCREEN = ("main.py", "engine/launch.py", "engine/training.py", "engine/run/setup.py", "engine/screen/")
AFTER_THE_FIRST_SCREEN = {  # what takes seconds to import, where it is imported
    "main.py": {"engine.launch"},
    "engine/screen/menu/states.py": {"sources.registry", "sources.rows.tokenizer"},
}
ONE_FILE_WITH_DEEPSPEED = "engine/device/deepspeed_engine.py"
FLOORS_OF_SOURCES = (  # a file imports from its own floor and those before it
    ("sources/source.py", "sources/redact.py", "sources/retries.py", "sources/readers/fields.py"),
    ("sources/readers/hub/endpoint.py", "sources/readers/hub/client.py"),
    ("sources/config.py",),
    ("sources/readers/",),
    ("sources/rows/",),
    ("sources/amounts.py", "sources/caching.py", "sources/decontamination.py"),
    ("sources/held_out.py", "sources/registry.py"),
    ("sources/loading/",),
)
SHAPE = measure(REPOSITORY)
FILES_IN_A_FOLDER, LINES_OF_A_FILE, ARGUMENTS_OF_A_CONSTRUCTOR, METHODS_OF_A_CLASS = 12, 350, 6, 12
LETTERS_OF_A_TEST = 65

# Where a file's tests stand when they are not in tests/unit/<its folder>/test_<its name>.py.
TESTED_ELSEWHERE = {
    "main.py": "tests/integration/test_main.py, as a process",
    "engine/launch.py": "tests/integration/test_main.py, as a process",
    "engine/checkpoint/names.py": "names: wherever a snapshot is written or read",
    "engine/errors.py": "exceptions and their exit statuses: wherever they are raised",
    "model/decoding/planning/choice.py": "named tuples: test_router.py and test_planner.py of its folder",
    "model/export/errors.py": "an exception: wherever it is raised",
    "model/tensors.py": "named tuples of tensors: whatever makes and reads them",
    "sources/loading/worker.py": "the process of prefetch.py, tested through it",
    "sources/readers/pdf/process.py": "the process of sandbox.py, tested through it",
    "sources/source.py": "a protocol: every reader's tests",
}
# Test files of a whole room, not of one file.
TESTS_OF_A_ROOM = {
    "tests/unit/test_structure.py",
    "tests/unit/test_words.py",
    "tests/unit/test_docs.py",
    "tests/unit/model/test_architecture.py",
    "tests/unit/model/test_segments.py",
    "tests/unit/model/latent/test_alignment.py",
}


def check(found: Iterable[str]) -> None:
    """Nothing breaks a rule."""
    problems = sorted(found)
    assert not problems, "\n".join(problems)


def room(path: str) -> str:
    return path.split("/")[0].removesuffix(".py")


def floor(path: str) -> int | None:
    """The number of a source file's floor in FLOORS_OF_SOURCES."""
    return next((number for number, names in enumerate(FLOORS_OF_SOURCES) if path.startswith(names)), None)


# Imports


def test_imports_run_downhill():
    check(
        (
            f"{path} imports {one.module}"
            for path, imports in IMPORTS.items()
            for one in imports
            if one.package in ROOMS - MAY_IMPORT[room(path)]
        ),
    )


def test_own_rooms_are_imported_at_the_top():
    check(
        (
            f"{path} imports {one.module} within a function"
            for path, imports in IMPORTS.items()
            for one in imports
            if one.package in ROOMS and not one.top and one.module not in AFTER_THE_FIRST_SCREEN.get(path, ())
        ),
    )


def test_the_screen_is_imported_by_main_and_setup_alone():
    check(
        (
            f"{path} imports {one.module}"
            for path, imports in IMPORTS.items()
            for one in imports
            if one.module.startswith("engine.screen") and not path.startswith(SHOWS_THE_SCREEN)
        ),
    )


def test_one_file_imports_deepspeed():
    check(
        (path for path in SOURCES if "deepspeed" in third_party(path) and path != ONE_FILE_WITH_DEEPSPEED),
    )


def test_checkpoints_know_neither_deepspeed_nor_sources():
    check(
        {
            f"{by} imports {module}, and {path} reaches it"
            for path in SOURCES
            if path.startswith("engine/checkpoint/")
            for module, by in reachable(path).items()
            # The event log keeps secrets out of metrics.jsonl by sources.redact, which reads no source.
            if module.split(".")[0] in ("deepspeed", "sources") and room(by) != "sources" and module != "sources.redact"
        },
    )


def test_sources_are_built_in_floors():
    assert {path for path in SOURCES if room(path) == "sources" and floor(path) is None} <= {"sources/__init__.py"}
    found = set()
    for path, imports in IMPORTS.items():
        own = floor(path)
        targets = {PATHS[one.module] for one in imports if one.module in PATHS}
        found |= {
            f"{path} imports {target}"
            for target in targets
            if own is not None and (above := floor(target)) is not None and above > own
        }
    check(found)


def test_model_imports_itself_by_relative_names_alone():
    """So that it can be installed under another name."""
    check(
        (
            f"{path} imports {one.module}"
            for path, imports in IMPORTS.items()
            for one in imports
            if room(path) == "model" and one.package == "model" and not one.relative
        ),
    )


def test_the_trunk_takes_one_name_from_the_lookahead_core():
    names = [
        f"{one.module}.{name}"
        for one in IMPORTS["model/transformer.py"]
        if one.module.startswith("model.latent")
        for name in one.names or ("*",)
    ]
    check(names if len(names) > 1 else ())


def test_no_module_is_imported_in_a_circle():
    circular = set()
    for path in SOURCES:
        circular |= {path for module in reachable(path) if PATHS.get(module) == path}
    check(circular)


def test_what_is_imported_is_declared_and_the_reverse():
    lines = (REPOSITORY / "requirements.txt").read_text(encoding="utf-8").splitlines()
    declared = {distribution(re.split(r"[\[<>=~!; ]", line)[0]) for line in lines if re.match(r"[A-Za-z]", line)}
    owners = packages_distributions()
    imported = {package for path in SOURCES for package in third_party(path)}
    imported = {distribution(owners[package][0]) if package in owners else package for package in imported}
    come_along = {"triton"}  # with torch where there is a GPU
    extras = {"trackio", "wandb"}  # of pyproject.toml, imported where a preset asks for them
    missing, unused = imported - declared - come_along - extras, declared - imported
    check([f"{name} is not declared" for name in missing] + [f"{name} is not imported" for name in unused])


def distribution(name: str) -> str:
    return name.lower().replace("_", "-")


@pytest.mark.parametrize("folder", ["tests", "benchmarks"])
def test_tests_are_imported_from_helpers_and_faults_alone(folder: str):
    pattern = re.compile(r"^\s*(?:from|import) (tests\.(?!helpers\b|faults\b)[\w.]+)", re.MULTILINE)
    check(
        (
            f"{path.relative_to(REPOSITORY)} imports {module}"
            for path in (REPOSITORY / folder).rglob("*.py")
            for module in pattern.findall(path.read_text(encoding="utf-8"))
        ),
    )


# Sizes


@pytest.mark.parametrize(
    ("rule", "sizes", "limit"),
    [
        ("files", SHAPE.folders, FILES_IN_A_FOLDER),
        ("lines", SHAPE.lines, LINES_OF_A_FILE),
        ("arguments", SHAPE.constructors, ARGUMENTS_OF_A_CONSTRUCTOR),
        ("methods", SHAPE.methods, METHODS_OF_A_CLASS),
    ],
    ids=["files of a folder", "lines of a file", "arguments of a constructor", "methods of a class"],
)
def test_nothing_is_too_large(rule: str, sizes: Counter[str], limit: int):
    check((f"{place} has {size} {rule}" for place, size in sizes.items() if size > limit))


def test_a_whole_preset_is_taken_apart_in_setup():
    check(SHAPE.whole_presets)


def test_main_is_short_and_has_no_flags():
    assert len(SOURCES["main.py"].splitlines()) < 60
    packages = {one.package for one in IMPORTS["main.py"]}
    assert not packages & {"argparse", "click", "typer", "fire", "getopt", "optparse"}


# Words about files


def test_every_module_says_what_it_is_for():
    check((path for path, tree in TREES.items() if not ast.get_docstring(tree)))


def test_every_file_has_its_tests_where_one_looks_for_them():
    source_files = {path for path in SOURCES if not path.endswith("__init__.py")}
    test_files = {
        path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "tests" / "unit").rglob("test_*.py")
    }
    mirrored = {f"tests/unit/{folder(path)}test_{path.rpartition('/')[2]}": path for path in source_files}
    untested = {path for test, path in mirrored.items() if test not in test_files} - TESTED_ELSEWHERE.keys()
    homeless = test_files - mirrored.keys() - TESTS_OF_A_ROOM
    check([f"{path} has no tests" for path in untested] + [f"{path} tests no file" for path in homeless])
    assert TESTED_ELSEWHERE.keys() <= source_files and test_files >= TESTS_OF_A_ROOM


def folder(path: str) -> str:
    head, slash, _ = path.rpartition("/")
    return head + slash


def drawn_files(text: str) -> set[str]:
    """The Python files that the tree in ARCHITECTURE.md names: the indented block that begins with main.py."""
    (tree,) = [block for block in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL) if block.startswith("main.py")]
    found, above = set(), {}
    for line in tree.splitlines():
        indent = len(line) - len(line.lstrip())
        here = "".join(name for depth, name in sorted(above.items()) if depth < indent)
        for name in re.match(r"\s*((?:[\w./]+(?:\.py|/)(?:\s+|$))*)", line).group(1).split():
            if name.endswith("/"):
                above = {depth: kept for depth, kept in above.items() if depth < indent} | {indent: name}
                here += name
            else:
                found.add(here + name)
    return found


def test_the_tree_in_architecture_names_every_file():
    drawn = drawn_files((REPOSITORY / "ARCHITECTURE.md").read_text(encoding="utf-8"))
    files = {path for path in SOURCES if not path.endswith("__init__.py")}
    check({f"missing: {path}" for path in files - drawn} | {f"gone: {path}" for path in drawn - files})


def test_the_tree_is_drawn_once():
    pages = [REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("**/*.md")]
    entry = re.compile(r"^\s*[\w./]+\.py {2,}\w", re.MULTILINE)
    check(path.name for path in pages if len(entry.findall(path.read_text(encoding="utf-8"))) > 2)


def test_names_of_tests_can_be_typed():
    name = re.compile(r"^ *(?:async )?def (test_\w+)", re.MULTILINE)
    texts = {path: path.read_text(encoding="utf-8") for path in (REPOSITORY / "tests").rglob("test_*.py")}
    names = [(path.relative_to(REPOSITORY).as_posix(), found) for path in texts for found in name.findall(texts[path])]
    check((f"{path}: {found}" for path, found in names if len(found) > LETTERS_OF_A_TEST))
