"""The release's job, rendered by Ruby's ERB as the director and create-env do, and run. Needs ruby.

`p` is theirs: the manifest's value or the spec's default, and an error when both are missing
(bosh-cli: templatescompiler/erbrenderer/erb_renderer.rb); here a property that the spec lacks is
one as well.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cpi.config.load import config_of
from testing.hosts.private_host import CPI
from tests.support.cpi_calls import request
from tools import client_zipapp
from tools.release_tarball import RELEASE

pytestmark = pytest.mark.integration

JOB = RELEASE / "jobs" / "containerd_cpi"
FOLDERS = "/usr/bin /usr/local/bin /opt/homebrew/bin"

RENDER = """
require 'erb'
require 'json'
given = JSON.parse(STDIN.read)
context = Object.new
context.define_singleton_method(:p) do |name, *default|
  raise "the spec has no #{name}" unless given['spec'].key?(name)
  value = name.split('.').reduce(given['properties']) { |hash, key| hash.nil? ? nil : hash[key] }
  value = given['spec'][name]['default'] if value.nil?
  next value unless value.nil?
  raise "Can't find property '#{name}'" if default.empty?
  default.first
end
erb = ERB.new(File.read(given['template']), trim_mode: '-')
print erb.result(context.instance_eval { binding })
"""


def rendered(name: str, properties: dict[str, Any]) -> str:
    spec = yaml.safe_load((JOB / "spec").read_text())["properties"]
    template = str(JOB / "templates" / name)
    given = json.dumps({"spec": spec, "properties": properties, "template": template})
    done = subprocess.run(
        ["ruby", "-e", RENDER], input=given, check=True, capture_output=True, text=True
    )
    return done.stdout


def cpi_json(**properties: Any) -> dict[str, Any]:
    """Render cpi.json and check that the CPI accepts it."""
    document: dict[str, Any] = json.loads(rendered("cpi.json.erb", properties))
    config_of(document)
    return document


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, str]:
    """Install package and job as create-env does; return the environment that names them."""
    packages, jobs = tmp_path / "in stallation" / "packages", tmp_path / "in stallation" / "jobs"
    for folder in (packages / "containerd_cpi", jobs / "containerd_cpi" / "config"):
        folder.mkdir(parents=True)
    client_zipapp.build(packages / "containerd_cpi" / "cpi.pyz")
    properties = {"containerd_cpi": {"program": str(CPI)}}
    config = jobs / "containerd_cpi" / "config" / "cpi.json"
    config.write_text(rendered("cpi.json.erb", properties))
    return {"BOSH_PACKAGES_DIR": str(packages), "BOSH_JOBS_DIR": str(jobs)}


def call(script: Path, environment: dict[str, str]) -> dict[str, Any]:
    """Call `info` through the job's script."""
    done = subprocess.run(
        ["/bin/sh", str(script)], input=request("info", api_version=None), env=environment,
        capture_output=True, check=True,
    )  # fmt: skip
    response: dict[str, Any] = json.loads(done.stdout)
    return response


def script_with(folder: Path, folders: str) -> Path:
    """Return the script of a machine with its Pythons in these folders."""
    text = rendered("cpi", {})
    assert text.count(f"in {FOLDERS};") == 1
    script = folder / "cpi"
    script.write_text(text.replace(f"in {FOLDERS};", f"in {folders};"))
    return script


def test_without_properties() -> None:
    assert cpi_json() == {}


def test_of_bosh_deployment() -> None:
    """The properties of bosh.yml's instance group and of create-env."""
    tls = {"cert": {"ca": "CA", "certificate": "C", "private_key": "K"}}
    document = cpi_json(
        agent={"mbus": "nats://10.245.0.2:4222", "env": {"bosh": {"ntp": ["a"]}}},
        blobstore={
            "address": "10.245.0.2",
            "port": 25250,
            "provider": "dav",
            "agent": {"user": "agent", "password": "secret"},
            "director": {"user": "director", "password": "other"},
            "tls": tls,
        },
        containerd_cpi={"endpoint": "unix:///var/vcap/bosh-cpi/cpi.sock"},
    )
    options = {"user": "agent", "password": "secret", "tls": {"cert": {"ca": "CA"}}}
    assert document == {
        "endpoint": "unix:///var/vcap/bosh-cpi/cpi.sock",
        "agent": {
            "mbus": "nats://10.245.0.2:4222",
            "blobstore": {
                "provider": "dav",
                "options": {"endpoint": "https://10.245.0.2:25250", **options},
            },
        },
    }
    mbus = "https://mbus:secret@0.0.0.0:6868"
    assert cpi_json(agent={"mbus": mbus}, blobstore=None) == {"agent": {"mbus": mbus}}


