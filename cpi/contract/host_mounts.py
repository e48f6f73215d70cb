"""VM cloud_properties.mounts: folders of the host that a VM gets, checked as far as words go."""

from __future__ import annotations

from cpi.errors import CloudError
from cpi.model import HostMount
from cpi.text import kind, shown

_KEYS = ("host", "vm", "read_only")
_MOST = 32
_LONGEST = 1024  # characters of a path

# What of a VM is not to be hidden: neither it nor anything below.
_WHOLE = (
    *("/proc", "/sys", "/dev", "/etc", "/run", "/var/run", "/warden-cpi-dev"),
    *("/var/vcap/bosh", "/var/vcap/bosh-cpi", "/var/vcap/bosh_ssh", "/var/vcap/data"),
    *("/var/vcap/store", "/var/vcap/store_migration_target", "/var/vcap/instance"),
    *("/var/vcap/jobs", "/var/vcap/packages", "/var/vcap/monit", "/var/vcap/sys"),
    *("/var/vcap/micro", "/var/vcap/micro_bosh"),
)
# These not either, but there is room below.
_ITSELF = (
    *("/bin", "/boot", "/home", "/lib", "/lib32", "/lib64", "/libx32", "/opt", "/root", "/sbin"),
    *("/usr", "/usr/bin", "/usr/lib", "/usr/sbin", "/var/lib", "/var/log"),
)


def parse(given: object) -> tuple[HostMount, ...]:
    """Return checked mounts. Raises CloudError naming the mount and what is wrong."""
    if given is None:
        return ()
    if not isinstance(given, list) or len(given) > _MOST:
        got = f"{len(given)} of them" if isinstance(given, list) else kind(given)
        raise CloudError(
            f"cloud_properties.mounts must be a list of at most {_MOST} mounts, got {got}"
        )
    mounts = tuple(_mount(f"cloud_properties.mounts[{at}]", item) for at, item in enumerate(given))
    for at, mount in enumerate(mounts):
        for other in mounts[:at]:
            if _is_below(mount.vm, other.vm) or _is_below(other.vm, mount.vm):
                raise CloudError(
                    f"cloud_properties.mounts has {shown(mount.vm)} and {shown(other.vm)}, and one "
                    "would hide the other"
                )
    return mounts


def _mount(where: str, value: object) -> HostMount:
    if not isinstance(value, dict):
        raise CloudError(f"{where} must be an object with host and vm, got {kind(value)}")
    unknown = [shown(str(key), 60) for key in value if key not in _KEYS]
    if unknown:
        raise CloudError(
            f"{where} has unknown keys: {', '.join(unknown)}; known: {', '.join(_KEYS)}"
        )
    read_only = value.get("read_only")
    if read_only is not None and not isinstance(read_only, bool):
        raise CloudError(f"{where}.read_only must be true or false, got {kind(read_only)}")
    host, vm = (_path(f"{where}.{key}", value.get(key)) for key in ("host", "vm"))
    for taken in (*_WHOLE, *_ITSELF):
        if _is_below(taken, vm) or (taken in _WHOLE and _is_below(vm, taken)):
            raise CloudError(f"{where}.vm: {shown(vm)} would hide {taken}, which the VM needs")
    return HostMount(host, vm, read_only is not False)


def _path(where: str, value: object) -> str:
    """An absolute path without `.`, `..`, doubled slashes or one at the end."""
    if not isinstance(value, str):
        raise CloudError(f"{where} must be an absolute path, got {kind(value)}")
    if not value.startswith("/") or len(value) > _LONGEST or not value.isprintable():
        raise CloudError(
            f"{where} must be an absolute path of printable characters, got {shown(value)}"
        )
    if any(part in ("", ".", "..") for part in value[1:].split("/")):
        raise CloudError(
            f"{where}: {shown(value)} must be written without .., ., // and a / at its end"
        )
    return value


def _is_below(path: str, folder: str) -> bool:
    """Tell whether a path is a folder or below it."""
    return path == folder or path.startswith(f"{folder}/")
