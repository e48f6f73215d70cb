"""Speak to the agent of a VM as `bosh create-env` does: BOSH's messages over HTTPS.

Without openssl(1), which makes the certificate, over plain HTTP; then only our stand-in answers.
"""

import secrets
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testing.hosts.driver import Driver, DriverError

PORT = 6868
_RETRY_SECONDS = 0.05
_CONNECT_SECONDS = 2.0
_TASK_SECONDS = 120.0


@dataclass(frozen=True)
class Credentials:
    """Credentials for agents: one certificate and password for all VMs of a run."""

    certificate: str
    private_key: str
    password: str

    @classmethod
    def make(cls, folder: Path) -> "Credentials":
        """Make a certificate for a day, with openssl if there is one; files stay in `folder`."""
        if shutil.which("openssl") is None:
            return cls("", "", "")
        key, certificate = folder / "mbus.key", folder / "mbus.crt"
        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
        argv = ["openssl", "req", "-x509", *curve, "-noenc", "-days", "1", "-subj", "/CN=agent"]
        subprocess.run(
            [*argv, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True
        )
        return cls(certificate.read_text(), key.read_text(), secrets.token_hex(16))

    @property
    def env(self) -> dict[str, Any]:
        """The `env` of create_vm that makes an agent listen for us."""
        if not self.certificate:
            return {"bosh": {}}
        mbus = {
            "urls": [f"https://mbus:{self.password}@0.0.0.0:{PORT}"],
            "cert": {
                "ca": self.certificate,
                "certificate": self.certificate,
                "private_key": self.private_key,
            },
        }
        return {"bosh": {"mbus": mbus}}


class Agent:
    """The agent of one VM at an address."""

    def __init__(self, driver: Driver, credentials: Credentials, address: str) -> None:
        self.address = address
        self._driver = driver
        self._credentials = credentials
        self.starts_now()

    def starts_now(self) -> None:
        """Note that the agent's VM was started, or restarted, just now."""
        self._started = time.monotonic()

    def age(self) -> float:
        """Return the seconds since its VM was started."""
        return time.monotonic() - self._started

    def wait(self, seconds: float) -> int:
        """Wait until the agent answers; return how often it was tried. Raises DriverError.

        No event tells from outside when a program starts to listen, so this polls; while the VM
        boots, connections are refused at once.
        """
        deadline = time.monotonic() + seconds
        tries = 0
        while True:
            tries += 1
            try:
                self._exchange("ping", [], _CONNECT_SECONDS)
                return tries
            except DriverError as error:
                if time.monotonic() > deadline:
                    hint = (
                        "" if self._credentials.certificate else "; BOSH's agent needs openssl here"
                    )
                    raise DriverError(
                        f"the agent at {self.address}:{PORT} does not answer after {seconds:g} s: "
                        f"{error}{hint}"
                    ) from None
            time.sleep(_RETRY_SECONDS)

    def ask(self, method: str, *arguments: Any) -> Any:
        """Send a message and return its value, waiting for the task of a slow method.

        Raises DriverError with what the agent says.
        """
        value = self._exchange(method, list(arguments), _TASK_SECONDS)
        deadline = time.monotonic() + _TASK_SECONDS
        while isinstance(value, dict) and value.get("state") == "running":
            if time.monotonic() > deadline:
                raise DriverError(f"{method}: the agent at {self.address} does not come to an end")
            time.sleep(_RETRY_SECONDS)
            value = self._exchange("get_task", [value["agent_task_id"]], _TASK_SECONDS)
        return value

    def _exchange(self, method: str, arguments: list[Any], timeout: float) -> Any:
        message = {"method": method, "arguments": arguments, "reply_to": "tools"}
        user = f"mbus:{self._credentials.password}" if self._credentials.certificate else ""
        answer = self._driver.post(
            self.address,
            PORT,
            message,
            user=user,
            ca=self._credentials.certificate,
            timeout=timeout,
        )
        if not isinstance(answer, dict) or "value" not in answer:
            reason = answer.get("exception", answer) if isinstance(answer, dict) else answer
            raise DriverError(f"the agent at {self.address} refuses {method}: {reason}")
        return answer["value"]
