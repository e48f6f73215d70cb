"""`make uninstall` leaves a host as it was before `make install`."""

from testing.hosts.guest_image import CHECKOUT
from tests.support.host_lists import Lists, differences, lists
from tests.support.installed_cpi import InstalledCpi

# What using containerd and libvirt leaves on any host, and what others on it have made meanwhile.
_OF_OTHERS = ("/var/lib/dhcp", "/etc/ufw", "/etc/firewalld")


def test_nothing_is_left(installed: InstalledCpi, before_install: Lists) -> None:
    guest = installed.guest
    installed.delete_stemcells()
    guest.run("make", "-C", CHECKOUT, "uninstall", "OPTIONS=--yes")
    left = differences(before_install, lists(guest))
    assert [line for line in left if not any(path in line for path in _OF_OTHERS)] == []
