"""What the benchmark of many VMs computes."""

import os
import tarfile
from pathlib import Path

from bench.bench_scale import memory_of, sizes, tiny_image


def test_sizes() -> None:
    assert sizes(500) == [1, 50, 100, 200, 300, 400, 500]
    assert sizes(120) == [1, 50, 100, 120]
    assert sizes(20) == [1, 20]


def test_the_image_has_an_init_and_what_it_needs(tmp_path: Path) -> None:
    with tarfile.open(tiny_image(tmp_path / "image")) as image:
        names = image.getnames()
    assert {"./usr/sbin/runsvdir-start", "./bin/sh", "./bin/sleep"} <= set(names)
    assert any("libc.so" in name for name in names)


def test_memory_of_a_process() -> None:
    assert memory_of(os.getpid()) > 1
