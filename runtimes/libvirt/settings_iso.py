"""The agent's settings as a CD image, laid out as the stemcell's own source looks for them.

config-drive: OpenStack's config drive, label config-2 (bosh-agent, config_drive_settings_source.go
reads ec2/latest/user-data; the openstack/ paths are what cloud-init and older agents read). cdrom:
a file `env` at the top (cdrom_settings_source.go).
"""

import io
import json
from collections.abc import Mapping
from typing import Any

from cpi.errors import CloudError

CONFIG_DRIVE, CDROM = "config-drive", "cdrom"

_LABELS = {CONFIG_DRIVE: "config-2", CDROM: "env"}
_PATHS = {CONFIG_DRIVE: "ec2/latest/user-data", CDROM: "env"}


def render(source: str, vm_cid: str, settings: Mapping[str, Any]) -> bytes:
    """Return the image for a settings source. It has secrets."""
    user_data = json.dumps(settings).encode()
    if source == CDROM:
        return _image(_LABELS[source], {"env": user_data})
    metadata = {"instance-id": vm_cid, "public-keys": {}}
    openstack = {"uuid": vm_cid, "name": vm_cid}
    return _image(
        _LABELS[source],
        {
            "ec2/latest/meta-data.json": json.dumps(metadata).encode(),
            "ec2/latest/user-data": user_data,
            "openstack/latest/meta_data.json": json.dumps(openstack).encode(),
            "openstack/latest/user_data": user_data,
        },
    )


def read(source: str, image: bytes) -> dict[str, Any]:
    """Return the settings in an image of `render`. Raises CloudError for any other."""
    import pycdlib

    iso = pycdlib.PyCdlib()
    content = io.BytesIO()
    try:
        iso.open_fp(io.BytesIO(image))
        iso.get_file_from_iso_fp(content, rr_path=f"/{_PATHS[source]}")
        iso.close()
        settings: dict[str, Any] = json.loads(content.getvalue())
    except (pycdlib.pycdlibexception.PyCdlibException, ValueError) as error:
        raise CloudError(f"the VM's settings cannot be read from its CD image: {error}") from None
    return settings


def _image(label: str, files: Mapping[str, bytes]) -> bytes:
    """Return an ISO 9660 image with these files, their names in Rock Ridge and Joliet."""
    import pycdlib

    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, vol_ident=label, rock_ridge="1.09", joliet=3)
    short: dict[str, str] = {"": ""}  # the plain ISO names, which are not used, are numbers
    for path, content in sorted(files.items()):
        parts = path.split("/")
        for depth in range(1, len(parts)):
            folder = "/".join(parts[:depth])
            if folder not in short:
                short[folder] = f"{short[folder.rpartition('/')[0]]}/D{len(short)}"
                iso.add_directory(short[folder], rr_name=parts[depth - 1], joliet_path=f"/{folder}")
        name = f"{short['/'.join(parts[:-1])]}/F{len(short)}{len(path)}.;1"
        iso.add_fp(
            io.BytesIO(content), len(content), name, rr_name=parts[-1], joliet_path=f"/{path}"
        )
    target = io.BytesIO()
    iso.write_fp(target)
    iso.close()
    return target.getvalue()
