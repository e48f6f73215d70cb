"""Call an installed CPI without a pause until SIGTERM, and write one line a call.

    upgrade_caller.py CONFIG ENDPOINT VM FILE

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
    """Ask whether a VM exists; return "ok", or what went wrong in one line."""
    request = {"method": "has_vm", "arguments": [vm], "context": context, "api_version": 2}
    try:
        done = subprocess.run(
            ["/usr/local/bin/cpi", "-c", config],
            input=json.dumps(request), capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        answer = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        return repr(error)
    return "ok" if answer["result"] is True else json.dumps(answer)


def main() -> None:
    config, endpoint, vm, path = sys.argv[1:]
    end = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: end.set())
    ways = {"cpi": {"director_uuid": "upgrade"}}
    ways["service"] = {**ways["cpi"], "endpoint": endpoint}
    with open(path, "w") as file:

        def work(way: str) -> None:
            while not end.is_set():
                start = time.monotonic()
                outcome = call(config, vm, ways[way])
                file.write(f"{way} {time.monotonic() - start:.2f} s {outcome}\n")
                file.flush()

        threads = [threading.Thread(target=work, args=(way,)) for way in ways]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    main()
