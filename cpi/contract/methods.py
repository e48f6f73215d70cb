"""Every CPI method: its arguments, and what it asks of a runtime.

What a runtime gets is checked: CIDs are of this CPI and of the right resource (which may not
exist), sizes are positive, networks and properties are parsed. The locks of the CIDs are held for
all calls that change something; has_*, get_disks and create_stemcell take none.
"""

from __future__ import annotations

from cpi import cid
from cpi.contract import values as check
from cpi.errors import InvalidCall, MethodNotKnown, NotImplementedInCPI, NotSupported
from cpi.text import shown
from runtimes import catalog

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from cpi.config.config import Config
    from cpi.contract.foreign_keys import ForeignKeys
    from cpi.host.stemcell_holders import StemcellHolders
    from cpi.model import AgentConfig, DiskProperties, JsonObject, VMSpec
    from cpi.runtime import Runtime

API_VERSION = 3

# Methods that no current director calls.
LEGACY = ("configure_networks", "current_vm_id", "ping")


class Parameter:
    """An argument: its name, its check (cpi.contract.values) and whether it may be left out."""

    __slots__ = ("check", "name", "optional")

    def __init__(
        self, name: str, check: Callable[[str, object], object], optional: bool = False
    ) -> None:
        self.name = name
        self.check = check
        self.optional = optional


class Method:
    """A method: what runs it, its parameters and the first API version that has it.

    parse: turns the call and the checked arguments into those that `run` takes, where they differ.
    """

    __slots__ = ("parameters", "parse", "run", "since")

    def __init__(
        self,
        run: Callable[..., object],
        *parameters: Parameter,
        parse: Callable[..., Sequence[object]] | None = None,
        since: int = 1,
    ) -> None:
        self.run = run
        self.parameters = parameters
        self.parse = parse
        self.since = since


class Call:
    """One request, while it is handled.

    client: of the host's service, "" for none; director: the director's UUID.
    """

    __slots__ = ("api_version", "client", "director", "log", "method", "runtimes")

    def __init__(
        self,
        method: str,
        api_version: int,
        runtimes: catalog.Runtimes,
        client: str = "",
        director: str = "",
    ) -> None:
        self.method = method
        self.api_version = api_version
        self.runtimes = runtimes
        self.client = client
        self.director = director
        self.log = runtimes.log

    @property
    def config(self) -> Config:
        """The configuration of the request."""
        return self.runtimes.config

    def runtime_using(self, disk: str) -> Runtime:
        """Return the runtime of the VM that has a locked disk, else the disk's own.

        Raises DiskNotFound, CPIError.
        """
        runtime = self.runtimes.of_cid(disk, cid.DISK)
        user = runtime.disk_user(disk)
        return self.runtimes.of_cid(user, cid.VM) if user else runtime

    def foreign_keys(self) -> ForeignKeys:
        """Return what becomes of keys of other CPIs in this call's documents."""
        from cpi.contract.foreign_keys import ForeignKeys

        return ForeignKeys(self.log, strict=self.config.flag("strict_properties"))

    def stemcell_holders(self) -> StemcellHolders:
        """Return who holds stemcells, as this call's director sees it."""
        from cpi.host.layout import Layout
        from cpi.host.stemcell_holders import Holder, StemcellHolders

        return StemcellHolders(Layout.of(self.config), Holder(self.client, self.director))

    def hold(self, *cids: str) -> AbstractContextManager[None]:
        """Hold the locks of these CIDs."""
        from cpi.host import locks

        return locks.hold(self.config.text("run_dir"), *cids, log=self.log)


def find(name: str, api_version: int) -> Method:
    """Return a method. Raises MethodNotKnown for one that this API version does not have."""
    if name in LEGACY:
        raise NotImplementedInCPI(f"{name} is a method of old that this CPI does not implement")
    method = METHODS.get(name)
    if method is None or method.since > api_version:
        raise MethodNotKnown(shown(name, 60))
    return method


def parsed(call: Call, method: Method, given: list[object]) -> Sequence[object]:
    """Return the arguments that a method runs with, checked and parsed.

    Raises InvalidCall, the NotFound errors, CloudError, NotSupported.
    """
    name, parameters = call.method, method.parameters
    minimum = sum(not parameter.optional for parameter in parameters)
    if not minimum <= len(given) <= len(parameters):
        names = ", ".join(parameter.name for parameter in parameters) or "none"
        count = str(minimum) if minimum == len(parameters) else f"{minimum} to {len(parameters)}"
        raise InvalidCall(f"{name} takes {count} arguments ({names}), got {len(given)}")
    arguments = [
        parameter.check(f"{name}: {parameter.name}", value)
        for parameter, value in zip(parameters, given, strict=False)
    ]
    return arguments if method.parse is None else method.parse(call, *arguments)


