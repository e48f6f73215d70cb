"""A FAKE of libvirt's VirtualBox driver, since the VirtualBox 7.0 that it needs is not available.

It has the driver's methods (libvirt 9.0, src/vbox/vbox_common.c) and refuses the others with the
same codes and messages; it keeps what the driver keeps of a domain's document, and checks the
files. It does not prove that VirtualBox runs these VMs; for that see docs/virtualbox.md.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import libvirt  # noqa: TID253 (for its errors)

from cpi.host.process import CommandFailed
from tests.support.virtualbox.fake_vbox_documents import (
    ABORTED,
    DOMAIN,
    NONE,
    OFF,
    RUNNING,
    VBOX,
    VBoxMachine,
    dump,
    error,
    failed,
    internal,
    no_domain,
    parse,
    unknown,
    validate,
)
from tests.support.virtualbox.fake_vbox_media import Media, MediumRefused

_STATES = {OFF: 5, RUNNING: 1, ABORTED: 6}
_MAX_GUEST_RAM = 2 << 30  # KiB, VirtualBox's own limit, which the driver gives as a domain's


def _check_flags(flags: int, allowed: int, function: str) -> None:
    if flags & ~allowed:
        text = f"unsupported flags (0x{flags & ~allowed:x}) in function {function}"
        raise error(libvirt.VIR_ERR_INVALID_ARG, VBOX, text)


def _absent(prefix: str, real: type, name: str) -> Callable[..., Any]:
    """Return a method that libvirt has and the driver lacks."""
    if not hasattr(real, name):
        raise AttributeError(f"libvirt has no {real.__name__}.{name}")

    def refuse(*_arguments: object) -> Any:
        function = f"{prefix}{name[0].upper()}{name[1:]}"
        text = f"this function is not supported by the connection driver: {function}"
        raise error(libvirt.VIR_ERR_NO_SUPPORT, DOMAIN, text)

    return refuse


@dataclass
class FakeVBox:
    """One user's VirtualBox. The switches are for tests."""

    machines: dict[str, VBoxMachine] = field(default_factory=dict)
    media: Media = field(default_factory=Media)
    documents: list[str] = field(default_factory=list)  # that were defined
    calls: list[str] = field(default_factory=list)
    obeys: bool = True  # guests shut down when they are asked to
    loses: str = ""  # what a define loses although it succeeds: memory, interfaces
    fail_start: int = 0  # how many starts fail

    def open(self, uri: str) -> "VBoxConnection":
        """Replace libvirt.open."""
        if uri not in ("vbox:///session", "vbox:///system"):
            raise error(1, NONE, f"internal error: unexpected vbox URI path in {uri}")
        return VBoxConnection(self)

    def named(self, name: str) -> VBoxMachine:
        """Return a machine by its name."""
        return next(machine for machine in self.machines.values() if machine.name == name)

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        timeout: float = 120,
        install_hint: str = "",
    ) -> bytes:
        """Run a fake VBoxManage, in place of cpi.host.process.run."""
        match list(argv):
            case ["VBoxManage", "startvm", uuid, "--type", "headless"]:
                self._start(argv, self.machines.get(uuid))
            case _:
                raise AssertionError(f"VBoxManage is not called like that: {argv}")
        return b"VM has been successfully started.\n"

    def _start(self, argv: Sequence[str], machine: VBoxMachine | None) -> None:
        def refuse(stderr: str) -> CommandFailed:
            return CommandFailed(f"{argv} failed: {stderr}", status=1, stderr=stderr)

        if machine is None:
            raise refuse("VBoxManage: error: Could not find a registered machine")
        if machine.state == RUNNING or machine.held:
            machine.held = max(0, machine.held - 1)
            raise refuse(f"The machine '{machine.name}' is already locked by a session")
        if self.fail_start:
            self.fail_start -= 1
            raise refuse("VBoxManage: error: The virtual machine has terminated unexpectedly")
        for device, path in machine.disks.values():
            self.media.open(path, device)
        machine.state = RUNNING
        self.calls.append(f"start {machine.name}")
        if machine.console:
            Path(machine.console).write_text("booted\n")


