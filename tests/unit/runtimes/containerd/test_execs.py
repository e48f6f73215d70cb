"""The OCI process of a command in a VM."""

from runtimes.containerd.execs import process
from runtimes.containerd.oci_spec import render
from tests.unit.runtimes.containerd.test_oci_spec import LEAST


def test_a_command_gets_what_init_has() -> None:
    spec = render(LEAST)
    document = process(spec, ["uname", "-n"], None)
    assert document["args"] == ["uname", "-n"]
    for name in ("capabilities", "rlimits", "oomScoreAdj", "user"):
        assert document[name] == spec["process"][name]


def test_a_command_has_a_terminal_only_if_it_is_given_one() -> None:
    spec = render(LEAST)
    assert process(spec, ["true"], None)["terminal"] is False
    document = process(spec, ["bash"], (80, 25))
    assert document["terminal"] is True
    assert document["consoleSize"] == {"width": 80, "height": 25}
    assert any(variable.startswith("TERM=") for variable in document["env"])
