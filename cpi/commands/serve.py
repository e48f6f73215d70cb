"""`bosh-cpi serve`: the host's service."""

import argparse
from typing import Any

from cpi.config.config import Config

_EXAMPLES = """\
examples:
  bosh-cpi serve                                on <run_dir>.sock, for root and service.socket_group
  bosh-cpi --config /etc/bosh-cpi/cpi.json serve
  curl --unix-socket /run/bosh-containerd-cpi.sock http://localhost/healthz
  curl --unix-socket /run/bosh-containerd-cpi.sock http://localhost/metrics

Directors and `bosh create-env` reach it with `endpoint: unix:///run/bosh-containerd-cpi.sock`, VMs
of its own with `host_service: true`, and other machines over TLS (service.tcp). SIGTERM finishes
what runs, SIGHUP reads certificates anew. What clients may ask for: docs/security.md.
"""


def add_to(commands: Any) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "serve",
        help="serve the CPI to directors that have no privilege on this host",
        description="Serve the CPI to directors that have no privilege on this host.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    # Where people expect it of a daemon; the command line has it before the command as well.
    parser.add_argument(
        "-c", "--config", metavar="FILE", default=argparse.SUPPRESS, help="configuration (JSON)"
    )
    parser.set_defaults(run=_serve)


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