def _locked(resource: str) -> Callable[..., object]:
    """Return what runs a call as its runtime's method of that name, with the CID's lock held."""

    def run(call: Call, own_cid: str, *arguments: object) -> object:
        runtime = call.runtimes.of_cid(own_cid, resource)
        with call.hold(own_cid):
            return getattr(runtime, call.method)(own_cid, *arguments)

    return run


def _locked_in_use(call: Call, disk: str, *arguments: object) -> object:
    """Run a call on a disk as `_locked` does, by the runtime of the VM that has it."""
    with call.hold(disk):
        return getattr(call.runtime_using(disk), call.method)(disk, *arguments)


# Stemcells


def _info(call: Call) -> object:
    entry = catalog.entry(call.config.text("runtime"))
    return {"stemcell_formats": list(entry.stemcell_formats), "api_version": API_VERSION}


def _create_stemcell(
    call: Call, image: str, properties: JsonObject, tags: JsonObject | None = None
) -> object:
    from pathlib import Path

    path = Path(image)
    made = ""
    refusals = []
    holders = call.stemcell_holders()
    with holders.importing():
        for name in catalog.configured(call.config):
            runtime = call.runtimes.get(name)
            try:
                if made:
                    runtime.share_stemcell(made, path, properties)
                else:
                    made = runtime.create_stemcell(path, properties, tags or {})
            except NotSupported as error:  # its format cannot serve this one
                refusals.append(error)
                call.log.info(f"not for {name}: {error.message}")
        if not made:
            raise refusals[0]
        holders.add(made)
    return made


def _delete_stemcell(call: Call, stemcell: str) -> None:
    own = call.runtimes.of_cid(stemcell, cid.STEMCELL)
    holders = call.stemcell_holders()
    with holders.deleting(), call.hold(stemcell):
        if others := holders.others(stemcell):
            holders.drop(stemcell)
            call.log.info(f"{stemcell} stays, as {len(others)} other directors have uploaded it")
            return
        for name in catalog.configured(call.config):
            if name != own.name:
                call.runtimes.get(name).delete_stemcell(stemcell)
        own.delete_stemcell(stemcell)
        holders.forget(stemcell)


# VMs


def _parse_create_vm(
    call: Call,
    agent_id: str,
    stemcell: str,
    properties: JsonObject,
    networks: JsonObject,
    disks: tuple[str, ...],
    env: JsonObject,
) -> tuple[VMSpec]:
    # Imported here, as no other method needs them.
    from cpi.contract import agent_access, disk_properties, vm_networks, vm_properties
    from cpi.model import VMSpec

    foreign = call.foreign_keys()
    name = vm_properties.runtime(properties) or call.config.text("runtime")
    spec = VMSpec(
        cid=cid.new(catalog.entry(name).name, cid.VM),
        agent_id=agent_id,
        stemcell_cid=stemcell,
        properties=vm_properties.parse(properties, foreign),
        networks=vm_networks.parse(networks, call.log, foreign),
        env=env,
        agent=_agent_config(call.config),
        api_version=call.api_version,
        disk_cids=disks,
        disk_wishes=disk_properties.wishes(env),
    )
    agent_access.require(spec.agent, env, call.log)
    return (spec,)


def _create_vm(call: Call, spec: VMSpec) -> object:
    from cpi.agent_settings import render_network

    runtime = call.runtimes.of_cid(spec.cid, cid.VM)
    with call.hold(spec.cid):
        actual = runtime.create_vm(spec)
    if call.api_version == 1:
        return spec.cid
    return [spec.cid, {network.name: render_network(network) for network in actual}]


def _agent_config(config: Config) -> AgentConfig:
    from cpi.model import AgentConfig

    return AgentConfig(
        mbus=config.text("agent.mbus"),
        ntp=config.strings("agent.ntp"),
        blobstore=config.mapping("agent.blobstore"),
    )


def _has_vm(call: Call, vm: str) -> bool:
    return catalog.is_ours(vm, cid.VM) and call.runtimes.of_cid(vm, cid.VM).has_vm(vm)


def _calculate_vm_cloud_properties(call: Call, resources: JsonObject) -> object:
    from cpi.contract import vm_resources

    return vm_resources.cloud_properties(call.method, resources, call.log)


# Persistent disks


def _parse_create_disk(
    call: Call, size: int, properties: JsonObject, vm: str | None
) -> tuple[int, DiskProperties, str | None]:
    return size, _disk_properties(call, properties), vm


