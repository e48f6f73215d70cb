"""The configuration keys of runtimes through libvirt: data only, since `info` loads it."""

from cpi.config.config import Key

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,75}"


def _keys(runtime: str, scheme: str, path: str, uris: str, pool_path: str) -> tuple[Key, ...]:
    """The keys that every hypervisor has.

    scheme, path: of its usual URI; uris: what else it can be; pool_path: what the folder of its
    volumes is.
    """
    return (
        Key(
            f"{runtime}.uri",
            "string",
            f"{scheme}:///{path}",
            "",
            f"libvirt's connection URI: {uris}",
            pattern=rf"{scheme}(\+[a-z0-9]+)?://\S*",
        ),
        Key(f"{runtime}.pool_path", "path", "", "", pool_path),
        Key(
            f"{runtime}.cpu",
            "integer",
            1,
            "CPUs",
            "CPUs of a VM that does not say how many.",
            least=1,
            client=True,
        ),
        Key(
            f"{runtime}.memory",
            "integer",
            1024,
            "MiB",
            "Memory of a VM that does not say.",
            least=32,
            client=True,
        ),
        Key(
            f"{runtime}.ephemeral_disk",
            "integer",
            10240,
            "MiB",
            "Ephemeral disk of a VM that does not say; it takes the room that is used.",
            least=16,
            client=True,
        ),
        Key(
            f"{runtime}.shutdown_timeout",
            "integer",
            60,
            "seconds",
            "How long a VM may take to shut down by itself, before a reboot and before one that "
            "has a persistent disk is deleted; then it is turned off. 0 turns it off at once.",
            least=0,
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
        "string",
        "auto",
        "",
        "`kvm` insists on /dev/kvm, `qemu` does without, `auto` takes it where libvirt finds it "
        "usable and warns where not.",
        choices=("auto", "kvm", "qemu"),
    ),
    Key("kvm.pool", "string", "bosh", "", "Storage pool for VMs and stemcells.", pattern=_NAME),
    Key(
        "kvm.network",
        "string",
        "",
        "",
        "libvirt network for VMs whose networks name neither a bridge nor a network. Empty means "
        "the bridge that containers use; on another machine, where there is none, `bosh`.",
        pattern=rf"({_NAME})?",
    ),
    Key(
        "kvm.firmware",
        "string",
        "bios",
        "",
        "Firmware of VMs.",
        choices=("bios", "uefi"),
        client=True,
    ),
    Key(
        "kvm.machine",
        "string",
        "",
        "",
        "Machine type, such as `q35`. Empty means `pc`, whose disks come and go with every kernel.",
        pattern=_WORD,
        client=True,
    ),
    Key(
        "kvm.cpu_model",
        "string",
        "",
        "",
        "CPU model in libvirt's words, or `host`. Empty means `host` with KVM, else QEMU's own.",
        pattern=_WORD,
        client=True,
    ),
    Key(
        "kvm.detach_timeout",
        "integer",
        30,
        "seconds",
        "How long a VM may take to let go of a disk.",
        least=1,
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
