"""The containerd runtime's configuration keys: data only, since `info` loads it."""

from cpi.config.config import Key

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,75}"

KEYS = (
    Key(
        "containerd.address",
        "path",
        "/run/containerd/containerd.sock",
        "",
        "containerd's Unix socket.",
    ),
    Key(
        "containerd.namespace",
        "string",
        "bosh",
        "",
        "containerd namespace that holds everything this CPI makes.",
        pattern=_NAME,
    ),
    Key(
        "containerd.snapshotter",
        "string",
        "overlayfs",
        "",
        "Snapshotter for stemcells and root file systems.",
        pattern=_NAME,
    ),
    Key(
        "containerd.cgroup_parent",
        "path",
        "/bosh",
        "",
        "cgroup under which each VM gets its own.",
    ),
    Key(
        "containerd.allow_privileged",
        "boolean",
        True,
        "",
        "Whether a VM may ask for `privileged: true`. A call's context can only forbid it: "
        "false in the file is final.",
        context_only_forbids=True,
        client=True,
    ),
    Key(
        "containerd.timeout",
        "integer",
        60,
        "seconds",
        "Longest wait for one containerd call.",
        least=1,
    ),
)
