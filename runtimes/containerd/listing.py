"""VMs and stemcells as `bosh-cpi vms`, `stemcells` and `top` show them."""

import json
from collections.abc import Iterator

from cpi import cid
from cpi.host.layout import Layout
from cpi.views import OTHER, RUNNING, STOPPED, StemcellView, Usage, VMView
from runtimes.containerd import cgroups, oci_spec
from runtimes.containerd.api import containers_pb2, images_pb2, task_pb2
from runtimes.containerd.client import NotFound
from runtimes.containerd.containers import Containers
from runtimes.containerd.daemon import Containerd
from runtimes.containerd.image_store import ImageStore
from runtimes.containerd.stemcells import IMAGE_PREFIX
from runtimes.containerd.vm_folder import VMFolder
from runtimes.containerd.vms import (
    LABEL_ADDRESSES,
    LABEL_AGENT,
    LABEL_PORTS,
    LABEL_STEMCELL,
    METADATA_PREFIX,
)
from stemcell_convert import oci

_STATES = {
    task_pb2.RUNNING: RUNNING,
    task_pb2.STOPPED: STOPPED,
    task_pb2.CREATED: "created",
    task_pb2.PAUSED: "paused",
    task_pb2.PAUSING: "paused",
}


def vms(containers: Containers, runtime: str) -> list[VMView]:
    """Return all VMs of a namespace, by CID, and no other containers."""
    tasks = containers.tasks()
    views = (
        view(container, tasks.get(container.id), runtime)
        for container in containers.all()
        if cid.named_runtime(container.id, cid.VM) == runtime
    )
    return sorted(views, key=lambda view: view.cid)


def view(
    container: containers_pb2.Container, task: task_pb2.Process | None, runtime: str
) -> VMView:
    """Return what a VM's record says of it."""
    labels = container.labels
    spec = json.loads(container.spec.value)
    limits, first_id = oci_spec.limits_of(spec), oci_spec.first_id_of(spec)
    return VMView(
        cid=container.id,
        runtime=runtime,
        state=STOPPED if task is None else _STATES.get(task.status, OTHER),
        isolation=_isolation(first_id, privileged=limits.privileged),
        first_id=first_id or None,
        agent_id=labels.get(LABEL_AGENT, ""),
        stemcell=labels.get(LABEL_STEMCELL, ""),
        addresses=tuple(labels.get(LABEL_ADDRESSES, "").split()),
        ports=tuple(labels.get(LABEL_PORTS, "").split()),
        cpu=limits.cpu,
        memory=None if limits.memory is None else limits.memory >> 20,
        pids=limits.pids,
        created_at=container.created_at.seconds or None,
        metadata={
            key.removeprefix(METADATA_PREFIX): value
            for key, value in sorted(labels.items())
            if key.startswith(METADATA_PREFIX)
        },
    )


def _isolation(first_id: int, *, privileged: bool) -> str:
    if first_id:
        return "user namespace"
    return "privileged" if privileged else "none"


def stemcells(store: ImageStore, runtime: str, default: str) -> list[StemcellView]:
    """Return all imported stemcells. default: the runtime that names shared ones."""
    images = store.find_images(f'name~="^{IMAGE_PREFIX}"')
    views = (_stemcell(image, runtime, default) for image in images)
    return sorted(views, key=lambda view: view.cid)


def _stemcell(image: images_pb2.Image, runtime: str, default: str) -> StemcellView:
    identifier = image.name.removeprefix(IMAGE_PREFIX).partition(":")[0]
    own = image.target.digest.partition(":")[2].startswith(identifier)
    labels = image.labels
    return StemcellView(
        cid=cid.new(runtime if own else default, cid.STEMCELL, identifier),
        runtime=runtime,
        name=labels.get(oci.LABEL_NAME, ""),
        version=labels.get(oci.LABEL_VERSION, ""),
        operating_system=labels.get(oci.LABEL_OS, ""),
        image=image.name,
        created_at=image.created_at.seconds or None,
    )


def used(containerd: Containerd, parent: str, layout: Layout) -> Iterator[Usage]:
    """Yield the usage of each VM that has a task, by CID. parent: the cgroup above theirs."""
    for vm_cid in sorted(containerd.containers.tasks()):
        counted = cgroups.usage(cgroups.path_of(parent, vm_cid))
        if counted is None:  # it has gone meanwhile, or is not this CPI's
            continue
        try:
            disk = containerd.store.usage(vm_cid) + VMFolder(layout, vm_cid).data_size()
        except NotFound:
            continue
        yield Usage(cid=vm_cid, disk=disk, **counted)
