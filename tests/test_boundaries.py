"""Which rooms (folders) may import which, that nothing imports in a circle, and names."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from runtimes import catalog
from testing.repository import REPOSITORY

PRODUCT = ("cpi", "runtimes", "stemcell_convert")
TREES = (*PRODUCT, "testing", "bench", "demo", "tools", "tests")

# What a room may import in addition to itself. A room is a folder with the folders below it, unless
# these have their own rows.
LEAVES = ("cpi", "cpi/cni", "cpi/config", "cpi/disks", "cpi/host")
MAY_IMPORT = {
    # The entry point, and what everything else is built on.
    "cpi": ("cpi/client", "cpi/config", "cpi/contract"),
    "cpi/client": ("cpi",),
    "cpi/config": ("cpi", "runtimes"),
    "cpi/host": ("cpi", "cpi/config"),
    "cpi/cni": ("cpi", "cpi/config", "cpi/host"),
    "cpi/disks": ("cpi", "cpi/config", "cpi/host", "stemcell_convert"),
    # The contract reaches runtimes by the catalog, which names them as text.
    "cpi/contract": (*LEAVES, "runtimes"),
    "cpi/service": (*LEAVES, "cpi/client", "cpi/contract", "cpi/upkeep", "runtimes"),
    "cpi/upkeep": (*LEAVES, "cpi/service", "runtimes"),
    "cpi/setup": (*LEAVES, "cpi/service", "cpi/upkeep", "runtimes"),
    "cpi/commands": (
        *LEAVES,
        "cpi/contract",
        "cpi/service",
        "cpi/setup",
        "cpi/upkeep",
        "runtimes",
        "stemcell_convert",
    ),
    # Runtimes know neither the contract nor each other.
    "runtimes": ("cpi", "cpi/config", "cpi/disks", "cpi/host", "stemcell_convert"),
    "runtimes/containerd": (*LEAVES, "runtimes", "stemcell_convert"),
    "runtimes/libvirt": (*LEAVES, "runtimes", "stemcell_convert"),
    "stemcell_convert": (),
}


@cache
def sources() -> dict[str, Path]:
    """Return every module of the checkout except generated ones, with its file."""
    modules = {}
    for tree in TREES:
        for path in sorted((REPOSITORY / tree).rglob("*.py")):
            relative = path.relative_to(REPOSITORY)
            if "api" not in relative.parts and "stemcell_files" not in relative.parts:
                name = ".".join(relative.with_suffix("").parts)
                modules[name.removesuffix(".__init__")] = path
    return modules


@cache
def imports(module: str) -> frozenset[str]:
    """Return all names that a module imports, at any level, as dotted names."""
    path, names = sources()[module], set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            # `from cpi import cid` imports a module, `from cpi.cid import VM` a name of one.
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


@cache
def imported_modules(module: str) -> frozenset[str]:
    """Return the modules of the checkout that a module imports."""
    known = sources()
    names = {name if name in known else name.rpartition(".")[0] for name in imports(module)}
    return frozenset(names & set(known))


def room_of(module: str) -> str:
    """Return the room that a module is in: the innermost folder that has a row."""
    folder = sources()[module].relative_to(REPOSITORY).parent
    return next(str(room) for room in (folder, *folder.parents) if str(room) in MAY_IMPORT)


def product() -> list[str]:
    return [module for module in sources() if module.split(".")[0] in PRODUCT]


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_rooms_import_what_they_may(room: str) -> None:
    modules = [module for module in product() if room_of(module) == room]
    assert modules, "there is no such room"
    wrong = [
        f"{module} imports {other}"
        for module in modules
        for other in imported_modules(module)
        if room_of(other) not in (room, *MAY_IMPORT[room])
    ]
    assert not wrong


def test_nothing_imports_in_a_circle() -> None:
    """Neither at the top, nor in a function, nor only for types."""
    assert not circles({module: imported_modules(module) for module in sources()})


def circles(graph: dict[str, frozenset[str]]) -> list[str]:
    """Return a circle through each module that is in one."""
    paths = []
    for start in graph:
        came_from = {start: ""}
        waiting = [start]
        while waiting:
            module = waiting.pop()
            for other in sorted(graph[module]):
                if other == start:
                    path = [start, module]
                    while came_from[path[-1]]:
                        path.append(came_from[path[-1]])
                    paths.append(" <- ".join(path))
                    waiting.clear()
                    break
                if other not in came_from:
                    came_from[other] = module
                    waiting.append(other)
    return paths


def test_circles_are_found() -> None:
    nothing: frozenset[str] = frozenset()
    graph = {"a": frozenset("b"), "b": frozenset("c"), "c": frozenset("a"), "d": nothing}
    assert len(circles(graph)) == 3
    assert not circles({"a": frozenset("b"), "b": nothing})


@pytest.mark.parametrize("module", [name for name in sources() if name.startswith("cpi.")])
def test_cpi_names_no_runtime(module: str) -> None:
    text = sources()[module].read_text().lower().replace("bosh-containerd-cpi", "")
    assert not [name for name in catalog.REGISTRY if name in text]


@pytest.mark.parametrize(
    ("foreign", "file"),
    [("grpc", "runtimes/containerd/client.py"), ("libvirt", "runtimes/libvirt/client.py")],
)
def test_one_file_imports(foreign: str, file: str) -> None:
    users = {
        str(sources()[module].relative_to(REPOSITORY))
        for module in product()
        if foreign in {name.split(".")[0] for name in imports(module)}
    }
    assert users == {file}


def test_packages_are_empty() -> None:
    """Importing a package must not load its modules."""
    for path in sources().values():
        if path.name == "__init__.py":
            assert not ast.parse(path.read_text()).body, path


def test_class_names_are_unique() -> None:
    """No two classes of a package share a name; each runtime is a package."""
    places: dict[tuple[str, str], list[str]] = defaultdict(list)
    for module in product():
        parts = module.split(".")
        package = ".".join(parts[:2]) if parts[0] == "runtimes" and len(parts) > 2 else parts[0]
        for node in ast.walk(ast.parse(sources()[module].read_text())):
            if isinstance(node, ast.ClassDef):
                places[package, node.name].append(module)
    assert not {name: modules for name, modules in places.items() if len(modules) > 1}


def test_file_names_are_unique() -> None:
    """A name says what is in the file without its folder, with three exceptions.

    Runtimes have files of the same names, and `runtime.py` implements cpi/runtime.py; a file
    directly in cpi/commands has the name of its command.
    """
    places: dict[str, set[str]] = defaultdict(set)
    for module in product():
        path = sources()[module].relative_to(REPOSITORY)
        if path.name != "__init__.py" and str(path.parent) != "cpi/commands":
            places[path.name].add(str(_place_of(path)))
    assert not {name: folders for name, folders in places.items() if len(folders) > 1}


def _place_of(path: Path) -> Path:
    """Return a file's folder, the same for both runtimes and the interface that they implement."""
    is_runtimes = len(path.parts) == 3 and path.parts[0] == "runtimes"
    return Path("cpi") if is_runtimes else path.parent


def long_files() -> Iterator[str]:
    for module, path in sources().items():
        lines = len(path.read_text().splitlines())
        if lines > 400:
            yield f"{module}: {lines} lines"


def test_files_are_short() -> None:
    assert not list(long_files())
