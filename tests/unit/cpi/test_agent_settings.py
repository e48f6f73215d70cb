"""The agent's settings against golden files; UPDATE_GOLDEN=1 writes them anew."""

from dataclasses import replace

from cpi.agent_settings import render
from cpi.model import AgentConfig, Network, VMProperties, VMSpec
from tests.support.golden_files import matches_golden

SPEC = VMSpec(
    cid="containerd-vm-1",
    agent_id="agent-1",
    stemcell_cid="containerd-stemcell-1",
    properties=VMProperties(),
    networks=(),
    env={},
    agent=AgentConfig(),
)

STATIC = Network(
    name="private",
    type="manual",
    ip="10.0.1.5",
    prefix=24,
    gateway="10.0.1.1",
    dns=("8.8.8.8", "1.1.1.1"),
    default=("dns", "gateway"),
    cloud_properties={"name": "not for the agent"},
    mac="02:00:00:00:00:01",
)
DYNAMIC = Network(name="dynamic", type="dynamic", ip="10.245.0.9", prefix=16, gateway="10.245.0.1")
IPV6 = Network(name="six", type="manual", ip="2001:db8::5", prefix=64, gateway="2001:db8::1")


def test_director_vm() -> None:
    agent = AgentConfig(
        mbus="nats://10.0.1.2:4222",
        ntp=("0.pool.ntp.org", "1.pool.ntp.org"),
        blobstore={"provider": "dav", "options": {"endpoint": "http://10.0.1.2:25250"}},
    )
    env = {"bosh": {"mbus": {"urls": ["nats://x"], "cert": {"ca": "pem"}}, "password": "*"}}
    spec = replace(SPEC, agent=agent, env=env)
    assert matches_golden("settings_director", render(spec, (STATIC, DYNAMIC, IPV6)))


def test_least_vm() -> None:
    assert matches_golden("settings_least", render(SPEC, ()))


def test_persistent_disks_of_version_1() -> None:
    rendered = render(SPEC, (), persistent={"containerd-disk-1": "/dev/x"})
    assert rendered["disks"]["persistent"] == {"containerd-disk-1": "/dev/x"}


def test_agent_always_has_a_blobstore_and_options() -> None:
    own = render(SPEC, ())["blobstore"]
    assert own == {
        "provider": "local",
        "options": {"blobstore_path": "/var/vcap/micro_bosh/data/cache"},
    }
    half = replace(SPEC, agent=AgentConfig(blobstore={"provider": "dummy"}))
    assert render(half, ())["blobstore"] == {"provider": "dummy", "options": {}}


def test_dynamic_network_before_it_has_an_address() -> None:
    network = render(SPEC, (Network(name="d", type="dynamic"),))["networks"]["d"]
    assert (network["ip"], network["netmask"], network["prefix"]) == ("", "", "")
