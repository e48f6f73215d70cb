"""Who may import whom; see the design: the contract names no runtime, runtimes know only leaves."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from runtimes import catalog
from testing.repository import REPOSITORY

# What handles requests. Everything else in cpi/ is a leaf that runtimes may use.
CONTRACT = {
    "cpi.documents",
    "cpi.main",
    *(
        f"cpi.{folder}.{path.stem}"
        for folder in ("contract", "client", "service")
        for path in (REPOSITORY / "cpi" / folder).glob("[a-z]*.py")
    ),
}

RUNTIMES = sorted(path.name for path in (REPOSITORY / "runtimes").iterdir() if path.is_dir())


def sources(folder: str) -> list[Path]:
    """Return a package's source files, generated ones aside."""
    found = sorted((REPOSITORY / folder).rglob("*.py"))
    return [path for path in found if "api" not in path.relative_to(REPOSITORY).parts]


def imports(path: Path) -> Iterator[str]:
    """Yield every module that a file imports, at any level, as dotted names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            yield node.module
            # `from cpi import cid` imports a module, `from cpi.cid import VM` a name.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def top(module: str) -> str:
    return module.split(".")[0]


@pytest.mark.parametrize("path", sources("cpi"), ids=lambda path: path.name)
def test_the_contract_knows_the_registry_alone(path: Path) -> None:
    used = {name for name in imports(path) if top(name) in ("runtimes", "stemcell_convert")}
    # The operator's commands convert stemcells, and both kinds of disks are read alike.
    if path.parent.name in ("commands", "disks"):
        used = {name for name in used if top(name) != "stemcell_convert"}
    assert used <= {"runtimes", "runtimes.catalog"}
    text = path.read_text().lower().replace("bosh-containerd-cpi", "")
    assert not [name for name in catalog.REGISTRY if name in text]


@pytest.mark.parametrize("path", sources("runtimes"), ids=lambda path: path.name)
def test_runtimes_know_leaves_and_not_each_other(path: Path) -> None:
    """What lies in runtimes/ itself is shared by all, and knows none."""
    used = set(imports(path))
    assert not used & CONTRACT
    _, *folders = path.relative_to(REPOSITORY).parent.parts
    others = {name.split(".")[1] for name in used if name.startswith("runtimes.")} & set(RUNTIMES)
    assert others <= set(folders[:1])


def test_leaves_do_not_import_the_contract() -> None:
    allowed = {
        "cpi.config.load": {"cpi.documents"},
        "cpi.commands.host_checks": {
            "cpi.service.ownership",
            "cpi.service.policy",
            "cpi.service.sockets",
        },
        "cpi.commands.serve": {"cpi.service.serve"},
        "cpi.upkeep.garbage_collection": {"cpi.service.ownership"},
    }
    for path in sources("cpi"):
        module = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
        if module not in CONTRACT:
            assert set(imports(path)) & CONTRACT <= allowed.get(module, set()), path


def test_stemcell_convert_stands_alone() -> None:
    for path in sources("stemcell_convert"):
        assert not {top(name) for name in imports(path)} & {"cpi", "runtimes", "grpc"}, path


@pytest.mark.parametrize(
    ("foreign", "file"),
    [("grpc", "runtimes/containerd/client.py"), ("libvirt", "runtimes/libvirt/client.py")],
)
def test_one_file_imports(foreign: str, file: str) -> None:
    files = [path for folder in ("cpi", "runtimes", "stemcell_convert") for path in sources(folder)]
    users = {
        path.relative_to(REPOSITORY) for path in files if foreign in {top(n) for n in imports(path)}
    }
    assert users == {Path(file)}


@pytest.mark.parametrize("package", ["runtimes", "stemcell_convert"])
def test_no_module_imports_itself_through_others(package: str) -> None:
    """Neither inside functions nor for type checkers: what is in a circle is one module."""
    modules = {
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts): set(imports(path))
        for path in sources(package)
    }
    TopologicalSorter({name: used & modules.keys() for name, used in modules.items()}).prepare()


def test_packages_are_empty() -> None:
    """Importing a package must not load its modules."""
    for folder in ("cpi", "runtimes", "stemcell_convert"):
        for path in sources(folder):
            if path.name == "__init__.py":
                assert ast.parse(path.read_text()).body in ([],) or ast.get_docstring(
                    ast.parse(path.read_text())
                ), path


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Imports inside functions and under TYPE_CHECKING count: they hide a cycle, they open none."""
    paths = [*sources("cpi"), REPOSITORY / "runtimes" / "catalog.py"]
    modules = {".".join(path.relative_to(REPOSITORY).with_suffix("").parts): path for path in paths}
    graph = {name: set(imports(path)) & set(modules) - {name} for name, path in modules.items()}
    while leaves := [name for name, used in graph.items() if not used & set(graph)]:
        for name in leaves:
            del graph[name]
    assert sorted(graph) == []
