"""containerd's container records and tasks."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from google.protobuf.any_pb2 import Any as Packed  # noqa: TID253 - loaded with the client only
from google.protobuf.empty_pb2 import Empty  # noqa: TID253
from google.protobuf.field_mask_pb2 import FieldMask  # noqa: TID253

from cpi.errors import CloudError
from runtimes.containerd.api import containers_pb2, task_pb2, tasks_pb2, types_pb2
from runtimes.containerd.client import Client, NotFound, Refused

RUNTIME = "io.containerd.runc.v2"
SPEC_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Spec"

_KILL = 9
_EXIT_SECONDS = 60


class Containers:
    """containerd's containers and their tasks; a container's id is the VM's CID."""

    def __init__(self, client: Client, snapshotter: str) -> None:
        self._client = client
        self._snapshotter = snapshotter

    def find(self, cid: str) -> containers_pb2.Container | None:
        """Return a container's record, or None."""
        reply = self._client.call_or_none(
            "containers.v1.Containers/Get",
            containers_pb2.GetContainerRequest(id=cid),
            containers_pb2.GetContainerResponse,
            doing=f"looking for the container {cid}",
        )
        return None if reply is None else reply.container

    def all(self) -> Sequence[containers_pb2.Container]:
        """Return the records of all containers; together they may exceed a message's limit."""
        messages = self._client.listing(
            "containers.v1.Containers/ListStream",
            containers_pb2.ListContainersRequest(),
            containers_pb2.ListContainerMessage,
            doing="listing containers",
        )
        return [message.container for message in messages]

    def tasks(self) -> Mapping[str, task_pb2.Process]:
        """Return the init process of each container that has a task."""
        processes = self._client.call(
            "tasks.v1.Tasks/List",
            tasks_pb2.ListTasksRequest(),
            tasks_pb2.ListTasksResponse,
            doing="listing tasks",
        ).tasks
        # Only this call has the container's ID in `id` (services/tasks/local.go).
        return {process.id or process.container_id: process for process in processes}

    def create(
        self, cid: str, image: str, spec: Mapping[str, Any], labels: Mapping[str, str]
    ) -> None:
        """Record a container whose snapshot has its name. Raises AlreadyExists."""
        container = containers_pb2.Container(
            id=cid,
            labels=dict(labels),
            image=image,
            runtime=containers_pb2.Container.Runtime(name=RUNTIME),
            spec=_packed(spec),
            snapshotter=self._snapshotter,
            snapshot_key=cid,
        )
        self._client.call(
            "containers.v1.Containers/Create",
            containers_pb2.CreateContainerRequest(container=container),
            containers_pb2.CreateContainerResponse,
            doing=f"creating the container {cid}",
        )

    def set_labels(self, cid: str, labels: Mapping[str, str]) -> None:
        """Replace a container's labels. Raises NotFound."""
        self._update(containers_pb2.Container(id=cid, labels=dict(labels)), "labels")

    def set_spec(self, cid: str, spec: Mapping[str, Any]) -> None:
        """Replace a container's spec; the next task is made by it. Raises NotFound."""
        self._update(containers_pb2.Container(id=cid, spec=_packed(spec)), "spec")

    def _update(self, container: containers_pb2.Container, field: str) -> None:
        self._client.call(
            "containers.v1.Containers/Update",
            containers_pb2.UpdateContainerRequest(
                container=container, update_mask=FieldMask(paths=[field])
            ),
            containers_pb2.UpdateContainerResponse,
            doing=f"changing the {field} of the container {container.id}",
        )

    def delete(self, cid: str) -> None:
        """Delete a container's record, if it exists."""
        self._ignoring_gone(
            "containers.v1.Containers/Delete",
            containers_pb2.DeleteContainerRequest(id=cid),
            f"deleting the container {cid}",
        )

    def start(
        self,
        cid: str,
        mounts: Sequence[types_pb2.Mount],
        console: str,
        prepare: Callable[[int], None],
    ) -> int:
        """Create and start a container's task; return the process id of its init.

        console: URI of what takes the output of its terminal. `prepare` gets the process id when
        all namespaces exist and nothing of the container has run yet.
        """
        pid = self._client.call(
            "tasks.v1.Tasks/Create",
            tasks_pb2.CreateTaskRequest(
                container_id=cid, rootfs=mounts, stdout=console, terminal=True
            ),
            tasks_pb2.CreateTaskResponse,
            doing=f"creating the task of {cid}",
        ).pid
        try:
            prepare(pid)
            self._client.call(
                "tasks.v1.Tasks/Start",
                tasks_pb2.StartRequest(container_id=cid),
                tasks_pb2.StartResponse,
                doing=f"starting the task of {cid}",
            )
        except BaseException:
            self.stop(cid)
            raise
        return pid

    def has_task(self, cid: str) -> bool:
        """Tell whether there is a task, running or not. None outlives a restart of the host."""
        return self._task(cid) is not None

    def init_of(self, cid: str) -> int | None:
        """Return the process id of a running task's init, or None."""
        reply = self._task(cid)
        if reply is None or reply.process.status != task_pb2.RUNNING:
            return None
        return reply.process.pid

    def _task(self, cid: str) -> tasks_pb2.GetResponse | None:
        return self._client.call_or_none(
            "tasks.v1.Tasks/Get",
            tasks_pb2.GetRequest(container_id=cid),
            tasks_pb2.GetResponse,
            doing=f"looking for the task of {cid}",
        )

    def exit_status(self, cid: str) -> int:
        """Return the exit status of a task whose init has ended. Raises CloudError."""
        reply = self._client.call(
            "tasks.v1.Tasks/Wait",
            tasks_pb2.WaitRequest(container_id=cid),
            tasks_pb2.WaitResponse,
            doing=f"asking for the exit status of {cid}",
        )
        return int(reply.exit_status)

    def stop(self, cid: str) -> None:
        """Kill a task's processes and delete it, if it exists."""
        try:
            killed = self._kill(cid, everything=True)
        except CloudError:
            # On cgroup v2 root in a VM can make a cgroup whose processes runc fails to list. The
            # end of its init ends them too: they are in its PID namespace.
            killed = self._kill(cid, everything=False)
        if killed:
            self._client.call_or_none(
                "tasks.v1.Tasks/Wait",
                tasks_pb2.WaitRequest(container_id=cid),
                tasks_pb2.WaitResponse,
                doing=f"waiting for the task of {cid} to end",
                timeout=_EXIT_SECONDS,
            )
        self._client.call_or_none(
            "tasks.v1.Tasks/Delete",
            tasks_pb2.DeleteTaskRequest(container_id=cid),
            tasks_pb2.DeleteResponse,
            doing=f"deleting the task of {cid}",
        )

    def _kill(self, cid: str, *, everything: bool) -> bool:
        return self._ignoring_gone(
            "tasks.v1.Tasks/Kill",
            tasks_pb2.KillRequest(container_id=cid, signal=_KILL, all=everything),
            f"killing the task of {cid}",
        )

    def _ignoring_gone(self, method: str, request: Any, doing: str) -> bool:
        try:
            self._client.call(method, request, Empty, doing=doing)
        except (NotFound, Refused):
            return False
        return True


def _packed(spec: Mapping[str, Any]) -> Packed:
    return Packed(type_url=SPEC_TYPE, value=json.dumps(spec).encode())
