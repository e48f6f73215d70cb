"""What libvirt counts of a domain, as `bosh-cpi top` shows it."""

from runtimes.libvirt import listing


def test_a_domains_statistics() -> None:
    numbers = {
        "cpu.time": 2_500_000_000,
        "balloon.rss": 2048,
        "balloon.maximum": 4096,
        "block.count": 2,
        "block.0.rd.bytes": 10,
        "block.0.wr.bytes": 1,
        "block.0.physical": 100,
        "block.1.rd.bytes": 20,
        "block.1.physical": 200,
    }
    used = listing.usage("kvm-vm-1", numbers)
    assert (used.cpu, used.memory, used.memory_limit) == (2.5, 2 << 20, 4 << 20)
    assert (used.disk, used.read, used.written) == (300, 30, 1)
    assert listing.usage("kvm-vm-1", {}).memory is None
