"""Docker in a VM without privilege: the host's own, on the VM's file system and network."""

import shutil
from collections.abc import Callable

import pytest

from tests.support.containerd.bpm_jobs import PROGRAMS, in_vm
from tests.support.containerd.machine import VM

# An image of the programs that the test runs.
_IMAGE = """
set -e
cd /var/vcap/data
mkdir -p image/usr
programs="/usr/bin/dash /usr/bin/head /usr/bin/tail"
libraries=$(ldd $programs | grep -o '/lib[^ :]*' | sort -u)
for file in $programs $(printf '/usr%s ' $libraries); do cp -L --parents $file image/; done
for name in bin lib lib64; do ln -s usr/$name image/$name; done
ln -s dash image/usr/bin/sh
"""

# Debian's iptables is found by a link in /etc, which here is the VM's.
_DAEMON = """
mkdir -p /etc/alternatives
for name in iptables ip6tables; do ln -sf /usr/sbin/$name-nft /etc/alternatives/$name; done
dockerd --data-root /var/vcap/data/docker --storage-driver overlay2 > dockerd.log 2>&1 &
daemon=$! tries=0
until docker info > info 2> /dev/null; do
    tries=$((tries + 1)); test $tries -lt 120 || { tail dockerd.log; exit 1; }; sleep 1
done
grep -q 'Storage Driver: overlay2' info
"""

_EATS = "head -c 150000000 /dev/zero | tail -c 120000000 > /dev/null"
_CONTAINERS = f"""
tar -C image -c . | docker import - tiny
docker run --rm tiny sh -c 'echo > /written; while read name rest; do case $name in eth0:) echo network;; esac; done < /proc/net/dev'
docker run --rm tiny sh -c '{_EATS}' && echo free
docker run --rm --memory 64m tiny sh -c '{_EATS}' || echo limited
kill $daemon
wait
"""  # noqa: E501


@pytest.mark.parametrize("init", ["runit", "systemd"])
def test_docker_runs_containers(
    make_vm: Callable[..., VM], stemcell: str, systemd: str, init: str
) -> None:
    if shutil.which("dockerd", path="/usr/sbin:/usr/bin") is None:
        pytest.skip("dockerd is not installed; `make test-packages` installs it")
    properties = {"memory": 1024, "ephemeral_disk": 1024, "mounts": [PROGRAMS]}
    vm = make_vm(stemcell=systemd if init == "systemd" else stemcell, properties=properties)
    done = in_vm(vm, _IMAGE + _DAEMON + _CONTAINERS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split()[1:] == ["network", "free", "limited"]
