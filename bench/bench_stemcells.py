"""Time imports and conversions of a stemcell against other programs with the same bytes.

Everything is a process on a private host and a new file system. Programs run in random order, after
a sync and with their input in memory, so that a slow moment of the machine does not hit only one of
them. The best run counts.
"""

import argparse
import json
import random
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich import box
from rich.console import Console

from bench import stemcell_images
from bench.bench_calls import BenchFailed
from bench.stemcell_figures import (
    Grown,
    Race,
    Rival,
    Taken,
    best,
    growth_lines,
    growth_table,
    race_table,
)
from bench.stemcell_images import MEGABYTE, Made
from testing.command_line import count, run_as_root
from testing.hosts.driver import Done, Driver
from testing.hosts.private_docker import Docker
from testing.hosts.private_host import CPI, PrivateHost
from testing.hosts.scratch import file_system
from testing.stemcells.stemcell_source import opened, stand_in

RUNS = 3
SIZE = 250  # MB of the image that all are compared by, about what a stemcell without extras has
SIZES = (50, 100, 250, 500, 1000)  # MB of the images that growth is measured by

CREATE = "cpi create_stemcell"
CONVERT = "bosh-cpi stemcell convert"
CTR, DOCKER, SKOPEO = "ctr images import", "docker import", "skopeo copy"
BY_HAND, BY_PIGZ = "tar, qemu-img, mount, tar | gzip -1", "the same with pigz -1"

# What a person would do for the layer's blob and digest; {…} are ours to fill in.
_BY_HAND = """
set -e
mkdir {folder}/root
cd {folder}
tar -xzf {image}
qemu-img convert -O raw root.img raw
mount -o ro,loop,offset={offset} raw root
tar -c --xattrs --numeric-owner -C root . | {gzip} > layer.tar.gz
umount root
sha256sum layer.tar.gz
"""


@dataclass(frozen=True)
class Way:
    """A contender in a race: what is timed, and how to undo it."""

    name: str
    run: Callable[[], Done]
    undo: Callable[[], Any]


