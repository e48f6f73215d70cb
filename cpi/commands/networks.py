"""`bosh-cpi networks`: list the CPI's bridges, the host's CNI networks, and the VMs on them."""

import argparse
from dataclasses import asdict

from cpi.cni import overview
from cpi.commands import output
from cpi.commands.declare import JSON, Command
from cpi.config.config import Config

_EXAMPLES = """\
examples:
  bosh-cpi networks
  bosh-cpi networks --json | jq '.bridges[].vms'

Bridges are made when the first VM needs them. A CNI network of the host is one that a manifest can
name in a network's cloud_properties (`name`); they are in network.cni_config_dir.
"""


def _networks(options: argparse.Namespace, config: Config) -> int:
    bridges, others = overview.bridges(config), overview.host_networks(config)
    if options.json:
        output.show_json(
            {
                "bridges": [asdict(bridge) for bridge in bridges],
                "cni_networks": [asdict(network) for network in others],
            }
        )
        return 0
    rows = [
        [
            bridge.name,
            "bridge",
            bridge.state,
            " ".join(bridge.subnets),
            "yes" if bridge.masquerade else "no",
            " ".join(bridge.addresses),
            str(len(set(bridge.vms.values()))),
            " ".join(sorted(bridge.vms, key=_numbers)),
        ]
        for bridge in bridges
    ]
    for network in others:
        state = f"broken: {network.problem}" if network.problem else "configured"
        types = "+".join(network.plugins)
        vms = str(len(set(network.vms.values())))
        addresses = " ".join(sorted(network.vms, key=_numbers))
        rows.append([network.name or network.file, types, state, "", "", "", vms, addresses])
    headings = ["NETWORK", "TYPE", "STATE", "SUBNETS", "NAT", "GATEWAY", "VMS", "ADDRESSES"]
    output.show_table(headings, rows, right="VMS")
    return 0


def _numbers(address: str) -> tuple[int, int]:
    from ipaddress import ip_address

    parsed = ip_address(address)
    return parsed.version, int(parsed)


COMMANDS = (Command("networks", _networks, "list networks", JSON, examples=_EXAMPLES),)
