"""The second layer and the OCI documents: the same bytes for the same facts, on any machine."""

import io
import json
import tarfile
from dataclasses import replace

from stemcell_convert import adapt, oci
from stemcell_convert.facts import RootfsFacts

SYSTEMD = RootfsFacts("systemd", ("/sbin/init",), "/var/vcap/bosh/s.json", True, "amd64", {})
RUNIT = RootfsFacts("runit", ("/usr/sbin/runsvdir-start",), "/s.json", False, "arm64", {})
LAYERS = [
    oci.Layer(oci.LAYER_GZIP, "sha256:" + "1" * 64, 100, "sha256:" + "2" * 64),
    oci.Layer(oci.LAYER, "sha256:" + "3" * 64, 10, "sha256:" + "3" * 64),
]


def _members(facts: RootfsFacts) -> dict[str, tarfile.TarInfo]:
    data = adapt.layer(adapt.adaptations(facts))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {member.name: member for member in tar}


def test_systemd_units_are_masked() -> None:
    members = _members(SYSTEMD)
    udev = members["etc/systemd/system/systemd-udevd.service"]
    assert udev.issym()
    assert udev.linkname == "/dev/null"
    assert members["warden-cpi-dev"].isdir()
    assert "var/vcap/bosh/agent.json" not in members, "the stemcell's own stays"


def test_runit_gets_no_units() -> None:
    assert not [name for name in _members(RUNIT) if "systemd" in name]


def test_what_was_made_for_a_machine_loses_the_machine() -> None:
    members = _members(RUNIT)
    for name in ("var/vcap/bosh/agent.json", "etc/fstab", "var/vcap/bosh/bin/restart_networking"):
        assert members[name].isfile()
        assert name not in _members(SYSTEMD)
    machine = RootfsFacts("systemd", ("/sbin/init",), "/s.json", False, "amd64", {})
    assert "etc/systemd/system.conf.d/bosh-container.conf" in _members(machine)
    assert "boot/.wh..wh..opq" in members


def test_the_agent_does_not_fail_at_auditing() -> None:
    for facts in (SYSTEMD, RUNIT):
        assert _members(facts)["var/vcap/bosh/bin/bosh-start-logging-and-auditing"].mode == 0o755


def test_every_adaptation_says_why() -> None:
    for facts in (SYSTEMD, RUNIT):
        assert all(entry.reason for entry in adapt.adaptations(facts))


def test_the_layer_is_the_same_on_any_machine() -> None:
    digests = [oci.digest(adapt.layer(adapt.adaptations(facts))) for facts in (SYSTEMD, RUNIT)]
    # When these change, adapt.VERSION has to be raised.
    assert adapt.VERSION == "5"
    assert digests == [
        "sha256:899a4e3e8f92900bd87144e11f35910f73fd51e4a5f93b308f7aa663d41b830f",
        "sha256:74eb9c6c113e8ddd10d0bb7ce6f6eedc0dd79c400b5fe1773f6ad0c573672f8f",
    ]


def test_the_agent_json_we_add_is_json_for_both_inits() -> None:
    for init in ("systemd", "runit"):
        facts = RootfsFacts(init, ("/x",), "/s", False, "amd64", {})
        documents = {entry.path: entry.data for entry in adapt.adaptations(facts)}
        document = documents["/var/vcap/bosh/agent.json"] or b""
        linux = json.loads(document)["Platform"]["Linux"]
        assert linux["BindMountPersistentDisk"] is True
        assert linux.get("ServiceManager") == ("systemd" if init == "systemd" else None)


def test_a_machines_agent_json_keeps_what_need_not_differ() -> None:
    linux = {"UseMonitIptablesFirewall": True, "DevicePathResolutionType": "virtio"}
    settings = {"Sources": [{"Type": "ConfigDrive"}], "UseServerName": True, "UseRegistry": True}
    agent = {
        "Platform": {"Linux": {**linux, "PartitionerType": "parted"}, "x": 1},
        "Infrastructure": {"Settings": settings, "NetworkingType": "dhcp"},
        "y": 2,
    }
    jammy = RootfsFacts("systemd", ("/sbin/init",), "/s", False, "amd64", {}, agent, runit=True)
    document = adapt.agent_config(jammy)
    assert document["Platform"] == {
        "Linux": {
            "UseMonitIptablesFirewall": True,
            "PartitionerType": "parted",
            "UseDefaultTmpDir": True,
            "UsePreformattedPersistentDisk": True,
            "BindMountPersistentDisk": True,
            "SkipDiskSetup": True,
        },
        "x": 1,
    }
    source = {"Type": "File", "SettingsPath": "/var/vcap/bosh/warden-cpi-agent-env.json"}
    assert document["Infrastructure"] == {
        "Settings": {"Sources": [source], "UseServerName": True},
        "NetworkingType": "dhcp",
    }
    assert document["y"] == 2
    noble = replace(jammy, agent={"Platform": {"Linux": {"ServiceManager": "systemd"}}})
    assert adapt.agent_config(noble)["Platform"]["Linux"]["ServiceManager"] == "systemd"


def test_the_agent_finds_a_grub_configuration() -> None:
    for facts in (SYSTEMD, RUNIT):
        names = list(_members(facts))
        assert names.index("boot/grub") < names.index("boot/grub/grub.cfg")
    assert next(iter(_members(RUNIT))) == "boot/.wh..wh..opq"


def test_config_boots_the_stemcells_init() -> None:
    config = json.loads(oci.config(SYSTEMD, LAYERS, {"a": "b"}))
    assert config["config"]["Entrypoint"] == ["/sbin/init"]
    assert config["architecture"] == "amd64"
    assert config["rootfs"]["diff_ids"] == [layer.diff_id for layer in LAYERS]
    assert "created" not in config


def test_manifest_names_config_and_layers_by_digest() -> None:
    config = oci.config(SYSTEMD, LAYERS, {})
    manifest = json.loads(oci.manifest(config, LAYERS, {"n": "v"}))
    assert manifest["config"]["digest"] == oci.digest(config)
    assert [layer["digest"] for layer in manifest["layers"]] == [x.digest for x in LAYERS]
    assert manifest["annotations"] == {"n": "v"}


def test_chain_id_as_the_image_spec_defines_it() -> None:
    first, second = "sha256:" + "a" * 64, "sha256:" + "b" * 64
    assert oci.chain_id([first]) == first
    assert oci.chain_id([first, second]) == oci.digest(f"{first} {second}".encode())