class VBoxConnection:
    """The methods of virConnect that the driver has."""

    def __init__(self, world: FakeVBox) -> None:
        self._world = world

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return _absent("virConnect", libvirt.virConnect, name)

    def isAlive(self) -> int:
        return 1

    def close(self) -> int:
        return 0

    def listAllDomains(self, flags: int = 0) -> list["VBoxDomain"]:
        assert not flags
        return [VBoxDomain(self._world, uuid) for uuid in self._world.machines]

    def lookupByName(self, name: str) -> "VBoxDomain":
        for machine in self._world.machines.values():
            if machine.name == name:
                return VBoxDomain(self._world, machine.uuid)
        raise unknown()

    def defineXML(self, document: str) -> "VBoxDomain":
        validate(document)
        machine = parse(document)
        taken = [known.name for known in self._world.machines.values()]
        if machine.name in taken:
            raise internal("could not define a domain, rc=80bb0004")
        if machine.uuid in self._world.machines:
            raise no_domain("no domain with matching uuid")
        for device, path in machine.disks.values():
            try:
                self._world.media.open(path, device)
            except MediumRefused as refused:
                medium = {"disk": "disk", "cdrom": "dvd"}[device]
                raise internal(
                    f"Failed to open the following {medium} to the machine: {path}, {refused}"
                ) from None
        if self._world.loses == "memory":
            machine.memory = 128 << 10
        if self._world.loses == "interfaces":
            machine.interfaces.clear()
        self._world.machines[machine.uuid] = machine
        self._world.documents.append(document)
        self._world.calls.append(f"define {machine.name}")
        return VBoxDomain(self._world, machine.uuid)


class VBoxDomain:
    """The methods of virDomain that the driver has."""

    def __init__(self, world: FakeVBox, uuid: str) -> None:
        self._world = world
        self._uuid = uuid
        self._name = world.machines[uuid].name

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return _absent("virDomain", libvirt.virDomain, name)

    def name(self) -> str:
        return self._name

    def UUIDString(self) -> str:
        return self._uuid

    def isActive(self) -> int:
        machine = self._machine()
        if machine.slow:
            machine.slow -= 1
            if not machine.slow:
                self._off(machine)
        return int(machine.state == RUNNING)

    def state(self, flags: int = 0) -> list[int]:
        _check_flags(flags, 0, "vboxDomainGetState")
        return [_STATES[self._machine().state], 0]

    def info(self) -> list[int]:
        machine = self._machine()
        return [_STATES[machine.state], _MAX_GUEST_RAM, machine.memory, machine.vcpus, 0]

    def XMLDesc(self, flags: int = 0) -> str:
        _check_flags(flags, 1 | 2 | 8, "vboxDomainGetXMLDesc")
        return dump(self._machine())

    def create(self) -> int:
        return self.createWithFlags(0)

    def createWithFlags(self, flags: int = 0) -> int:
        _check_flags(flags, 0, "vboxDomainCreateWithFlags")
        if self._machine().state == RUNNING:
            raise failed("machine is not in poweroff|saved|aborted state, so couldn't start it")
        # Without a display there is no environment to pass, and VirtualBox refuses an empty one.
        raise failed("OpenRemoteSession/LaunchVMProcess failed, domain can't be started")

    def shutdown(self) -> int:
        return self.shutdownFlags(0)

    def shutdownFlags(self, flags: int = 0) -> int:
        _check_flags(flags, 0, "vboxDomainShutdownFlags")
        machine = self._machine()
        if machine.state != RUNNING:
            raise failed("machine already powered down")
        if self._world.obeys and "acpi" in machine.features:
            machine.slow = 2
        return 0

    def destroy(self) -> int:
        return self.destroyFlags(0)

    def destroyFlags(self, flags: int = 0) -> int:
        _check_flags(flags, 0, "vboxDomainDestroyFlags")
        machine = self._machine()
        if machine.state == OFF:
            raise failed("machine already powered down")
        if machine.state == ABORTED:
            raise unknown()
        self._off(machine)
        return 0

    def undefine(self) -> int:
        return self.undefineFlags(0)

    def undefineFlags(self, flags: int = 0) -> int:
        _check_flags(flags, 2, "vboxDomainUndefineFlags")
        machine = self._machine()
        if machine.state == RUNNING or machine.held:
            machine.held = max(0, machine.held - 1)
            raise internal("could not delete the domain, rc=80bb0007")
        for device, path in machine.disks.values():
            if device == "disk":
                self._world.media.close(path)
        del self._world.machines[self._uuid]
        self._world.calls.append(f"undefine {machine.name}")
        return 0

    def attachDevice(self, document: str) -> int:
        return self.attachDeviceFlags(document, 1)

    def attachDeviceFlags(self, document: str, flags: int = 0) -> int:
        _check_flags(flags, 1, "vboxDomainAttachDeviceFlags")
        raise self._not_a_folder(document)

    def detachDeviceFlags(self, document: str, flags: int = 0) -> int:
        _check_flags(flags, 1, "vboxDomainDetachDeviceFlags")
        raise self._not_a_folder(document)

    def _not_a_folder(self, document: str) -> libvirt.libvirtError:
        number = {"<disk": 1, "<interface": 4}[document.split()[0]]
        text = f"argument unsupported: Unsupported device type {number}"
        return error(libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED, VBOX, text)

    def _machine(self) -> VBoxMachine:
        if self._uuid not in self._world.machines:
            raise no_domain("no domain with matching uuid")
        return self._world.machines[self._uuid]

    def _off(self, machine: VBoxMachine) -> None:
        machine.state, machine.slow, machine.held = OFF, 0, 1
        self._world.calls.append(f"off {machine.name}")
