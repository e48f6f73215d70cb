"""`make uninstall` leaves a host as it was before `make install`."""

from testing.hosts.guest_image import CHECKOUT
from tests.support.host_lists import Lists, differences, lists
from tests.support.installed_cpi import InstalledCpi

# What using containerd and libvirt leaves on any host, and what others on it have made meanwhile.
_OF_OTHERS = ("/var/lib/dhcp", "/etc/ufw", "/etc/firewalld")


def test_nothing_is_left_not_even_stemcells(installed: InstalledCpi, before_install: Lists) -> None:
    guest = installed.guest
    # What a runtime has is removed if it is configured, also when no VM is left.
    installed.configure(runtimes=["containerd", "kvm"])
    guest.run("make", "-C", CHECKOUT, "uninstall", "OPTIONS=--yes")
    left = differences(before_install, lists(guest))
    assert [line for line in left if not any(path in line for path in _OF_OTHERS)] == []
