"""`bosh-cpi serve`: run the host's service."""

import argparse

from cpi.commands.declare import Command, argument
from cpi.config.config import Config

_EXAMPLES = """\
examples:
  bosh-cpi serve                                on <run_dir>.sock, for root and service.socket_group
  bosh-cpi --config /etc/bosh-containerd-cpi/cpi.json serve
  curl --unix-socket /run/bosh-containerd-cpi.sock http://localhost/healthz
  curl --unix-socket /run/bosh-containerd-cpi.sock http://localhost/metrics

Directors and `bosh create-env` reach it with `endpoint: unix:///run/bosh-containerd-cpi.sock`, VMs
of its own with `host_service: true`, and other machines over TLS (service.tcp). SIGTERM finishes
what runs, SIGHUP reads certificates anew. What clients may ask for: docs/security.md.
"""


def _serve(options: argparse.Namespace, config: Config) -> int:
    try:
        from cpi.service import serve
    except ImportError as error:
        from cpi.errors import CPIError

        raise CPIError(
            f"the service does not load ({error}); pip install 'bosh-containerd-cpi[service]'"
        ) from error
    serve.run(config, options.config)
    return 0


COMMANDS = (
    Command(
        "serve",
        _serve,
        "serve the CPI to directors that have no privilege on this host",
        # Daemons usually take it here; `main` takes it before the command as well.
        argument(
            "-c", "--config", metavar="FILE", default=argparse.SUPPRESS, help="configuration (JSON)"
        ),
        examples=_EXAMPLES,
    ),
)
