"""The service's configuration keys: data only, since every call loads it."""

from cpi.config.config import Key

KEYS = (
    Key(
        "service.socket",
        "path",
        "",
        "",
        "Unix socket of the service. Empty means `<run_dir>.sock`.",
    ),
    Key(
        "service.socket_mode",
        "string",
        "0660",
        "",
        "Mode of that socket, in octal digits.",
        pattern="0?[0-7]{3}",
    ),
    Key(
        "service.socket_group",
        "string",
        "",
        "",
        "Group that owns that socket, and so may use it. Empty means root's.",
        pattern=r"[a-z_][a-z0-9_-]{0,31}",
    ),
    Key(
        "service.tcp",
        "string",
        "",
        "",
        "Address to listen on besides, with mutual TLS: `0.0.0.0:9443`, `[::]:9443`. Empty means "
        "none.",
        pattern=r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}",
    ),
    Key("service.tls_certificate", "path", "", "", "The service's certificate (PEM)."),
    Key("service.tls_private_key", "path", "", "", "Its key (PEM, without a password)."),
    Key(
        "service.tls_client_ca",
        "path",
        "",
        "",
        "CA that has signed the certificates of clients (PEM). A client's name is its "
        "certificate's common name.",
    ),
    Key(
        "service.max_calls",
        "integer",
        16,
        "",
        "Calls that run at once, each in a process; more wait.",
        least=1,
    ),
    Key(
        "service.upload_limit",
        "integer",
        16 << 10,
        "MiB",
        "Largest stemcell image that a client may send.",
        least=1,
    ),
    Key(
        "service.clients",
        "object",
        {},
        "",
        "What the service's clients may ask for, by their names: `{guest: {privileged: true}}`; "
        "see security.md. `default` is for those without a name here.",
    ),
)
