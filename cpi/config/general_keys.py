"""The general configuration keys and the service's: data only, since every call loads it."""

from __future__ import annotations

from cpi.config.key import Key
from cpi.log import LEVELS
from runtimes import catalog

_PROXY = r"https?://[^\s/]+/?"

KEYS = (
    Key(
        "runtime",
        default=catalog.DEFAULT,
        client=True,
        doc="What runs VMs that do not choose themselves. A VM's cloud_properties come first, "
        "then the call's context, then the file.",
    ),
    Key(
        "runtimes",
        type="list of strings",
        default=(),
        client=True,
        doc="Runtimes besides `runtime` that a stemcell is imported for when it is uploaded, "
        "where its format can serve them.",
    ),
    Key(
        "state_dir",
        type="path",
        default="/var/lib/bosh-containerd-cpi",
        doc="What has to outlive a restart of the host, on a disk with room.",
    ),
    Key(
        "run_dir",
        type="path",
        default="/run/bosh-containerd-cpi",
        doc="What a restart of the host may lose: locks, namespaces, sockets.",
    ),
    Key("disk_dir", type="path", doc="Persistent disks. Empty means `<state_dir>/disks`."),
    Key(
        "disk_stores",
        type="object",
        default={},
        doc="More folders for persistent disks, by name: `{fast: /mnt/nvme/disks}`. A disk "
        "chooses one with `store` in its cloud_properties; `default` is `disk_dir`.",
    ),
    Key(
        "strict_properties",
        type="boolean",
        default=False,
        client=True,
        doc="Refuse unknown keys in the cloud_properties of VMs, disks and networks, instead of "
        "translating or ignoring those of other CPIs (cloud-properties.md).",
    ),
    Key(
        "stemcell_limit",
        type="integer",
        default=64 << 10,
        unit="MiB",
        minimum=1,
        doc="Largest disk, or root file system, that is taken out of a stemcell.",
    ),
    Key(
        "max_vms",
        type="integer",
        default=100,
        unit="VMs",
        minimum=1,
        doc="VMs that the host is to run at once: the kernel's limits are compared with what as "
        "many need, and raised to it. It is not a quota.",
    ),
    Key(
        "registry.plain_http",
        type="list of strings",
        default=(),
        doc="Registries without TLS, as `host:port`, that light stemcells may come from.",
    ),
    Key(
        "registry.ca_file",
        type="path",
        doc="Certificates to trust registries by (PEM). Empty means docker's "
        "`/etc/docker/certs.d/<registry>/ca.crt` where there is one, else the system's.",
    ),
    Key(
        "registry.docker_config",
        type="path",
        doc="Docker config with credentials for registries, as `docker login` writes it, with "
        "its credential helpers. Empty means that of the user the CPI runs as.",
    ),
    Key(
        "registry.http_proxy",
        pattern=_PROXY,
        doc="Proxy for registries without TLS, as `http://user:password@host:port`.",
    ),
    Key(
        "registry.https_proxy",
        pattern=_PROXY,
        doc="Proxy for registries with TLS, by CONNECT. Where neither of the two is set, "
        "`HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY` of the environment count.",
    ),
    Key(
        "registry.no_proxy",
        type="list of strings",
        default=("localhost", "127.0.0.0/8", "::1"),
        doc="Registries to reach without a proxy: hosts, domains, subnets, each with or without "
        "a port. The default leaves out those on this host.",
    ),
    Key(
        "registry.public_only",
        type="boolean",
        default=False,
        doc="Reach only registries with public addresses, and those in `registry.allowed` and "
        "`registry.plain_http`; the same goes for where they send their clients. The service sets "
        "it for clients whose policy does not say `registry_credentials`.",
    ),
    Key(
        "registry.allowed",
        type="list of strings",
        default=(),
        doc="Registries, log-in servers and layer stores that may have private addresses under "
        "`registry.public_only`, as `host` or `host:port`.",
    ),
    Key(
        "registry.check_access",
        type="boolean",
        default=False,
        doc="Ask the registry for the image also when it is imported already, so that nobody gets "
        "one that its own credentials could not fetch. The service sets it for its clients.",
    ),
    Key(
        "registry.require_digest",
        type="boolean",
        default=False,
        doc="Refuse light stemcells that name an image by a tag alone.",
    ),
    Key(
        "endpoint",
        doc="The host's service (`bosh-cpi serve`) that does the work: `unix:///run/….sock` or "
        "`https://host:port`. Empty means this process, as root on the host.",
    ),
    Key(
        "tls.ca",
        doc="CA of the service's certificate, with an `https` endpoint: PEM text, or an absolute "
        "path, as the next two.",
    ),
    Key("tls.certificate", doc="Our certificate, by which the service knows us."),
    Key("tls.private_key", doc="Its key, without a password."),
    Key(
        "program",
        type="path",
        doc="The `cpi` that is installed on the host, for the BOSH release's client when it has "
        "no endpoint. Empty means `/usr/local/bin/cpi`, then `/opt/bosh-containerd-cpi/bin/cpi`.",
    ),
    Key("log_level", default="info", choices=LEVELS, client=True, doc="Least severe lines to log."),
    Key(
        "agent.mbus",
        client=True,
        doc="Message bus URL for agents, with its password; `env.bosh.mbus` overrides it.",
    ),
    Key(
        "agent.ntp", type="list of strings", default=(), client=True, doc="Time servers for agents."
    ),
    Key(
        "agent.blobstore",
        type="object",
        default={},
        client=True,
        doc="Blobstore for agents, as they take it: `{provider, options}`; `env.bosh.blobstores` "
        "overrides it. Empty means the agent's own folder, which is what `bosh create-env` uses.",
    ),
    Key(
        "network.bridge",
        default="bosh0",
        pattern=r"[A-Za-z0-9][A-Za-z0-9._-]{0,14}",
        client=True,
        doc="Bridge of the default network, made when missing.",
    ),
    Key(
        "network.mtu",
        type="integer",
        default=0,
        unit="bytes",
        minimum=576,
        client=True,
        doc="MTU of VMs on bridges. 0 means that of the interface of the host's default route, "
        "when the VM is made.",
    ),
    Key(
        "network.dynamic_subnets",
        type="list of strings",
        default=("10.245.0.0/16",),
        doc="Subnets (CIDR) that dynamic networks take addresses from.",
    ),
    Key(
        "network.masquerade",
        type="boolean",
        default=True,
        doc="Whether VMs reach the outside through the host's address (NAT).",
    ),
    Key(
        "network.host_access",
        type="boolean",
        default=True,
        doc="Whether VMs on bridges reach services of the host by its addresses. `false`: only DNS "
        "(port 53) and published ports. Applies to all VMs, from the next `create_vm`, "
        "`delete_vm`, `bosh-cpi restore` or start of the service on.",
    ),
    Key(
        "network.cni_plugin_dirs",
        type="list of paths",
        default=(),
        doc="Folders with CNI plugins. Empty means the usual places: `/opt/cni/bin`, "
        "`/usr/lib/cni`, `/usr/libexec/cni`.",
    ),
    Key(
        "network.cni_config_dir",
        type="path",
        default="/etc/cni/net.d",
        doc="Folder with the host's own CNI networks, which a BOSH network can name.",
    ),
    Key(
        "service.socket",
        type="path",
        doc="Unix socket of the service. Empty means `<run_dir>.sock`.",
    ),
    Key(
        "service.socket_mode",
        default="0660",
        pattern="0?[0-7]{3}",
        doc="Mode of that socket, in octal digits.",
    ),
    Key(
        "service.socket_group",
        pattern=r"[a-z_][a-z0-9_-]{0,31}",
        doc="Group that owns that socket, and so may use it. Empty means root's.",
    ),
    Key(
        "service.tcp",
        pattern=r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}",
        doc="Address to listen on besides, with mutual TLS: `0.0.0.0:9443`, `[::]:9443`. Empty "
        "means none.",
    ),
    Key("service.tls_certificate", type="path", doc="The service's certificate (PEM)."),
    Key("service.tls_private_key", type="path", doc="Its key (PEM, without a password)."),
    Key(
        "service.tls_client_ca",
        type="path",
        doc="CA that has signed the certificates of clients (PEM). A client's name is its "
        "certificate's common name.",
    ),
    Key(
        "service.max_calls",
        type="integer",
        default=16,
        minimum=1,
        doc="Calls that run at once, each in a process; more wait.",
    ),
    Key(
        "service.upload_limit",
        type="integer",
        default=16 << 10,
        unit="MiB",
        minimum=1,
        doc="Largest stemcell image that a client may send.",
    ),
    Key(
        "service.clients",
        type="object",
        default={},
        doc="What the service's clients may ask for, by their names: `{guest: {privileged: "
        "true}}`; see security.md. `default` is for those without a name here.",
    ),
)
