"""Running another program to its end."""

import shlex
import subprocess
from collections.abc import Mapping, Sequence

from cpi.errors import CloudError

# Fixed: the director sets little of an environment, and a user's may contain anything.
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}


class CommandFailed(CloudError):
    """A program could not be started, failed or timed out."""

    def __init__(
        self, message: str, *, status: int | None = None, stdout: bytes = b"", stderr: str = ""
    ) -> None:
        super().__init__(message)
        self.status = status  # None: it did not exit
        self.stdout = stdout
        self.stderr = stderr


def run(
    argv: Sequence[str],
    *,
    stdin: bytes = b"",
    env: Mapping[str, str] | None = None,
    timeout: float = 120,
    install_hint: str = "",
) -> bytes:
    """Run a program without a shell and return its stdout; `env` is added to a fixed environment.

    Raises CommandFailed, with the command and its stderr, when it exits with a status other than
    0, is missing (then with the hint) or runs longer than `timeout` seconds.
    """
    shown = shlex.join(argv)
    try:
        done = subprocess.run(
            argv,
            input=stdin,
            capture_output=True,
            env={**ENVIRONMENT, **(env or {})},
            timeout=timeout,
            check=False,
            # Only the locks that this process holds (cpi.host.locks) are inherited: if it is
            # killed, no other call touches what the program is still at work on.
            close_fds=False,
        )
    except FileNotFoundError:
        hint = f"; {install_hint}" if install_hint else ""
        raise CommandFailed(f"{argv[0]} is not installed{hint}") from None
    except subprocess.TimeoutExpired:
        raise CommandFailed(f"{shown} did not end within {timeout:g} s") from None
    except OSError as error:
        raise CommandFailed(f"cannot run {shown}: {error}") from None
    if done.returncode:
        stderr = done.stderr.decode(errors="replace").strip()
        raise CommandFailed(
            f"{shown} failed with status {done.returncode}: {stderr or '(it wrote no reason)'}",
            status=done.returncode,
            stdout=done.stdout,
            stderr=stderr,
        )
    return done.stdout
