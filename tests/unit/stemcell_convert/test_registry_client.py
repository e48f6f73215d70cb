"""Where credentials for registries come from."""

import json
import os
from pathlib import Path

import pytest

from stemcell_convert.registry_client import _credentials
from stemcell_convert.stemcell_errors import StemcellError

HAVE = {"auths": {"ghcr.io": {"auth": "dXNlcjpwYXNz"}}, "credsStore": "pass"}


def test_of_the_user_of_a_file_or_nobodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text(json.dumps(HAVE))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    assert _credentials("") == {**HAVE, "credHelpers": {}}
    assert _credentials(os.devnull) == {"auths": {}, "credsStore": None, "credHelpers": {}}
    with pytest.raises(StemcellError, match="there is no docker config"):
        _credentials(str(tmp_path / "gone"))
