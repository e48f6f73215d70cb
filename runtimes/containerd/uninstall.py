"""What this runtime leaves on a host without VMs: stemcells, a namespace, a cgroup."""

from functools import partial

from google.protobuf.empty_pb2 import Empty  # noqa: TID253 - loaded with the client only

from cpi.config.config import Config
from cpi.model import Garbage
from runtimes.containerd import cgroups, listing
from runtimes.containerd.api import namespaces_pb2
from runtimes.containerd.client import Client
from runtimes.containerd.daemon import Containerd

_WHY = "this CPI made it"


def remains(containerd: Containerd, runtime: str, config: Config) -> list[Garbage]:
    """Return what is there, in the order of removal. Raises CloudError."""
    found = []
    for stemcell in listing.stemcells(containerd.store, runtime, config.text("runtime")):
        remove = partial(containerd.stemcells.delete, stemcell.cid)
        found.append(Garbage("stemcell", stemcell.cid, _WHY, stemcell.cid, remove))
    namespace, client = config.text("containerd.namespace"), containerd.client
    if _has_namespace(client, namespace):
        remove = partial(_delete_namespace, client, namespace)
        lock = f"namespace-{namespace}"
        found.append(Garbage("containerd namespace", namespace, _WHY, lock, remove))
    parent = config.text("containerd.cgroup_parent")
    if cgroups.exists(parent):
        lock = "cgroup-parent"
        found.append(Garbage("cgroup", parent, _WHY, lock, partial(cgroups.remove, parent)))
    return found


def _has_namespace(client: Client, name: str) -> bool:
    found = client.call(  # not Get, which answers for one that does not exist as well
        "namespaces.v1.Namespaces/List",
        namespaces_pb2.ListNamespacesRequest(),
        namespaces_pb2.ListNamespacesResponse,
        doing="listing namespaces",
    )
    return any(namespace.name == name for namespace in found.namespaces)


def _delete_namespace(client: Client, name: str) -> None:
    """Delete an empty namespace; containerd refuses another one, which has a user besides us."""
    client.call_or_none(
        "namespaces.v1.Namespaces/Delete",
        namespaces_pb2.DeleteNamespaceRequest(name=name),
        Empty,
        doing=f"deleting the namespace {name}",
    )
