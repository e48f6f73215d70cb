"""Lists of what a host has, to compare before an installation and after its removal."""

from testing.hosts.guest_host import GuestHost

Lists = dict[str, set[str]]

# Each prints one item a line. Docker, libvirt and systemd write files of their own all the time, so
# folders are listed only as far as ours could be in them.
_SCRIPTS = {
    "files": "find /opt /etc /usr/local -xdev \\( -type f -o -type l -o -type d \\) "
    "-not -path '/opt/wheels*' -not -name '*.cache' -not -path '/etc/.pwd.lock'",
    "folders": "ls -d /var/lib/* /var/log/* /run/*bosh* /run/netns/* 2>/dev/null || :",
    "units": "systemctl list-unit-files --no-legend --plain | awk '{print $1, $2}'",
    "links": "ls /sys/class/net",
    "rules": "iptables-save | grep '^-A' | grep -iE 'bosh|CNI' || :",
    "chains": "iptables-save | grep -E '^:(CNI|BOSH)' | cut -d' ' -f1 || :",
    "nft": "nft list tables",
    "namespaces": "ctr namespaces ls -q",
    "cgroups": "ls -d /sys/fs/cgroup/*/",
    "mounts": "cut -d' ' -f5 /proc/self/mountinfo | grep -E 'bosh|vcap' || :",
    "loops": "losetup --list --noheadings --output BACK-FILE",
    "domains": "virsh -q list --all --name",
    "virtual networks": "virsh -q net-list --all --name",
    "pools": "virsh -q pool-list --all --name",
    "sysctls": "sysctl -a 2>/dev/null | grep -E '^(fs.inotify|kernel.keys|kernel.pid_max|"
    "net.ipv4.(ip_forward|conf.all)|net.ipv4.neigh.default.gc_thresh|net.netfilter.nf_conntrack_max)'",
}


def lists(guest: GuestHost) -> Lists:
    """Return what is on a guest host, by kind."""
    return {name: set(guest.sh(script).splitlines()) for name, script in _SCRIPTS.items()}


def differences(before: Lists, after: Lists) -> list[str]:
    """Return what came and what went, one item a line."""
    return [
        *(f"+ {kind}: {item}" for kind in after for item in sorted(after[kind] - before[kind])),
        *(f"- {kind}: {item}" for kind in before for item in sorted(before[kind] - after[kind])),
    ]
