"""deploy/: ops-files over a manifest like bosh-deployment's, and configs for a director."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from cpi.config.load import declared
from cpi.contract import disk_properties, vm_properties
from runtimes import catalog
from testing.repository import REPOSITORY
from tests.support.ops_files import applied
from tools.release_tarball import FIRST_TRY, RELEASE

DEPLOY = REPOSITORY / "deploy"
FILES = sorted(DEPLOY.rglob("*.yml"))

# The parts of bosh-deployment's bosh.yml (c3b2109) that our paths go through.
BOSH = """
name: bosh
releases: [{name: bosh}, {name: bpm}]
resource_pools:
- name: vms
  network: default
  env: {bosh: {mbus: {cert: ((mbus_bootstrap_ssl))}}}
networks:
- name: default
  type: manual
  subnets: [{range: ((internal_cidr)), gateway: ((internal_gw)), static: [((internal_ip))]}]
instance_groups:
- name: bosh
  jobs: [{name: bpm, release: bpm}, {name: director, release: bosh}]
  properties:
    agent: {mbus: "nats://((internal_ip)):4222"}
    director: {name: ((director_name)), workers: 4}
cloud_provider:
  cert: ((mbus_bootstrap_ssl))
  mbus: https://mbus:((mbus_bootstrap_password))@((internal_ip)):6868
  properties: {agent: {mbus: "https://mbus:((mbus_bootstrap_password))@0.0.0.0:6868"}}
variables:
- {name: mbus_bootstrap_ssl, type: certificate, options: {alternative_names: [((internal_ip))]}}
- {name: director_ssl, type: certificate, options: {alternative_names: [((internal_ip))]}}
"""

# jobs/director/spec of cloudfoundry/bosh (96f9135).
OF_THE_DIRECTOR = {
    "cpi_job": str,
    "enable_cpi_resize_disk": bool,
    "enable_cpi_update_disk": bool,
    "cpi_additional_volumes": list,
}

COMBINATIONS = (
    ("use-noble", "cpi"),
    ("use-noble", "cpi", "host-service"),
    ("use-noble", "cpi", "host-service", "kvm"),
    ("use-noble", "cpi", "remote", "kvm-for-some"),
    ("use-noble", "cpi", "several-hosts/network"),
)


def load(name: str) -> Any:
    return yaml.safe_load((DEPLOY / f"{name}.yml").read_text())


def named(items: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(item for item in items if item["name"] == name)


def spec_has(given: dict[str, Any]) -> None:
    """Check that the job's spec has every property, and the catalog every runtime."""
    spec = yaml.safe_load((RELEASE / "jobs" / "containerd_cpi" / "spec").read_text())["properties"]
    for name, value in given.items():
        # ((cpi_client_tls)) stands for all that is below.
        known = f"containerd_cpi.{name}" in spec or (
            isinstance(value, str)
            and value.startswith("((")
            and any(known_property.startswith(f"containerd_cpi.{name}.") for known_property in spec)
        )
        assert known, name
    for name in (given.get("runtime"), *given.get("runtimes", ())):
        assert name is None or name in catalog.REGISTRY


def is_vm(cloud_properties: dict[str, Any] | None) -> None:
    """Check that the CPI accepts these cloud_properties of a VM."""
    given = cloud_properties or {}
    vm_properties.parse(given)
    assert vm_properties.runtime(given) in (None, *catalog.REGISTRY)


