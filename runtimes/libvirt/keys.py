"""The configuration keys of runtimes through libvirt: data only, since `info` loads it."""

from cpi.config import Key

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,75}"

KEYS = (
    Key(
        "kvm.uri",
        "string",
        "qemu:///system",
        "",
        "libvirt's connection URI: `qemu:///system`, `qemu:///session`, or of another machine, "
        "`qemu+ssh://root@host/system` or `qemu+tls://host/system`.",
        pattern=r"qemu(\+[a-z0-9]+)?://\S*",
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
        "kvm.pool_path",
        "path",
        "",
        "",
        "Folder of the pool, on libvirt's machine, when the pool is made because it is missing. "
        "Empty means `<state_dir>/kvm`, and `/var/lib/libvirt/images/bosh` on another machine.",
    ),
    Key(
        "kvm.network",
        "string",
        "",
        "",
        "libvirt network for VMs whose networks name neither a bridge nor a network. Empty means "
        "the bridge that containers use; on another machine, where there is none, `bosh`.",
        pattern=r"([A-Za-z0-9][A-Za-z0-9._-]{0,75})?",
    ),
    Key("kvm.cpu", "integer", 1, "CPUs", "CPUs of a VM that does not say how many.", least=1),
    Key("kvm.memory", "integer", 1024, "MiB", "Memory of a VM that does not say.", least=32),
    Key(
        "kvm.ephemeral_disk",
        "integer",
        10240,
        "MiB",
        "Ephemeral disk of a VM that does not say; it takes the room that is used.",
        least=16,
    ),
    Key("kvm.firmware", "string", "bios", "", "Firmware of VMs.", choices=("bios", "uefi")),
    Key(
        "kvm.machine",
        "string",
        "",
        "",
        "Machine type, such as `q35`. Empty means `pc`, whose disks come and go with every kernel.",
        pattern=r"([A-Za-z0-9][A-Za-z0-9._+-]{0,63})?",
    ),
    Key(
        "kvm.cpu_model",
        "string",
        "",
        "",
        "CPU model in libvirt's words, or `host`. Empty means `host` with KVM, else QEMU's own.",
        pattern=r"([A-Za-z0-9][A-Za-z0-9._+-]{0,63})?",
    ),
    Key(
        "kvm.shutdown_timeout",
        "integer",
        60,
        "seconds",
        "How long a VM may take to shut down by itself, before a reboot and before one that has a "
        "persistent disk is deleted; then it is turned off. 0 turns it off at once.",
        least=0,
    ),
    Key(
        "kvm.detach_timeout",
        "integer",
        30,
        "seconds",
        "How long a VM may take to let go of a disk.",
        least=1,
    ),
)
