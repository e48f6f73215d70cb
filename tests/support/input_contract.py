"""The part of the contract about what directors, the CLI and people's files really send."""

from tests.support.contract_lab import ContractBase, Lab


class InputContract(ContractBase):
    """See the module."""

    def test_a_stemcell_stays_until_its_last_holder_deletes_it(self, lab: Lab) -> None:
        cid = lab.stemcell()
        other = {"director_uuid": "another-director"}
        assert lab.cpi("create_stemcell", lab.image, {}, context=other)["result"] == cid
        assert lab.ok("delete_stemcell", cid) is None
        assert lab.ok("delete_stemcell", cid) is None
        assert lab.create_vm(cid)
        assert lab.stemcell() == cid
        assert lab.cpi("delete_stemcell", cid, context=other)["error"] is None
        assert lab.create_vm(cid)

    def test_a_vm_on_a_dynamic_network_can_be_replaced(self, lab: Lab) -> None:
        stemcell = lab.stemcell()
        dynamic = {"type": "dynamic", "default": ["dns", "gateway"], "dns": []}
        lab.make_network = lambda: {"d": dynamic}
        first, networks = lab.create_vm(stemcell)
        lab.ok("delete_vm", first)
        known = {key: networks["d"][key] for key in ("ip", "netmask", "gateway")}
        lab.make_network = lambda: {"d": {**dynamic, **known, "prefix": "32"}}
        second, networks = lab.create_vm(stemcell)
        assert lab.ok("has_vm", second) is True
        assert networks["d"]["type"] == "dynamic"
        assert networks["d"]["ip"]

    def test_an_agent_that_could_never_answer_is_refused(self, lab: Lab) -> None:
        arguments = lab.vm_arguments(lab.stemcell())
        context = {"agent": {"mbus": ""}}
        error = lab.cpi("create_vm", *arguments[:-1], {"bosh": {}}, context=context)["error"]
        assert error["type"] == "Bosh::Clouds::CloudError"
        assert "agent.mbus" in error["message"]
        assert "env.bosh.mbus.urls" in error["message"]

    def test_a_director_gets_types_that_it_knows(self, lab: Lab) -> None:
        director = {"director_uuid": "tests", "request_id": "cpi-123456"}
        arguments = lab.vm_arguments(lab.unknown("stemcell"))
        error = lab.cpi("create_vm", *arguments, context=director)["error"]
        assert error["type"] == "Bosh::Clouds::CloudError"
        error = lab.cpi("has_vm", "a", "b", context=director)["error"]
        assert error["type"] == "Bosh::Clouds::CpiError"
        error = lab.cpi("levitate", context=director)["error"]
        assert error["type"] == "InvalidCall"
        assert error["message"].startswith("Method is not known, got")

    def test_lines_of_the_log_come_once(self, lab: Lab) -> None:
        director = {"director_uuid": "tests", "request_id": "cpi-654321"}
        log = lab.cpi("has_vm", lab.unknown("vm"), context=director)["log"].splitlines()
        assert len([line for line in log if "request_id='cpi-654321'" in line]) == 1

    def test_keys_of_other_cpis_are_ignored(self, lab: Lab) -> None:
        foreign = {"type": "gp2", "iops": 3000, "encrypted": True}
        disk = lab.adopt(lab.ok("create_disk", 32, foreign, None))
        if lab.supports("update_disk"):
            disk = lab.adopt(lab.ok("update_disk", disk, 32, foreign) or disk)
        assert lab.ok("has_disk", disk) is True
        network = {"security_groups": ["a"], "subnet": "subnet-1"}
        lab.network_properties = network
        properties = {"instance_type": "m3.medium", "ram": 256, "security_groups": ["a"]}
        assert lab.ok("has_vm", lab.vm({**lab.properties, **properties})) is True
