"""Which room may enter which, no circle of imports, and who may know of ranks."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


# starts the workers in its own environment with a longer search path: passed on, not read
PASSES_ON = {("pipeline/data/batches/processes.py", "os.environ")}


def names_used(path: Path) -> set[str]:
    """Dotted names of a module: imports, and attributes such as os.environ."""
    used = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            used |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            used |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
        elif isinstance(node, ast.Attribute):
            used.add(ast.unparse(node))
    return used


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("pipeline/model", "torch.distributed"),
        ("pipeline/data", "torch.distributed"),
        ("pipeline/data", "os.environ"),
        ("pipeline/eval", "os.environ"),
    ],
)
def test_ranks_reach_these_as_arguments(folder: str, forbidden: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    guilty = [
        str(path.relative_to(ROOT))
        for path in files
        if any(name == forbidden or name.startswith(f"{forbidden}.") for name in names_used(path))
        and (str(path.relative_to(ROOT)), forbidden) not in PASSES_ON
    ]
    assert guilty == []


# What each room may enter, at most. A room that is not named here is refused.
STAGES = {
    "queries": "",
    "match": "",
    "search": "match",
    "candidates": "",
    "balance": "",
    "crawl": "",
    "curate": "",
    "rebalance": "balance",
    "pack": "",
    "report": "search balance",
}
GROUND = "dataset tables text work config ground"
DATA_TOOLS = {
    **{stage: f"{others} {GROUND}" for stage, others in STAGES.items()},
    "build": f"{' '.join(STAGES)} {GROUND}",
    "plan": f"build match search balance {GROUND}",
    "audit": "dataset tables ground",
    "subset": "dataset tables ground",
    "demo": f"build {GROUND}",
    "dataset": "tables work config ground",
    "tables": "ground",
    "text": "ground",
    "work": "tables config ground",
    "config": "ground",
    "ground": "",
}
PIPELINE_DATA = {
    "keep_probability": "order shards faults",
    "loader": "stream batches samples order shards faults",
    "stream": "batches samples faults",
    "batches": "samples order shards faults",
    "samples": "shards faults",
    "evaluation": "samples shards faults",
    "order": "shards faults",
    "shards": "faults",
    "faults": "",
}
ENTERED_BY_OTHERS = {"data_tools": {"dataset", "ground"}}
"""What other packages may enter of one: pipeline and slurm see finished data sets."""
SUBMITS = {"slurm/jobs.py": {"data_tools.config"}}
"""Composes the data half's job on a login node."""


def imports_of(path: Path, modules: set[str]) -> set[str]:
    """The modules of ours that a file imports, wherever in it; a package only where a name of its
    own is imported."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    found = set()
    for name in names:
        while name and name not in modules:
            name = name.rpartition(".")[0]
        found |= {name} - {""}
    return found


def our_imports() -> dict[str, set[str]]:
    paths = {}
    for package in ("data_tools", "pipeline", "slurm"):
        for path in (ROOT / package).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            paths[name.removesuffix(".__init__")] = path
    return {name: imports_of(path, set(paths)) for name, path in paths.items()}


@pytest.mark.parametrize(
    ("package", "rooms"), [("data_tools", DATA_TOOLS), ("pipeline.data", PIPELINE_DATA)]
)
def test_a_room_enters_what_it_may(package: str, rooms: dict[str, str]) -> None:
    entered = {
        (room(importer, package), room(imported, package))
        for importer, imports in our_imports().items()
        for imported in imports
        if importer.startswith(f"{package}.") and imported.startswith(f"{package}.")
    }
    assert {one for one, _ in entered} <= set(rooms)
    assert [
        f"{one} enters {other}"
        for one, other in sorted(entered)
        if one != other and other not in rooms[one].split()
    ] == []


def room(module: str, package: str) -> str:
    return module.removeprefix(f"{package}.").split(".")[0]


def test_the_lists_of_rooms_have_no_circle() -> None:
    for rooms in (DATA_TOOLS, PIPELINE_DATA):
        lists = {one: set(others.split()) for one, others in rooms.items()}
        assert circle(lists) == []


def test_a_finished_data_set_is_all_that_others_see_of_the_data_half() -> None:
    guilty = []
    for importer, imports in our_imports().items():
        package, path = importer.split(".")[0], f"{importer.replace('.', '/')}.py"
        for imported in imports - SUBMITS.get(path, set()):
            owner = imported.split(".")[0]
            if owner not in (package, imported) and owner in ENTERED_BY_OTHERS:
                if room(imported, owner) not in ENTERED_BY_OTHERS[owner]:
                    guilty.append(f"{importer} imports {imported}")
    assert guilty == []


def test_no_circle_of_imports() -> None:
    assert circle(our_imports()) == []


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """One circle of a graph, or nothing."""
    done: set[str] = set()

    def walk(node: str, path: list[str]) -> list[str]:
        if node in path:
            return path[path.index(node) :]
        if node in done:
            return []
        for other in sorted(arrows.get(node, set()) - {node}):
            found = walk(other, [*path, node])
            if found:
                return found
        done.add(node)
        return []

    for node in sorted(arrows):
        found = walk(node, [])
        if found:
            return found
    return []
