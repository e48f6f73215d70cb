"""The benchmark's arithmetic."""

from pathlib import Path

import pytest
from rich.console import Console

from bench import bench_calls
from bench.figures import (
    DOCKER,
    GOALS,
    WARDEN,
    Import,
    Samples,
    Spread,
    calls_table,
    imports_of,
    imports_table,
    range_text,
    ratio,
    stemcell_table,
)

IMPORTTIME = """\
import time: self [us] | cumulative | imported package
import time:       170 |        170 |   _io
import time:      1200 |       1370 | io
a line of the program's own log
import time:       400 |        400 |       grpc._cython.cygrpc
"""


def printed(table: object) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_spread_of_odd_even_and_single() -> None:
    assert Spread.of([30, 10, 20]) == Spread(10, 20, 30)
    assert Spread.of([10, 40, 20, 30]) == Spread(10, 25, 40)
    assert Spread.of([5]) == Spread(5, 5, 5)


def test_ratio_is_to_the_minimum_of_the_peer() -> None:
    assert ratio("create_vm", 350) == 0.5
    assert ratio("create_disk", 350) is None


def test_goals_and_warden_are_for_calls_that_docker_has() -> None:
    assert set(GOALS) <= set(DOCKER)
    assert set(WARDEN) <= set(DOCKER)
    assert all(low <= high for low, high in DOCKER.values())


def test_range_text() -> None:
    assert range_text(6, 6) == "6"
    assert range_text(7600, 15000) == "7600-15000"


def test_imports_are_sorted_and_other_lines_ignored() -> None:
    assert imports_of(IMPORTTIME) == [
        Import("io", 1.2, 1.37),
        Import("grpc._cython.cygrpc", 0.4, 0.4),
        Import("_io", 0.17, 0.17),
    ]


def test_imports_table_keeps_the_slowest_and_sums_all() -> None:
    text = printed(imports_table({"info": imports_of(IMPORTTIME)}, 1, None))
    assert "io" in text
    assert "cygrpc" not in text
    assert "all 3 modules" in text
    assert "1.8" in text


def test_calls_table_compares_and_judges() -> None:
    samples = Samples.none()
    for wall in (100.0, 300.0, 200.0):
        samples.add("create_vm", wall, wall / 2)
        samples.add("attach_disk", wall, wall / 2)
        samples.add("agent answers", wall, None)
    lines = printed(calls_table(samples, None)).splitlines()
    assert lines[1].split() == "create_vm 200 100 300 100 700-900 2850 0.29 0.5 met".split()  # noqa: SIM905
    assert lines[2].split()[-2:] == ["0.1", "missed"]
    assert lines[3].split() == ["agent", "answers", "200", "100", "300"]


def test_document_has_every_value_and_no_cpu_of_what_is_waited_for() -> None:
    samples = Samples.none()
    samples.add("info", 20.04, 15)
    samples.add("agent answers", 500, None)
    document = samples.document()
    assert document["info"]["wall_ms_all"] == [20.0]
    assert document["info"]["cpu_ms"]["median"] == 15
    assert document["agent answers"]["cpu_ms"] is None


def test_stemcell_table() -> None:
    runs = [{"wall": 1000.0, "cpu": 900.0, "daemon": 100.0}]
    text = printed(stemcell_table({"ours": runs, "theirs": runs}, None))
    assert text.splitlines()[1].split() == ["ours", "1000", "1000", "1000", "900", "100"]


def test_addresses_never_collide() -> None:
    addresses = [bench_calls._address(number) for number in range(1000)]
    assert len(set(addresses)) == 1000
    assert not [address for address in addresses if address.endswith((".0", ".255"))]


def test_folders(tmp_path: Path) -> None:
    assert bench_calls.folders(None) == (None, None)
    assert bench_calls.folders(tmp_path) == (tmp_path, None)
    (tmp_path / "bin").mkdir()
    (tmp_path / "cni").mkdir()
    assert bench_calls.folders(tmp_path) == (tmp_path / "bin", tmp_path / "cni")
    assert bench_calls.folders(tmp_path / "bin") == (tmp_path / "bin", tmp_path / "cni")


def test_runs_must_be_positive(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench_calls.parse(["--runs", "0"])
    assert "--runs" in capsys.readouterr().err
