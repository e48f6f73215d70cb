"""libvirt's document about its host (formatcaps.html)."""

from runtimes.libvirt.xml.elements import parsed


def qemu_user(document: str) -> list[int] | None:
    """Return user and group ID that QEMU runs with, None if the document does not say."""
    for model in parsed(document).iterfind("host/secmodel"):
        if model.findtext("model") != "dac":
            continue
        for label in model.iterfind("baselabel"):
            if label.get("type") in ("kvm", "qemu"):
                uid, _, gid = (label.text or "").partition(":")
                return [int(uid.lstrip("+")), int(gid.lstrip("+"))]
    return None
