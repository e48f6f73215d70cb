"""What a call may override in the host's configuration."""

import pytest

from cpi.config.load import config_of
from cpi.config.overrides import overridden
from cpi.errors import CPIError


def test_context_goes_over_the_file() -> None:
    config = config_of({"agent": {"mbus": "a", "ntp": ["n"], "blobstore": {"provider": "dav"}}})
    context = {
        "director_uuid": "d",
        "request_id": "r",
        "vm": {"stemcell": {"api_version": 3}},
        "agent": {"mbus": "b", "blobstore": {"options": {}}, "zone": 1},
        "datacenter": {"name": "x"},
        "runtime": None,
    }
    merged, ignored = overridden(config, context)
    assert merged.text("agent.mbus") == "b"
    assert merged.strings("agent.ntp") == ("n",)
    assert merged.mapping("agent.blobstore") == {"options": {}}
    assert merged.text("runtime") == "containerd"
    assert ignored == ["agent.zone", "datacenter"]
    assert config.text("agent.mbus") == "a"


def test_a_clients_configuration_is_overridden_by_its_context() -> None:
    host = config_of({"agent": {"mbus": "host", "ntp": ["host"]}})
    client = {
        "agent": {"mbus": "client", "blobstore": {"provider": "dav"}},
        "network": {"mtu": 1400},
        "datacenter": 1,
        "state_dir": "/etc",
    }
    context = {
        "agent": {"blobstore": {"options": {}}, "ntp": None},
        "network": {"mtu": 1300},
        "datacenter": 2,
        "vm": {},
    }
    merged, ignored = overridden(host, client, context, of_client=True)
    assert merged.text("agent.mbus") == "client"
    assert merged.strings("agent.ntp") == ("host",)
    assert merged.mapping("agent.blobstore") == {"options": {}}
    assert merged.integer("network.mtu") == 1300
    assert ignored == ["datacenter", "state_dir"]


def test_only_the_value_that_holds_is_checked() -> None:
    merged, _ = overridden(config_of({}), {"network": {"mtu": "x"}}, {"network": {"mtu": 1300}})
    assert merged.integer("network.mtu") == 1300


@pytest.mark.parametrize("allowed", [True, False])
def test_a_context_may_allow_what_only_the_clients_configuration_forbids(allowed: bool) -> None:
    host = config_of({"containerd": {"allow_privileged": allowed}})
    client, context = ({"containerd": {"allow_privileged": value}} for value in (False, True))
    merged, _ = overridden(host, client, context, of_client=True)
    assert merged.flag("containerd.allow_privileged") is allowed


def test_wrong_values_in_the_context_are_errors() -> None:
    with pytest.raises(CPIError, match=r"context: network\.mtu must be a whole number"):
        overridden(config_of({}), {"network": {"mtu": "big"}})


@pytest.mark.parametrize(
    ("file", "context", "allowed", "ignored"),
    [
        (True, True, True, []),
        (True, False, False, []),
        (False, False, False, []),
        (False, True, False, ["containerd.allow_privileged"]),
    ],
)
def test_the_context_cannot_allow_what_the_host_forbids(
    file: bool, context: bool, allowed: bool, ignored: list[str]
) -> None:
    config = config_of({"containerd": {"allow_privileged": file}})
    merged, not_used = overridden(config, {"containerd": {"allow_privileged": context}})
    assert merged.flag("containerd.allow_privileged") is allowed
    assert not_used == ignored
