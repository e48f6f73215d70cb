"""The configuration keys of runtimes through libvirt: data only, since `info` loads it."""

from cpi.config.key import Key

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,75}"


def _keys(runtime: str, scheme: str, path: str, uris: str, pool_path: str) -> tuple[Key, ...]:
    """Return the keys that every hypervisor has.

    scheme, path: of its default URI; uris: what else it can be; pool_path: of the folder of its
    volumes.
    """
    return (
        Key(
            f"{runtime}.uri",
            default=f"{scheme}:///{path}",
            pattern=rf"{scheme}(\+[a-z0-9]+)?://\S*",
            doc=f"libvirt's connection URI: {uris}",
        ),
        Key(f"{runtime}.pool_path", type="path", doc=pool_path),
        Key(
            f"{runtime}.cpu",
            type="integer",
            default=1,
            unit="CPUs",
            minimum=1,
            client=True,
            doc="CPUs of a VM that does not say how many.",
        ),
        Key(
            f"{runtime}.memory",
            type="integer",
            default=1024,
            unit="MiB",
            minimum=32,
            client=True,
            doc="Memory of a VM that does not say.",
        ),
        Key(
            f"{runtime}.ephemeral_disk",
            type="integer",
            default=10240,
            unit="MiB",
            minimum=16,
            client=True,
            doc="Ephemeral disk of a VM that does not say; it takes the room that is used.",
        ),
        Key(
            f"{runtime}.shutdown_timeout",
            type="integer",
            default=60,
            unit="seconds",
            minimum=0,
            doc="How long a VM may take to shut down by itself, before a reboot and before one "
            "that has a persistent disk is deleted; then it is turned off. 0 turns it off at "
            "once.",
        ),
    )


_WORD = r"([A-Za-z0-9][A-Za-z0-9._+-]{0,63})?"

KEYS = (
    *_keys(
        "kvm",
        "qemu",
        "system",
        "`qemu:///system`, `qemu:///session`, or of another machine, `qemu+ssh://root@host/system` "
        "or `qemu+tls://host/system`.",
        "Folder of the pool, on libvirt's machine, when the pool is made because it is missing. "
        "Empty means `<state_dir>/kvm`, and `/var/lib/libvirt/images/bosh` on another machine.",
    ),
    Key(
        "kvm.accelerator",
        default="auto",
        choices=("auto", "kvm", "qemu"),
        doc="`kvm` insists on /dev/kvm, `qemu` does without, `auto` takes it where libvirt finds "
        "it usable and warns where not.",
    ),
    Key("kvm.pool", default="bosh", pattern=_NAME, doc="Storage pool for VMs and stemcells."),
    Key(
        "kvm.network",
        pattern=rf"({_NAME})?",
        doc="libvirt network for VMs whose networks name neither a bridge nor a network. Empty "
        "means the bridge that containers use; on another machine, where there is none, `bosh`.",
    ),
    Key(
        "kvm.firmware",
        default="bios",
        choices=("bios", "uefi"),
        client=True,
        doc="Firmware of VMs.",
    ),
    Key(
        "kvm.machine",
        pattern=_WORD,
        client=True,
        doc="Machine type, such as `q35`. Empty means `pc`, whose disks come and go with every "
        "kernel.",
    ),
    Key(
        "kvm.cpu_model",
        pattern=_WORD,
        client=True,
        doc="CPU model in libvirt's words, or `host`. Empty means `host` with KVM, else QEMU's "
        "own.",
    ),
    Key(
        "kvm.detach_timeout",
        type="integer",
        default=30,
        unit="seconds",
        minimum=1,
        doc="How long a VM may take to let go of a disk.",
    ),
    *_keys(
        "virtualbox",
        "vbox",
        "session",
        "`vbox:///session`, for root also `vbox:///system`; both are the VirtualBox of the user "
        "that the CPI runs as. It must be this machine's: see docs/virtualbox.md.",
        "Folder of the VMs' and stemcells' disks. Empty means `<state_dir>/virtualbox`.",
    ),
)
