"""What the benchmark of stemcells makes, computes and prints."""

import io
import tarfile
from pathlib import Path

import pytest
from rich.console import Console

from bench import bench_stemcells, stemcell_images
from bench.stemcell_figures import (
    Grown,
    Race,
    Rival,
    Taken,
    by_what,
    growth_lines,
    growth_table,
    race_table,
    share,
    verdict,
)

RACE = Race(
    "a title",
    "ours",
    (Rival("slow", 1.5), Rival("fast", 1.0), Rival("other", None)),
    {
        "ours": [Taken(2, 1, 0, 30), Taken(9, 1, 0, 50)],
        "slow": [Taken(4, 2, 1, 20)],
        "fast": [Taken(1.6, 2, 1, 20)],
        "other": [Taken(1, 2, 1, 20)],
    },
)
ROWS = [
    Grown("create", 1000_000_000, 2_000_000_000, 60000, 25, 190),
    Grown("create", 100_000_000, 200_000_000, 6000, 2, 60),
    Grown("convert", 100_000_000, 200_000_000, 6000, 1, 201),
]


def printed(table: object) -> list[list[str]]:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table)
    return [line.split() for line in capture.get().splitlines()]


def test_the_best_runs_are_compared() -> None:
    assert share(RACE, "slow") == 0.5
    assert share(RACE, "fast") == 1.25


def test_verdict() -> None:
    assert verdict(1.5, 1.5) == "1.5 met"
    assert verdict(1.01, 1.0) == "1 missed"


def test_race_table() -> None:
    lines = printed(race_table(RACE, None))
    assert lines[1] == "ours 2.00 5.50 9.00 1.00 0.00 50".split()  # noqa: SIM905
    assert lines[2][-3:] == ["0.50", "1.5", "met"]
    assert lines[3][-3:] == ["1.25", "1", "missed"]
    assert lines[4][-1] == "2.00"


def test_growth_table_goes_from_small_to_large() -> None:
    assert [row.size for row in by_what(ROWS)["create"]] == [100_000_000, 1000_000_000]
    lines = printed(growth_table(ROWS, None))
    assert lines[1] == "create 100 200 6000 2.00 2.00 60".split()  # noqa: SIM905
    assert lines[2] == "1000 2000 60000 25.00 2.50 190".split()  # noqa: SIM905
    assert lines[3][0] == "convert"


def test_growth_is_judged() -> None:
    assert growth_lines(ROWS) == [
        "create: 10.0 times the size, 12.5 times the time, aim 1.1 missed; at most 190 MB of "
        "memory, aim 200 met",
        "convert: at most 201 MB of memory, aim 200 missed",
    ]


def test_an_image_grows_to_its_size(tmp_path: Path) -> None:
    base, target = tmp_path / "base", tmp_path / "image"
    with tarfile.open(base, "w:gz") as tar:
        info = tarfile.TarInfo("./etc/os-release")
        info.size = 400_000
        tar.addfile(info, io.BytesIO(b"Debian 12, bookworm\n" * 20_000))
    made = stemcell_images.rootfs(base, target, 300_000)
    assert made.size == target.stat().st_size
    with tarfile.open(target) as tar:
        members = tar.getmembers()
    assert members[0].name == "./etc/os-release"
    assert len(members) == made.files
    assert sum(member.size for member in members) == pytest.approx(
        400_000 + (300_000 - base.stat().st_size) / stemcell_images.SHARE, rel=0.01
    )
    again = stemcell_images.rootfs(base, tmp_path / "again", 300_000)
    assert again.path.read_bytes() == target.read_bytes()


@pytest.mark.parametrize(("megabytes", "runs"), [(50, 3), (260, 3), (500, 2), (1000, 1), (9000, 1)])
def test_large_images_are_measured_less_often(megabytes: int, runs: int) -> None:
    assert bench_stemcells.runs_of(megabytes * stemcell_images.MEGABYTE, 3) == runs


def test_sizes_are_sorted_numbers() -> None:
    assert bench_stemcells.parse(["--sizes", "500,50 100"]).sizes == [50, 100, 500]


def test_sizes_must_be_positive(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench_stemcells.parse(["--sizes", "50,0"])
    assert "--sizes" in capsys.readouterr().err
