"""The containerd runtime's configuration keys: data only, since `info` loads it."""

from cpi.config.key import Key

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,75}"

KEYS = (
    Key(
        "containerd.address",
        type="path",
        default="/run/containerd/containerd.sock",
        doc="containerd's Unix socket.",
    ),
    Key(
        "containerd.namespace",
        default="bosh",
        pattern=_NAME,
        doc="containerd namespace that holds everything this CPI makes.",
    ),
    Key(
        "containerd.snapshotter",
        default="overlayfs",
        pattern=_NAME,
        doc="Snapshotter for stemcells and root file systems.",
    ),
    Key(
        "containerd.cgroup_parent",
        type="path",
        default="/bosh",
        doc="cgroup under which each VM gets its own.",
    ),
    Key(
        "containerd.allow_privileged",
        type="boolean",
        default=True,
        context_only_forbids=True,
        client=True,
        doc="Whether a VM may ask for `privileged: true`. A call's context can only forbid it: "
        "false in the file is final.",
    ),
    Key(
        "containerd.timeout",
        type="integer",
        default=60,
        unit="seconds",
        minimum=1,
        doc="Longest wait for one containerd call.",
    ),
)
