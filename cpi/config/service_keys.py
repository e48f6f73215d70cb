"""The service's configuration keys: data only, since every call loads it."""

from cpi.config.key import Key

KEYS = (
    Key(
        "service.socket",
        type="path",
        default="",
        doc="Unix socket of the service. Empty means `<run_dir>.sock`.",
    ),
    Key(
        "service.socket_mode",
        type="string",
        default="0660",
        pattern="0?[0-7]{3}",
        doc="Mode of that socket, in octal digits.",
    ),
    Key(
        "service.socket_group",
        type="string",
        default="",
        pattern=r"[a-z_][a-z0-9_-]{0,31}",
        doc="Group that owns that socket, and so may use it. Empty means root's.",
    ),
    Key(
        "service.tcp",
        type="string",
        default="",
        pattern=r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}",
        doc="Address to listen on besides, with mutual TLS: `0.0.0.0:9443`, `[::]:9443`. Empty "
        "means none.",
    ),
    Key("service.tls_certificate", type="path", default="", doc="The service's certificate (PEM)."),
    Key(
        "service.tls_private_key", type="path", default="", doc="Its key (PEM, without a password)."
    ),
    Key(
        "service.tls_client_ca",
        type="path",
        default="",
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