class StemcellBench:
    """Races on one host between our programs and others."""

    def __init__(self, driver: Driver, target: Path, docker: tuple[str, ...], runs: int) -> None:
        self._driver = driver
        self._target = target
        self._docker = docker
        self._runs = runs

    def race_to_runtimes(self, image: Made, archive: Path) -> Race:
        """Race our import into containerd against ctr's and Docker's.

        archive: the same bytes as an OCI image, for ctr.
        """
        self._driver.must(self._convert(image, f"oci-archive:{archive}"))
        ways = [self._create(image), self._ctr(archive)]
        if self._docker:
            ways.append(self._docker_import(image))
        rivals = tuple(Rival(way.name, 1.0) for way in ways[1:])
        race = Race(f"root file system, {_megabytes(image)}, unpacked", CREATE, rivals, {})
        self._run(ways, race, image, archive)
        return race

    def race_to_layouts(self, image: Made) -> Race:
        """Race our conversion to an OCI layout against skopeo's."""
        argv = ["skopeo", "--insecure-policy", "copy", "--quiet"]
        argv += [f"tarball:{image.path}", f"oci:{self._target}:latest"]
        ways = [self._converting(image), self._way(SKOPEO, argv)]
        title = f"root file system, {_megabytes(image)}, to an OCI layout"
        race = Race(title, CONVERT, (Rival(SKOPEO, 1.0),), {})
        self._run(ways, race, image)
        return race

    def race_disks(self, image: Made) -> Race:
        """Race our conversion of a disk to an OCI layout against a layer made by hand."""
        ways = [self._converting(image)]
        for name, gzip in ((BY_HAND, "gzip -1"), (BY_PIGZ, "pigz -1")):
            if shutil.which(gzip.split()[0]):
                words = {"folder": self._target, "image": image.path, "gzip": gzip}
                script = _BY_HAND.format(offset=image.offset, **words)
                ways.append(self._way(name, ["sh", "-c", f"mkdir {self._target}\n{script}"]))
        aims = {BY_HAND: 1.5}
        rivals = tuple(Rival(way.name, aims.get(way.name)) for way in ways[1:])
        title = f"disk (qcow2), {_megabytes(image)}, to an OCI layout"
        race = Race(title, CONVERT, rivals, {})
        self._run(ways, race, image)
        return race

    def grow(self, image: Made, what: str) -> Iterator[Grown]:
        """Measure our programs with an image of one size."""
        ways = [self._create(image), self._converting(image)]
        race = Race("", CREATE, (Rival(CONVERT, None),), {})
        self._run(ways, race, image)
        for name in race.names:
            runs = race.taken[name]
            memory = max(run.memory for run in runs)
            sizes = (image.size, image.unpacked, image.files)
            yield Grown(f"{name}, {what}", *sizes, best(runs), memory)

    def _run(self, ways: Sequence[Way], race: Race, image: Made, *others: Path) -> None:
        for _ in range(runs_of(image.size, self._runs)):
            for way in random.sample(ways, k=len(ways)):
                for path in (image.path, *others):
                    _warm(path)
                self._driver.must(["sync"])
                done = way.run()
                if done.status:
                    output = (done.stderr or done.stdout).strip()[-500:]
                    raise BenchFailed(f"{way.name} failed with status {done.status}: {output}")
                race.taken.setdefault(way.name, []).append(_taken(done))
                way.undo()

    def _create(self, image: Made) -> Way:
        cid = ""

        def run() -> Done:
            nonlocal cid
            answer = self._driver.cpi("create_stemcell", str(image.path), {})
            if answer.error:
                raise BenchFailed(f"create_stemcell: {answer.error['message']}")
            cid = answer.response["result"]
            return answer.done

        def undo() -> None:
            answer = self._driver.cpi("delete_stemcell", cid)
            if answer.error:
                raise BenchFailed(f"delete_stemcell: {answer.error['message']}")

        return Way(CREATE, run, undo)

    def _ctr(self, archive: Path) -> Way:
        ctr = self._driver.ctr

        def undo() -> None:
            # Without its snapshots an image would be stored and not unpacked: less than ours does.
            if len(self._driver.must([*ctr, "snapshots", "ls"]).stdout.splitlines()) < 3:
                raise BenchFailed("ctr has not unpacked the image, so it cannot be compared with")
            images = self._driver.must([*ctr, "images", "ls", "-q"]).stdout.split()
            self._driver.must([*ctr, "images", "rm", "--sync", *images])

        argv = [*ctr, "images", "import", "--base-name", "bench/stemcell", str(archive)]
        return Way(CTR, lambda: self._driver.run(argv), undo)

    def _docker_import(self, image: Made) -> Way:
        def undo() -> None:
            self._driver.must([*self._docker, "rmi", "bench"])

        argv = [*self._docker, "import", str(image.path), "bench"]
        return Way(DOCKER, lambda: self._driver.run(argv), undo)

    def _converting(self, image: Made) -> Way:
        return self._way(CONVERT, self._convert(image, f"oci:{self._target}"))

    def _convert(self, image: Made, destination: str) -> list[str]:
        program = str(CPI.with_name("bosh-cpi"))
        return [program, "stemcell", "convert", str(image.path), destination]

    def _way(self, name: str, argv: Sequence[str]) -> Way:
        """Return a contender that makes the folder `target`."""
        return Way(name, lambda: self._driver.run(argv), lambda: shutil.rmtree(self._target))


def runs_of(size: int, runs: int) -> int:
    """Return how often to measure an image of this size: long runs average out slow moments."""
    return max(1, min(runs, round(runs * SIZE * MEGABYTE / size)))


def _taken(done: Done) -> Taken:
    memory = done.memory * (1 << 20) / MEGABYTE
    return Taken(done.wall / 1e3, done.cpu / 1e3, done.daemon / 1e3, memory)


def _megabytes(image: Made) -> str:
    return f"{image.size / MEGABYTE:.0f} MB"


def _warm(path: Path) -> None:
    """Read a file into memory, as if it had just been uploaded."""
    with path.open("rb") as file:
        while file.read(MEGABYTE):
            pass


