"""VMs and stemcells as `bosh-cpi vms`, `stemcells` and `top` show them."""

from collections.abc import Mapping
from typing import Any

from cpi import cid
from cpi.cni.attachments import STATE, addresses, attachments_in
from cpi.host.layout import Layout
from cpi.views import OTHER, RUNNING, STOPPED, StemcellView, Usage, VMView
from runtimes.libvirt import client
from runtimes.libvirt.addresses import reserved
from runtimes.libvirt.client import Connection, translated_errors
from runtimes.libvirt.domains import Domains
from runtimes.libvirt.stemcells import FACTS
from runtimes.libvirt.volumes import StoragePool

_STATES = {client.IS_RUNNING: RUNNING, client.IS_OFF: STOPPED, client.IS_PAUSED: "paused"}


def vms(domains: Domains) -> list[VMView]:
    """Return all VMs of this CPI, by CID, and no other domains."""
    views = [
        _view(domains, domain)
        for domain in domains.connection.domains()
        if _is_ours(domain, domains.profile.name)
    ]
    return sorted(views, key=lambda view: view.cid)


def _is_ours(domain: Any, runtime: str) -> bool:
    return cid.named_runtime(domain.name(), cid.VM) == runtime


def _view(domains: Domains, domain: Any) -> VMView:
    name = domain.name()
    facts = domains.facts(domain)
    with translated_errors(f"looking at the VM {name}"):
        # Of VirtualBox, the maximum (the second) is the most that any VM may have.
        state, _, memory, cpus, _ = domain.info()
    folder = domains.layout.vm(name)
    return VMView(
        cid=name,
        runtime=domains.profile.name,
        isolation="virtual machine",
        state=_STATES.get(state, OTHER),
        stemcell=facts.stemcell,
        addresses=_addresses(domains.layout, name),
        cpu=float(cpus),
        memory=memory >> 10,
        created_at=folder.stat().st_ctime if folder.is_dir() else None,
        metadata=facts.metadata,
    )


def _addresses(layout: Layout, vm_cid: str) -> tuple[str, ...]:
    """Return addresses from CNI, and those on libvirt's own networks of this machine."""
    attachments = attachments_in(layout.vm(vm_cid) / STATE)
    given = [ip for attachment in attachments for ip, _, _ in addresses(attachment.result or {})]
    return (*given, *reserved(layout.addresses, vm_cid))


def stemcells(pool: StoragePool, runtime: str, default: str) -> list[StemcellView]:
    """Return all imported stemcells. default: the runtime that names shared ones."""
    views = [
        StemcellView(cid=cid.new(default, cid.STEMCELL, name.removesuffix(FACTS)), runtime=runtime)
        for name in pool.names()
        if name.endswith(FACTS)
    ]
    return sorted(views, key=lambda view: view.cid)


def used(connection: Connection, runtime: str) -> list[Usage]:
    """Return the usage of each running VM. Raises NotSupported where the driver has none."""
    with translated_errors("asking libvirt what its domains use"):
        counted = client.statistics(connection.raw)
    usages = [
        usage(domain.name(), numbers) for domain, numbers in counted if _is_ours(domain, runtime)
    ]
    return sorted(usages, key=lambda usage: usage.cid)


def usage(name: str, numbers: Mapping[str, Any]) -> Usage:
    """Read virConnectGetAllDomainStats: times in ns, memory in KiB, disks in bytes."""

    def disks(what: str) -> int:
        count = numbers.get("block.count", 0)
        return sum(numbers.get(f"block.{index}.{what}", 0) for index in range(count))

    memory, limit = numbers.get("balloon.rss"), numbers.get("balloon.maximum")
    return Usage(
        cid=name,
        cpu=numbers.get("cpu.time", 0) / 1e9,
        memory=None if memory is None else memory << 10,
        memory_limit=None if limit is None else limit << 10,
        disk=disks("physical"),
        read=disks("rd.bytes"),
        written=disks("wr.bytes"),
    )
