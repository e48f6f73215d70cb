"""Settings with which an agent could never answer."""

from typing import Any

import pytest

from cpi.contract import agent_access
from cpi.errors import CloudError
from cpi.log import Log
from cpi.model import AgentConfig

CERT = {"certificate": "pem", "private_key": "pem"}


def logged(mbus: str, env: dict[str, Any], **blobstore: Any) -> str:
    log = Log(quiet=True)
    agent_access.require(AgentConfig(mbus=mbus, blobstore=blobstore), env, log)
    return log.text


@pytest.mark.parametrize(
    ("mbus", "env", "reason"),
    [
        ("", {"bosh": {"password": "*"}}, "set agent.mbus in the CPI's configuration"),
        ("", {}, "or env.bosh.mbus.urls"),
        ("", {"bosh": {"mbus": {"urls": [], "cert": CERT}}}, "nothing names its message bus"),
        ("", {"bosh": None}, "nothing names its message bus"),
        ("http://vcap:s3cret@10.0.0.2", {}, "agent.mbus: agents know nats:// and https:// URLs, "
         "got 'http'://"),
        ("s3cret", {}, "got something else"),
        ("nats://a", {"bosh": {"mbus": {"urls": ["s3cret://x"]}}}, "env.bosh.mbus.urls[0]: "),
        ("nats://a", {"bosh": {"mbus": {"urls": [5]}}}, "env.bosh.mbus.urls[0]: "),
        ("nats://a", {"bosh": {"blobstores": [{}]}}, "env.bosh.blobstores[0] has no provider"),
    ],
)  # fmt: skip
def test_refused(mbus: str, env: dict[str, Any], reason: str) -> None:
    with pytest.raises(CloudError) as raised:
        logged(mbus, env)
    assert reason in raised.value.message
    assert "s3cret@" not in raised.value.message


def test_create_env_and_the_director_pass() -> None:
    create_env = {"bosh": {"mbus": {"cert": {"ca": "pem", **CERT}}, "password": "*"}}
    assert logged("https://mbus:p@0.0.0.0:6868", create_env) == ""
    director = {"bosh": {"mbus": {"cert": CERT}, "blobstores": [{"provider": "dav"}]}}
    assert logged("nats://10.0.0.2:4222", director) == ""
    assert logged("", {"bosh": {"mbus": {"urls": ["nats://a"]}}}, provider="dav") == ""


def test_what_is_odd_is_logged() -> None:
    assert "env.bosh.mbus.cert has no certificate" in logged("https://mbus:p@0.0.0.0:6868", {})
    assert "neither agent.blobstore nor env.bosh.blobstores is set" in logged("nats://a", {})