def _parse_update_disk(
    call: Call, disk: str, size: int, properties: JsonObject
) -> tuple[str, int, DiskProperties]:
    return disk, size, _disk_properties(call, properties)


def _disk_properties(call: Call, given: JsonObject) -> DiskProperties:
    from cpi.contract import disk_properties

    return disk_properties.parse(given, call.foreign_keys())


def _create_disk(call: Call, size: int, properties: DiskProperties, vm: str | None) -> object:
    # The disk belongs with the VM that it is for, which may have chosen its own runtime.
    runtime = call.runtimes.of_cid(vm, cid.VM) if vm else call.runtimes.default()
    return runtime.create_disk(size, properties, vm)


def _has_disk(call: Call, disk: str) -> bool:
    return catalog.is_ours(disk, cid.DISK) and call.runtimes.of_cid(disk, cid.DISK).has_disk(disk)


def _attach_disk(call: Call, vm: str, disk: str) -> object:
    runtime = call.runtimes.of_cid(vm, cid.VM)
    with call.hold(vm, disk):
        hint = runtime.attach_disk(vm, disk, call.api_version)
    return None if call.api_version == 1 else hint


def _detach_disk(call: Call, vm: str, disk: str) -> None:
    runtime = call.runtimes.of_cid(vm, cid.VM)
    with call.hold(vm, disk):
        runtime.detach_disk(vm, disk)


def _get_disks(call: Call, vm: str) -> object:
    return call.runtimes.of_cid(vm, cid.VM).get_disks(vm)


# Managed networks


def _create_network(call: Call, definition: JsonObject) -> object:
    return call.runtimes.default().create_network(definition)


def _delete_network(call: Call, network: str) -> None:
    call.runtimes.default().delete_network(network)


_VM = Parameter("vm_cid", check.vm_cid)
_DISK = Parameter("disk_cid", check.disk_cid)
_SIZE = Parameter("size", check.mebibytes)
_METADATA = Parameter("metadata", check.metadata)
_PROPERTIES = Parameter("cloud_properties", check.mapping)

METHODS: dict[str, Method] = {
    "info": Method(_info),
    "create_stemcell": Method(
        _create_stemcell,
        Parameter("image_path", check.path),
        _PROPERTIES,
        Parameter("options", check.stemcell_tags, optional=True),  # from version 3 on
    ),
    "delete_stemcell": Method(_delete_stemcell, Parameter("stemcell_cid", check.stemcell_cid)),
    "create_vm": Method(
        _create_vm,
        Parameter("agent_id", check.string),
        Parameter("stemcell_cid", check.stemcell_cid),
        _PROPERTIES,
        Parameter("networks", check.mapping),
        Parameter("disk_cids", check.disk_cids),
        Parameter("env", check.mapping),
        parse=_parse_create_vm,
    ),
    "delete_vm": Method(_locked(cid.VM), _VM),
    "has_vm": Method(_has_vm, Parameter("vm_cid", check.any_vm_cid)),
    "reboot_vm": Method(_locked(cid.VM), _VM),
    "set_vm_metadata": Method(_locked(cid.VM), _VM, _METADATA),
    "calculate_vm_cloud_properties": Method(
        _calculate_vm_cloud_properties, Parameter("resources", check.mapping)
    ),
    "create_disk": Method(
        _create_disk,
        _SIZE,
        _PROPERTIES,
        Parameter("vm_cid", check.optional_vm_cid),
        parse=_parse_create_disk,
    ),
    "delete_disk": Method(_locked(cid.DISK), _DISK),
    "has_disk": Method(_has_disk, Parameter("disk_cid", check.any_disk_cid)),
    "attach_disk": Method(_attach_disk, _VM, _DISK),
    "detach_disk": Method(_detach_disk, _VM, _DISK),
    "get_disks": Method(_get_disks, _VM),
    "set_disk_metadata": Method(_locked(cid.DISK), _DISK, _METADATA),
    "resize_disk": Method(_locked_in_use, _DISK, _SIZE),
    "update_disk": Method(
        _locked_in_use, _DISK, _SIZE, _PROPERTIES, parse=_parse_update_disk, since=2
    ),
    "snapshot_disk": Method(_locked_in_use, _DISK, _METADATA),
    "delete_snapshot": Method(_locked(cid.SNAPSHOT), Parameter("snapshot_cid", check.snapshot_cid)),
    "create_network": Method(_create_network, Parameter("definition", check.mapping)),
    "delete_network": Method(_delete_network, Parameter("network_cid", check.any_network_cid)),
}
