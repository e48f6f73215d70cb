"""The checks of `bosh-cpi doctor` for a host's network. A check is one function."""

import json
from collections.abc import Iterator, Sequence
from ipaddress import ip_network
from pathlib import Path

from cpi.cni import overview
from cpi.cni.plugins import CNI_VERSION, DEFAULT_PLUGIN_DIRS, Plugins
from cpi.config.config import Config
from cpi.errors import CPIError
from cpi.findings import Checks, Finding, commands, failure, ok, warning
from cpi.host import iproute
from cpi.host.iproute import Route, Subnet
from cpi.host.process import CommandFailed, run

PLUGINS = ("bridge", "host-local", "firewall", "portmap")
_SYSCTLS = Path("/proc/sys/net")
_IPTABLES = ["iptables", "--wait", "5"]
_INSTALL_PLUGINS = "apt-get install containernetworking-plugins"

CHECKS = Checks[Config]()


@CHECKS.add("CNI plugins")
def _plugins(config: Config) -> Finding:
    named = config.strings("network.cni_plugin_dirs")
    plugins = Plugins(named)
    if not plugins.folders:
        existing = [path for path in DEFAULT_PLUGIN_DIRS if (Path(path) / PLUGINS[0]).exists()]
        return failure(
            f"none of {', '.join(named or DEFAULT_PLUGIN_DIRS)} is a folder",
            f'set in cpi.json: {{"network": {{"cni_plugin_dirs": {json.dumps(existing)}}}}}'
            if named and existing
            else _INSTALL_PLUGINS,
        )
    for name in PLUGINS:
        try:
            versions = plugins.versions(name)
        except CPIError as error:
            return failure(error.message, _INSTALL_PLUGINS)
        if CNI_VERSION not in versions:
            newest = versions[-1] if versions else "no version"
            return failure(
                f"the plugin {name} speaks CNI {newest} and no {CNI_VERSION}", _INSTALL_PLUGINS
            )
    return ok(f"{', '.join(PLUGINS)} in {', '.join(plugins.folders)} speak CNI {CNI_VERSION}")


@CHECKS.add("iptables")
def _iptables(_config: Config) -> Finding:
    try:
        run([*_IPTABLES, "-t", "nat", "-S", "POSTROUTING"])
    except CommandFailed as error:
        fix = "modprobe iptable_nat" if error.status is not None else "apt-get install iptables"
        return failure(error.message, fix)
    return ok("the table nat is there")


@CHECKS.add("bridge")
def _bridge(config: Config) -> Finding:
    (bridge, *_) = overview.bridges(config)
    name = bridge.name
    if bridge.state == overview.MISSING:
        if bridge.vms:
            return failure(
                f"{name} is missing and {len(bridge.vms)} VMs are on it, as after a restart",
                "bosh-cpi restore",
            )
        return ok(f"{name} will be made with the first VM")
    if bridge.state == overview.FOREIGN:
        return failure(
            f"{name} is there and no bridge", 'set in cpi.json: {"network": {"bridge": "bosh9"}}'
        )
    if bridge.state == overview.DOWN:
        return failure(f"{name} is down", commands(("ip", "link", "set", name, "up")))
    addresses = " ".join(bridge.addresses) or "no address"
    return ok(f"{name} is up with {addresses}, {len(bridge.vms)} VMs")


@CHECKS.add("forwarding")
def _forwarding(config: Config) -> Finding:
    (bridge, *_) = overview.bridges(config)
    if _sysctl("ipv4/ip_forward") == "1":
        return ok("net.ipv4.ip_forward is on")
    if bridge.state == overview.UP:
        return failure(
            "net.ipv4.ip_forward is off, so VMs reach nothing outside their bridge",
            commands(("sysctl", "-w", "net.ipv4.ip_forward=1")),
        )
    return ok("net.ipv4.ip_forward is off until CNI's bridge plugin turns it on")