def test_blobstores() -> None:
    local = cpi_json(blobstore={"provider": "local", "path": "/var/vcap/blobs"})
    options = {"blobstore_path": "/var/vcap/blobs"}
    assert local["agent"]["blobstore"] == {"provider": "local", "options": options}
    dav = cpi_json(blobstore={"provider": "dav", "address": "fd00::2"})
    assert dav["agent"]["blobstore"]["options"] == {"endpoint": "http://[fd00::2]:25250"}
    assert cpi_json(blobstore={"provider": "s3", "bucket_name": "b"}) == {}
    own = {"provider": "s3", "options": {"bucket_name": "b"}}
    both = cpi_json(agent={"blobstore": own}, blobstore={"provider": "dav", "address": "a"})
    assert both["agent"]["blobstore"] == own


def test_named_properties_override_the_hash() -> None:
    config = {
        "runtime": "containerd",
        "agent": {"ntp": ["a"], "mbus": "nats://a"},
        "network": {"bridge": "b"},
    }
    tls = {"ca": "-----BEGIN\nCA", "certificate": "C", "private_key": "K"}
    document = cpi_json(
        agent={"mbus": "nats://b"},
        containerd_cpi={
            "config": config,
            "runtime": "kvm",
            "runtimes": ["containerd"],
            "endpoint": "https://host:9443",
            "program": "/opt/cpi",
            "tls": tls,
        },
    )
    assert document == {
        "runtime": "kvm",
        "runtimes": ["containerd"],
        "agent": {"ntp": ["a"], "mbus": "nats://b"},
        "network": {"bridge": "b"},
        "endpoint": "https://host:9443",
        "program": "/opt/cpi",
        "tls": tls,
    }
    assert cpi_json(ntp=["a", "b"]) == {"agent": {"ntp": ["a", "b"]}}


def test_the_script_answers_from_where_create_env_installs(
    tmp_path: Path, installed: dict[str, str]
) -> None:
    """In process: no endpoint, so the CPI installed on this host does the work."""
    script = tmp_path / "cpi"
    script.write_text(rendered("cpi", {}))
    response = call(script, {**installed, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
    assert response["error"] is None
    assert response["result"]["api_version"] == 3


def test_python_is_found_on_the_path(tmp_path: Path, installed: dict[str, str]) -> None:
    """Also beside a python3 that is too old."""
    script = script_with(tmp_path, str(tmp_path / "nothing"))
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    new.mkdir()
    (old / "python3").write_text("#!/bin/sh\nexit 1\n")  # so it answers when asked for its version
    (old / "python3").chmod(0o755)
    (new / "python3.10").symlink_to(os.path.realpath(sys.executable))
    (new / "python3").symlink_to(os.path.realpath(sys.executable))
    for path in (str(new), f"{old}:{new}"):
        assert call(script, {**installed, "PATH": path})["error"] is None


def test_without_python_there_is_one_error(tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "cat").symlink_to("/bin/cat")
    script = script_with(tmp_path, str(tmp_path / "nothing"))
    response = call(script, {"PATH": str(tools)})
    assert response["result"] is None
    assert response["error"]["type"] == "Bosh::Clouds::CpiError"
    assert "Python 3.10 or newer" in response["error"]["message"]
    assert "apt-get install python3" in response["error"]["message"]


def test_without_an_installed_cpi_the_error_says_how_to_install_it(
    tmp_path: Path, installed: dict[str, str]
) -> None:
    config = Path(installed["BOSH_JOBS_DIR"], "containerd_cpi", "config", "cpi.json")
    config.write_text(rendered("cpi.json.erb", {"containerd_cpi": {"program": "/none/cpi"}}))
    script = tmp_path / "cpi"
    script.write_text(rendered("cpi", {}))
    error = call(script, {**installed, "PATH": "/usr/bin:/bin"})["error"]
    assert "/none/cpi" in error["message"]
    assert "make install" in error["message"]


def test_the_job_of_the_first_try_is_a_script(tmp_path: Path) -> None:
    """Its note is quoted, whatever it is."""
    template = RELEASE.parent / "deploy" / "first-try" / "jobs" / "notebook" / "templates"
    spec = yaml.safe_load((template.parent / "spec").read_text())["properties"]
    properties = {"note": 'it\'s "me" $(touch x)'}
    given = {"spec": spec, "properties": properties, "template": str(template / "notebook")}
    done = subprocess.run(
        ["ruby", "-e", RENDER], input=json.dumps(given), check=True, capture_output=True, text=True
    )
    line = next(line for line in done.stdout.splitlines() if ">>" in line)
    echo = line.strip().partition('"$(date -Is) "')[2].partition('" on $(hostname)')[0]
    echoed = subprocess.run(["bash", "-c", f"echo {echo}"], cwd=tmp_path, capture_output=True)
    assert echoed.stdout.decode() == f"{properties['note']}\n"
    assert not (tmp_path / "x").exists()
