"""The stand-in for BOSH's agent on a virtual machine (see stand_in_agent, which it extends).

Like the real agent it finds its settings where agent.json says (a file, a config drive, a CD-ROM, a
metadata service; else the copy of an earlier start), then sets up host name, network and data disk
and mounts the persistent disk that was mounted last, before it listens. Persistent disks are
devices, which it partitions, formats and grows.

It knows one message that BOSH's agent does not: `stand_in_shell` with a script, which it gives to
/bin/sh as root, and answers {"status": int, "output": str}: how tests look into a machine.

    python3 -m testing.agent.stand_in_machine [-P PLATFORM] [-C /var/vcap/bosh/agent.json]
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from testing.agent.stand_in_agent import METHODS, StandInAgent, main as run_agent
from testing.agent.stand_in_disks import Disks, Runner
from testing.agent.stand_in_machine_devices import Devices
from testing.agent.stand_in_machine_disks import MachineDisks
from testing.agent.stand_in_machine_network import MachineNetwork
from testing.agent.stand_in_machine_sources import Sources

SHELL_TIMEOUT = 120  # seconds


class MachineAgent(StandInAgent):
    """An agent that sets its machine up; `root` is / except in tests."""

    root = Path("/")
    disks: MachineDisks

    def prepare(self, document: dict[str, Any], vcap: Path, run: Runner) -> Disks:
        """Read agent.json; return what handles disks."""
        self.methods = {**METHODS, "stand_in_shell": lambda a, script: shell(script)}
        linux = document["Platform"]["Linux"]
        self.network = MachineNetwork(run, self.root)
        sources = document["Infrastructure"]["Settings"]["Sources"]
        self.sources = Sources(sources, run, self.network.dhcp, self.root)
        devices = Devices(linux.get("DevicePathResolutionType", ""), run, self.root)
        return MachineDisks(self.store, vcap, linux, run, devices)

    def fetch(self) -> Any:
        """Read the settings from their source; raises AgentError."""
        return self.sources.read()

    def set_up(self) -> None:
        """Set up the machine as the settings say; raises AgentError."""
        agent_id = self.settings.get("agent_id") or ""
        self.network.set_name(agent_id)
        self.network.set_up(self.settings.get("networks") or {})
        self.disks.set_up_data(agent_id)
        self.disks.remount()

    def perform(self, name: str, arguments: list[Any]) -> Any:
        """Run a message's method; a script does not wait for others."""
        if name == "stand_in_shell":
            return self.methods[name](self, *arguments)
        return super().perform(name, arguments)


def shell(script: str) -> dict[str, Any]:
    """Run a script; return its exit status (124 after a timeout) and output."""
    try:
        done = subprocess.run(
            ["/bin/sh", "-c", script],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=SHELL_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        return {"status": 124, "output": (error.output or b"").decode(errors="replace")}
    return {"status": done.returncode, "output": done.stdout.decode(errors="replace")}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the agent until it is killed; return 1 if it cannot start."""
    return run_agent(argv, MachineAgent)


if __name__ == "__main__":
    sys.exit(main())