def measure(options: argparse.Namespace, console: Console) -> None:
    """Measure and print. Raises what goes wrong."""
    progress = Console(stderr=True)
    races: list[Race] = []
    rows: list[Grown] = []
    with file_system() as folder, ExitStack() as stack:
        host = stack.enter_context(PrivateHost())
        driver = stack.enter_context(Driver(host, host.write_config()))
        words: tuple[str, ...] = ()
        if not options.growth:
            words = ("docker", "--host", stack.enter_context(Docker(host)).address)
        bench = StemcellBench(driver, folder / "target", words, options.runs)
        base = opened(options.stemcell or stand_in("systemd"), host.folder).image
        status = stack.enter_context(progress.status("starting"))
        if not options.growth:
            with TemporaryDirectory() as work:
                races = _races(bench, base, Path(work), options, status.update)
            if not options.json:  # now: what follows takes longer than all this
                show_races(races, console)
        for size in options.sizes:
            with TemporaryDirectory() as work:
                rows += _grown(bench, base, Path(work), size, status.update)
    if options.json:
        figures = {
            "races": [asdict(race) for race in races],
            "growth": [asdict(row) for row in rows],
        }
        print(json.dumps(figures, indent=2))
    else:
        show_growth(rows, console)


def _races(
    bench: StemcellBench,
    base: Path,
    work: Path,
    options: argparse.Namespace,
    say: Callable[[str], None],
) -> list[Race]:
    say("making the image that all are compared by")
    image = stemcell_images.rootfs(base, work / "image", options.size * MEGABYTE)
    disk = stemcell_images.disk_of(image, work)
    say("into runtimes")
    races = [bench.race_to_runtimes(image, work / "archive.tar")]
    say("to layouts")
    races.append(bench.race_to_layouts(image))
    say("disks")
    return [*races, bench.race_disks(disk)]


def _grown(
    bench: StemcellBench, base: Path, work: Path, size: int, say: Callable[[str], None]
) -> list[Grown]:
    say(f"making images of {size} MB")
    image = stemcell_images.rootfs(base, work / "image", size * MEGABYTE)
    say(f"ours, with a root file system of {size} MB")
    rows = list(bench.grow(image, "root file system"))
    say(f"making a disk of {size} MB")
    disk = stemcell_images.disk_of(image, work)
    say(f"ours, with a disk of {size} MB")
    return [*rows, *bench.grow(disk, "disk")]


def show_races(races: Sequence[Race], console: Console) -> None:
    """Print the results of races."""
    style = box.SIMPLE_HEAD if console.is_terminal else None
    for race in races:
        console.print(race_table(race, style), "")
    console.print("MB: of memory, of the largest process, daemons aside\n")


def show_growth(rows: Sequence[Grown], console: Console) -> None:
    """Print how time and memory grow with the image."""
    console.print(growth_table(rows, box.SIMPLE_HEAD if console.is_terminal else None), "")
    console.print("\n".join(growth_lines(rows)), soft_wrap=True)


def sizes(text: str) -> list[int]:
    """Read numbers separated by commas or spaces; return them sorted."""
    return sorted(count(word) for word in text.replace(",", " ").split())


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python3 -m bench.bench_stemcells", description=__doc__)
    add = parser.add_argument
    add(
        "--runs",
        type=count,
        default=RUNS,
        metavar="N",
        help="of each (%(default)s), fewer of what is large",
    )
    add("--stemcell", type=Path, metavar="FILE", help="warden stemcell that all images grow out of")
    add("--size", type=count, default=SIZE, metavar="MB", help="of what is compared (%(default)s)")
    add("--sizes", type=sizes, default=SIZES, metavar="MB,…", help="for growth (50 to 1000)")
    add("--growth", action="store_true", help="only how ours grow, without the others")
    add("--json", action="store_true", help="print JSON")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    options = parse(argv)
    return run_as_root("bench", lambda console: measure(options, console), BenchFailed)


if __name__ == "__main__":
    sys.exit(main())
