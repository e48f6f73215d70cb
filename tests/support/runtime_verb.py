"""Call a runtime's methods that no request of BOSH reaches.

python -m tests.support.runtime_verb CONFIG METHOD ARGUMENTS calls one on the host where it runs and
prints JSON: `result`, or `not_supported` with the message.
"""

import json
import sys
from contextlib import closing

from cpi.config.config import Config
from cpi.config.load import load_config
from cpi.errors import NotSupported
from cpi.log import Log
from cpi.terminal import Streams
from runtimes import catalog


def call_verb(config: Config, method: str, *arguments: object) -> object:
    """Call a method of the configured runtime; return a list's CIDs, or the result's repr."""
    streams = (Streams(),) if method == "run_inside" else ()
    with closing(catalog.load(config.text("runtime"))(config, Log("error"))) as runtime:
        result = getattr(runtime, method)(*arguments, *streams)
    return [listed.cid for listed in result] if isinstance(result, list) else repr(result)


def main() -> None:
    path, method, arguments = sys.argv[1:]
    try:
        answer = {"result": call_verb(load_config(path), method, *json.loads(arguments))}
    except NotSupported as error:
        answer = {"not_supported": error.message}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
