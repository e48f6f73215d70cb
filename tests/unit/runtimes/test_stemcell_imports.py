"""Which folders of imports are garbage."""

from pathlib import Path

from cpi.host.layout import Layout
from runtimes.stemcell_imports import import_lock, killed_imports

KEY = "0123456789abcdef" * 4


def test_folders_of_killed_imports(tmp_path: Path) -> None:
    """Also those of a version that had no runtime in their names, and its locks."""
    layout = Layout(tmp_path, tmp_path)
    for name in (f"one-{KEY}", f"two-{KEY[:40]}", KEY, KEY[:31], "one-x", f"one-two-{KEY}"):
        (layout.imports / name).mkdir(parents=True)

    def garbage(runtime: str, **options: bool) -> dict[str, str]:
        items = killed_imports(layout, runtime, **options)
        return {Path(item.name).name: item.lock for item in items}

    assert garbage("one") == {f"one-{KEY}": import_lock("one", KEY)}
    assert garbage("two") == {f"two-{KEY[:40]}": import_lock("two", KEY[:40])}
    old = {KEY: f"import-{KEY[:32]}"}
    assert garbage("one", unprefixed=True) == garbage("one") | old
    for item in killed_imports(layout, "one", unprefixed=True):
        item.remove()
    assert sorted(path.name for path in layout.imports.iterdir()) == sorted(
        [KEY[:31], "one-x", f"one-two-{KEY}", f"two-{KEY[:40]}"]
    )
