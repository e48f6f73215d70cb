"""The contract of a runtime's methods for `bosh-cpi`, as tests like those of contract_suite.

One more fixture is `verb`: a callable `verb(method, *arguments)`, see tests.support.runtime_verb.
"""

from collections.abc import Callable
from typing import Any

import pytest

from cpi.errors import NotSupported
from tests.support.contract_lab import ContractBase, Lab


class OperatorContract(ContractBase):
    """See the module."""

    def test_a_vm_that_was_shut_down_is_restored(self, lab: Lab, verb: Callable[..., Any]) -> None:
        vm = lab.vm()
        disk = lab.disk(vm)
        lab.ok("attach_disk", vm, disk)
        for _ in range(2):
            verb("shut_down", vm, 5)
        assert lab.ok("has_vm", vm) is True
        assert lab.ok("get_disks", vm) == [disk]
        assert verb("restore", vm) == "True"
        assert verb("restore", vm) == "False"
        verb("shut_down", vm, 5)
        lab.ok("reboot_vm", vm)
        assert verb("restore", vm) == "False"

    def test_operators_verbs_work_or_are_not_supported(
        self, lab: Lab, verb: Callable[..., Any]
    ) -> None:
        vm = lab.vm()
        calls: dict[str, list[object]] = {
            "vms": [],
            "stemcells": [],
            "usage": [],
            "run_inside": [vm, ["true"]],
            "log_places": [vm],
            "read_log": [vm, "/var/log/nosuch", None, 100],
            "console": [vm],
        }
        results = {}
        for name, arguments in calls.items():
            if lab.supports(name):
                results[name] = verb(name, *arguments)
            else:
                with pytest.raises(NotSupported):
                    verb(name, *arguments)
        assert vm in results.get("vms", [vm])
        assert lab.stemcell() in results.get("stemcells", [lab.stemcell()])
        assert vm in results.get("usage", [vm])
        assert results.get("run_inside", "0") == "0"
        assert results.get("log_places", "LogPlaces").startswith("LogPlaces")
        assert results.get("read_log", "None") == "None"
        assert results.get("console", "b").startswith("b")
