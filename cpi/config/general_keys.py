"""The general configuration keys: data only, since every call loads it."""

from __future__ import annotations

from cpi.config.config import Key
from cpi.log import LEVELS
from runtimes import catalog

KEYS = (
    Key(
        "runtime",
        "string",
        catalog.DEFAULT,
        "",
        "What runs VMs that do not choose themselves. A VM's cloud_properties come first, then the "
        "call's context, then the file.",
        client=True,
    ),
    Key(
        "runtimes",
        "list of strings",
        (),
        "",
        "Runtimes besides `runtime` that a stemcell is imported for when it is uploaded, where its "
        "format can serve them.",
        client=True,
    ),
    Key(
        "state_dir",
        "path",
        "/var/lib/bosh-containerd-cpi",
        "",
        "What has to outlive a restart of the host, on a disk with room.",
    ),
    Key(
        "run_dir",
        "path",
        "/run/bosh-containerd-cpi",
        "",
        "What a restart of the host may lose: locks, namespaces, sockets.",
    ),
    Key("disk_dir", "path", "", "", "Persistent disks. Empty means `<state_dir>/disks`."),
    Key(
        "disk_stores",
        "object",
        {},
        "",
        "More folders for persistent disks, by name: `{fast: /mnt/nvme/disks}`. A disk chooses one "
        "with `store` in its cloud_properties; `default` is `disk_dir`.",
    ),
    Key(
        "stemcell_limit",
        "integer",
        64 << 10,
        "MiB",
        "Largest disk, or root file system, that is taken out of a stemcell.",
        least=1,
    ),
    Key(
        "registry.plain_http",
        "list of strings",
        (),
        "",
        "Registries without TLS, as `host:port`, that light stemcells may come from.",
    ),
    Key(
        "registry.ca_file",
        "path",
        "",
        "",
        "Certificates to trust registries by (PEM). Empty means docker's "
        "`/etc/docker/certs.d/<registry>/ca.crt` where there is one, else the system's.",
    ),
    Key(
        "registry.docker_config",
        "path",
        "",
        "",
        "Docker config with credentials for registries, as `docker login` writes it, with its "
        "credential helpers. Empty means that of the user the CPI runs as.",
    ),
    Key(
        "registry.require_digest",
        "boolean",
        False,
        "",
        "Refuse light stemcells that name an image by a tag alone.",
    ),
    Key(
        "endpoint",
        "string",
        "",
        "",
        "The host's service (`bosh-cpi serve`) that does the work: `unix:///run/….sock` or "
        "`https://host:port`. Empty means this process, as root on the host.",
    ),
    Key(
        "tls.ca",
        "string",
        "",
        "",
        "CA of the service's certificate, with an `https` endpoint: "
        "PEM text, or an absolute path, as the next two.",
    ),
    Key("tls.certificate", "string", "", "", "Our certificate, by which the service knows us."),
    Key("tls.private_key", "string", "", "", "Its key, without a password."),
    Key(
        "program",
        "path",
        "",
        "",
        "The `cpi` that is installed on the host, for the BOSH release's client when it has no "
        "endpoint. Empty means `/usr/local/bin/cpi`, then `/opt/bosh-containerd-cpi/bin/cpi`.",
    ),
    Key(
        "log_level", "string", "info", "", "Least severe lines to log.", choices=LEVELS, client=True
    ),
    Key(
        "agent.mbus",
        "string",
        "",
        "",
        "Message bus URL for agents, with its password; `env.bosh.mbus` overrides it.",
        client=True,
    ),
    Key("agent.ntp", "list of strings", (), "", "Time servers for agents.", client=True),
    Key(
        "agent.blobstore",
        "object",
        {},
        "",
        "Blobstore for agents, as they take it: `{provider, options}`; `env.bosh.blobstores` "
        "overrides it. Empty means the agent's own folder, which is what `bosh create-env` uses.",
        client=True,
    ),
    Key(
        "network.bridge",
        "string",
        "bosh0",
        "",
        "Bridge of the default network, made when missing.",
        pattern=r"[A-Za-z0-9][A-Za-z0-9._-]{0,14}",
        client=True,
    ),
    Key(
        "network.mtu",
        "integer",
        1500,
        "bytes",
        "MTU of the default network.",
        least=576,
        client=True,
    ),
    Key(
        "network.dynamic_subnets",
        "list of strings",
        ("10.245.0.0/16",),
        "",
        "Subnets (CIDR) that dynamic networks take addresses from.",
    ),
    Key(
        "network.masquerade",
        "boolean",
        True,
        "",
        "Whether VMs reach the outside through the host's address (NAT).",
    ),
    Key(
        "network.cni_plugin_dirs",
        "list of paths",
        (),
        "",
        "Folders with CNI plugins. Empty means the usual places: `/opt/cni/bin`, `/usr/lib/cni`, "
        "`/usr/libexec/cni`.",
    ),
    Key(
        "network.cni_config_dir",
        "path",
        "/etc/cni/net.d",
        "",
        "Folder with the host's own CNI networks, which a BOSH network can name.",
    ),
)
