"""Where the stand-in agent of a machine finds its settings: the sources that agent.json names.

They are BOSH's (infrastructure/*settings_source.go): a file, a labelled config drive, a CD-ROM, a
metadata service. The first that answers is used from then on, as by the real agent.
"""

import base64
import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from testing.agent.stand_in_disks import AgentError, Runner

CDROM = "/dev/sr0"
MOUNTED = "/var/vcap/bosh/settings"
CDROMEJECT = 0x5309  # linux/cdrom.h
HTTP_TRIES = 10  # one a second
HTTP_TIMEOUT = 5  # seconds


class Sources:
    """Settings from the first source that has any; `root` is / except in tests.

    network: called before the metadata service is asked, to have an address from DHCP.
    """

    def __init__(
        self,
        options: Sequence[dict[str, Any]],
        run: Runner,
        network: Callable[[], None],
        root: Path = Path("/"),
    ) -> None:
        self.options, self.run, self.network, self.root = list(options), run, network, root
        self.eject: Callable[[Path], None] = eject
        self.retry_delay = 1.0  # seconds

    def read(self) -> dict[str, Any]:
        """Return the settings; raises AgentError with every source's problem."""
        readers = {
            "File": self._file,
            "ConfigDrive": self._config_drive,
            "CDROM": self._cdrom,
            "HTTP": self._http,
        }
        problems = []
        for option in self.options:
            source_type = option.get("Type", "")
            try:
                if source_type not in readers:
                    raise AgentError("not known to the stand-in")
                settings: dict[str, Any] = readers[source_type](option)
            except (AgentError, OSError, ValueError, KeyError) as error:
                problems.append(f"{source_type}: {error}")
            else:
                self.options = [option]
                return settings
        raise AgentError(f"Getting settings from all sources: {'; '.join(problems)}")

    def _file(self, option: dict[str, Any]) -> Any:
        return json.loads(self._inside(option["SettingsPath"]).read_text())

    def _config_drive(self, option: dict[str, Any]) -> Any:
        """Return the settings on the first drive that has any.

        The real agent reads the metadata for its SSH key; without it, it tries the next source.
        """
        self.run(["udevadm", "settle"])  # what names devices by their labels
        for device in option["DiskPaths"]:
            if self._inside(device).exists():
                names = [option["MetaDataPath"], option["UserDataPath"]]
                metadata, settings = self._files_of(device, names)
                json.loads(metadata)
                return json.loads(settings)
        raise AgentError(f"there is none of {', '.join(option['DiskPaths'])}")

    def _cdrom(self, option: dict[str, Any]) -> Any:
        """Return the settings on the CD-ROM, and eject it."""
        self.run(["udevadm", "settle"])
        settings = json.loads(self._files_of(CDROM, [option["FileName"]])[0])
        self.eject(self._inside(CDROM))
        return settings

    def _files_of(self, device: str, names: Sequence[str]) -> list[str]:
        """Return the content of files on a device, mounted to read them."""
        folder = self._inside(MOUNTED)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.run(["mount", "-o", "ro", device, str(folder)])
        try:
            return [(folder / name).read_text() for name in names]
        finally:
            self.run(["umount", str(folder)])

    def _http(self, option: dict[str, Any]) -> Any:
        """Return a metadata service's user data, which is JSON, plain or in base64."""
        self.network()
        headers = dict(option.get("Headers") or {})
        if path := option.get("TokenPath"):
            lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": "300"}
            status, body = self._ask("PUT", f"{option['URI']}{path}", lifetime)
            if status == 200:
                headers["X-aws-ec2-metadata-token"] = body.decode()
        status, body = self._ask("GET", f"{option['URI']}{option['UserDataPath']}", headers)
        if status != 200:
            raise AgentError(f"invalid status from url {option['UserDataPath']}: {status}")
        settings = user_data(body)
        if not settings.get("agent_id"):
            raise AgentError("Metadata does not provide settings")
        return settings

    def _ask(self, method: str, url: str, headers: dict[str, str]) -> tuple[int, bytes]:
        """Send a request, retrying until it is answered; return status and body."""
        from urllib.error import HTTPError, URLError
        from urllib.request import Request, urlopen

        for left in reversed(range(HTTP_TRIES)):
            try:
                request = Request(url, None, headers, method=method)  # noqa: S310 (a stemcell's)
                with urlopen(request, timeout=HTTP_TIMEOUT) as answer:  # noqa: S310
                    return answer.status, answer.read()
            except HTTPError as error:
                return error.code, b""
            except (URLError, TimeoutError):
                if not left:
                    raise
                time.sleep(self.retry_delay)
        raise AssertionError

    def _inside(self, name: str) -> Path:
        return self.root / name.lstrip("/")


def user_data(body: bytes) -> dict[str, Any]:
    """Return the settings in user data; raises ValueError."""
    settings = None
    with contextlib.suppress(ValueError):
        settings = json.loads(body)
    if not isinstance(settings, dict):
        text = body.replace(b'"', b"").strip()
        settings = json.loads(base64.urlsafe_b64decode(text + b"=" * (-len(text) % 4)))
    if not isinstance(settings, dict):
        raise ValueError("the user data are no mapping")
    return settings


def eject(device: Path) -> None:
    """Open a CD-ROM's tray; raises OSError."""
    handle = os.open(device, os.O_RDONLY | os.O_NONBLOCK)
    try:
        fcntl.ioctl(handle, CDROMEJECT)
    finally:
        os.close(handle)
