"""Call an installed CPI without a pause until SIGTERM, and write one line a call.

    upgrade_caller.py CONFIG WAYS VM FILE

WAYS: JSON, the properties of the context by the name of the way that calls take.
Runs in the guest, with its Python alone.
"""

import json
import signal
import subprocess
import sys
import threading
import time
from typing import Any


def call(config: str, vm: str, context: dict[str, Any]) -> str:
    """Ask whether a VM exists; return "ok", or the error in one line."""
    request = {"method": "has_vm", "arguments": [vm], "context": context, "api_version": 2}
    try:
        done = subprocess.run(
            ["/usr/local/bin/cpi", "-c", config],
            input=json.dumps(request), capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        answer = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        return repr(error)
    return json.dumps(answer) if answer["error"] else "ok"


def main() -> None:
    config, ways, vm, path = sys.argv[1:]
    end = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: end.set())
    with open(path, "w") as file:

        def work(way: str, properties: dict[str, Any]) -> None:
            while not end.is_set():
                start = time.monotonic()
                outcome = call(config, vm, {"director_uuid": "upgrade", **properties})
                file.write(f"{way} {time.monotonic() - start:.2f} s {outcome}\n")
                file.flush()

        threads = [threading.Thread(target=work, args=item) for item in json.loads(ways).items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    main()