@CHECKS.add("rp_filter")
def _rp_filter(config: Config) -> Finding:
    """Check reverse path filters: the kernel applies the interface's or all's, the greater one."""
    strict = [
        bridge.name
        for bridge in overview.bridges(config)
        if bridge.state == overview.UP
        and max(_sysctl(f"ipv4/conf/{name}/rp_filter") for name in ("all", bridge.name)) == "1"
    ]
    if strict:
        return warning(
            f"the kernel drops what comes from VMs on {', '.join(strict)} by another network of "
            "theirs (strict reverse path filter)",
            commands(*(("sysctl", "-w", f"net.ipv4.conf.{name}.rp_filter=2") for name in strict)),
        )
    return ok("not strict on any bridge of ours")


@CHECKS.add("firewall")
def _firewall(_config: Config) -> Finding:
    lines = run([*_IPTABLES, "-S", "FORWARD"]).decode().splitlines()
    if "-P FORWARD DROP" not in lines:
        return ok("forwarding is not dropped")
    let_through = any("-j CNI-FORWARD" in line for line in lines)
    if _sysctl("bridge/bridge-nf-call-iptables") == "1" and not let_through:
        return warning(
            "FORWARD drops, also between VMs of one bridge (br_netfilter), and no rule of CNI's is "
            "there yet",
            "sysctl -w net.bridge.bridge-nf-call-iptables=0",
        )
    return warning(
        "FORWARD drops (docker sets that): other machines do not reach published ports",
        "iptables -A CNI-ADMIN -m conntrack --ctstate DNAT -j ACCEPT  # once there is a VM",
    )


@CHECKS.add("subnets")
def _subnets(config: Config) -> Finding:
    ours = {bridge.name for bridge in overview.bridges(config)}
    routes = [route for route in iproute.routes() if route.device not in ours]
    wanted = config.strings("network.dynamic_subnets")
    clashes = list(clashing(wanted, routes))
    if not clashes:
        return ok(f"{', '.join(wanted)} clash with no route of the host")
    subnet, route, narrower = clashes[0]
    fix = f'set in cpi.json: {{"network": {{"dynamic_subnets": ["{free_subnet(routes)}"]}}}}'
    overlap = f"{subnet} overlaps the host's route to {route.subnet} by {route.device}"
    if narrower:
        return failure(f"{overlap}, which takes VMs' addresses away", fix)
    return warning(f"{overlap}, of which VMs' addresses will hide a part", fix)


def clashing(wanted: Sequence[str], routes: Sequence[Route]) -> Iterator[tuple[str, Route, bool]]:
    """Yield subnets and routes that overlap, and whether the route wins over ours; these first."""
    clashes = [
        (subnet, route, _wins(subnet, route.subnet))
        for subnet in wanted
        for route in routes
        if _overlap(subnet, route.subnet)
    ]
    yield from sorted(clashes, key=lambda clash: not clash[2])


def _overlap(subnet: str, routed: Subnet) -> bool:
    wanted = ip_network(subnet, strict=False)
    return wanted.version == routed.version and wanted.overlaps(routed)


def _wins(subnet: str, routed: Subnet) -> bool:
    """Tell whether the route wins: the longer prefix (RFC 1812, 5.2.4.3), or the older route."""
    return routed.prefixlen >= ip_network(subnet).prefixlen


def free_subnet(routes: Sequence[Route]) -> str:
    """Return a private subnet that clashes with no route, as large as the default one."""
    candidates = [f"10.{second}.0.0/16" for second in (*range(245, 255), *range(64, 245))]
    candidates += [f"172.{second}.0.0/16" for second in range(16, 32)]
    taken = [route.subnet for route in routes]
    free = (subnet for subnet in candidates if not any(_overlap(subnet, other) for other in taken))
    return next(free, "192.168.128.0/17")


def _sysctl(name: str) -> str:
    """Return a setting of this process' network namespace, "" if the kernel has none."""
    try:
        return (_SYSCTLS / name).read_text().strip()
    except OSError:
        return ""
