"""The containerd runtime's configuration keys: data only, since `info` loads it."""

from cpi.config.key import Key

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,75}"
# 4,095 ranges that neither useradd nor systemd assigns (systemd, docs/UIDS-GIDS.md).
_IDS = "1879048192-2147418111"

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
        "containerd.user_namespaces",
        default="auto",
        choices=("auto", "required", "off"),
        doc="Whether VMs that are not privileged run in user namespaces of their own, so that root "
        "in a VM is not root on the host: `auto` where the host can, `required` or not at all, "
        "`off` never.",
    ),
    Key(
        "containerd.user_namespace_ids",
        default=_IDS,
        pattern=r"[1-9][0-9]{4,9}-[1-9][0-9]{4,9}",
        doc="User and group ids of the host, FIRST-LAST, from which each VM in a user namespace "
        "gets 65536. Ranges that /etc/subuid or /etc/subgid assign are left out.",
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