@pytest.mark.parametrize("names", COMBINATIONS, ids="+".join)
def test_ops_files_make_a_director(names: tuple[str, ...]) -> None:
    manifest = yaml.safe_load(BOSH)
    for name in names:
        manifest = applied(manifest, load(name))
    job = {"name": "containerd_cpi", "release": "bosh-containerd-cpi"}
    assert manifest["releases"][-1]["name"] == job["release"]
    assert manifest["cloud_provider"]["template"] == job
    group = named(manifest["instance_groups"], "bosh")
    assert job in group["jobs"]
    for name, value in group["properties"]["director"].items():
        assert name in ("name", "workers") or isinstance(value, OF_THE_DIRECTOR[name])
    assert group["properties"]["director"]["cpi_job"] == job["name"]
    spec_has(group["properties"]["containerd_cpi"])
    spec_has(manifest["cloud_provider"]["properties"].get("containerd_cpi", {}))
    pool = named(manifest["resource_pools"], "vms")
    assert re.fullmatch("[0-9a-f]{40}", pool["stemcell"]["sha1"])
    # The director's client uses the socket that its VM is given.
    assert pool["cloud_properties"]["host_service"] is True
    is_vm(pool["cloud_properties"])
    folder = group["properties"]["director"]["cpi_additional_volumes"][0]["path"]
    assert group["properties"]["containerd_cpi"]["endpoint"] == f"unix://{folder}/cpi.sock"


def test_the_first_try_is_a_whole_manifest() -> None:
    manifest = applied(load("first-try"), load("use-noble"))
    manifest = applied(manifest, load("host-service"))
    spec_has(manifest["cloud_provider"]["properties"]["containerd_cpi"])
    is_vm(named(manifest["resource_pools"], "vms")["cloud_properties"])
    (group,) = manifest["instance_groups"]
    spec = yaml.safe_load((FIRST_TRY / "jobs" / group["jobs"][0]["name"] / "spec").read_text())
    assert set(group["properties"]) <= set(spec["properties"])
    assert group["jobs"][0]["release"] in {release["name"] for release in manifest["releases"]}


@pytest.mark.parametrize("folder", [".", "several-hosts"])
def test_cloud_configs(folder: str) -> None:
    config = load(f"{folder}/cloud-config")
    zones = {zone["name"] for zone in config["azs"]}
    for vm_type in (*config["vm_types"], *config.get("vm_extensions", ())):
        is_vm(vm_type.get("cloud_properties"))
    for disk_type in config["disk_types"]:
        disk_properties.parse(disk_type.get("cloud_properties", {}))
    for network in config["networks"]:
        for subnet in network["subnets"]:
            assert set(subnet["azs"]) == zones
            assert set(subnet.get("cloud_properties", {})) <= {"name", "bridge", "mtu"}
    compilation = config["compilation"]
    assert compilation["az"] in zones
    assert named(config["vm_types"], compilation["vm_type"])
    assert named(config["networks"], compilation["network"])


def test_each_host_is_an_az() -> None:
    entries = load("several-hosts/cpi-config")["cpis"]
    zones = load("several-hosts/cloud-config")["azs"]
    assert [zone["cpi"] for zone in zones] == [entry["name"] for entry in entries]
    for entry in entries:
        # The director looks for /var/vcap/jobs/<type>_cpi/bin/cpi.
        assert (RELEASE / "jobs" / f"{entry['type']}_cpi").is_dir()
        given = entry["properties"]
        assert given.pop("tls").keys() == {"ca", "certificate", "private_key"}
        assert set(given) <= set(declared())


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(DEPLOY)))
def test_docs_name_all_files_and_variables(path: Path) -> None:
    """The docs give a value for each variable that the file itself does not generate."""
    if FIRST_TRY in path.parents:
        return
    docs = "".join(
        (REPOSITORY / "docs" / name).read_text() for name in ("create-env.md", "director.md")
    )
    assert f"deploy/{path.relative_to(DEPLOY)}" in docs
    text = path.read_text()
    document = yaml.safe_load(text)
    made = {variable["name"] for variable in yaml.safe_load(BOSH)["variables"]}
    if isinstance(document, dict):
        made |= {variable["name"] for variable in document.get("variables", ())}
    for variable in set(re.findall(r"\(\(([a-z0-9_]+)[).]", text)) - made:
        assert variable in docs or variable == "mbus_bootstrap_password", variable
