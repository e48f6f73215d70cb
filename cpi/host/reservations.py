"""Names that each belong to one VM: files of a folder with the VM's CID in them."""

import os
from contextlib import suppress
from pathlib import Path


class Reservations:
    """Reservations in one folder. The caller's names must be safe as file names."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def reserve(self, name: str, vm_cid: str) -> str:
        """Reserve a name for a VM, unless another has it; return its owner."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self._folder / name
        # Written first and linked then, so that no reservation is seen without its owner.
        draft = self._folder / f".{vm_cid}"
        draft.write_text(vm_cid)
        try:
            os.link(draft, path)
        except FileExistsError:
            return self.owner(name)
        finally:
            draft.unlink()
        return vm_cid

    def release(self, vm_cid: str) -> None:
        """Release all names of a VM."""
        if self._folder.is_dir():
            for path in self._folder.iterdir():
                self.release_name(path.name, vm_cid)

    def release_name(self, name: str, vm_cid: str) -> None:
        """Release a name, if it is that VM's."""
        if self.owner(name) == vm_cid:
            (self._folder / name).unlink(missing_ok=True)

    def owner(self, name: str) -> str:
        """Return the VM that has a name, or ""."""
        with suppress(OSError):
            return (self._folder / name).read_text()
        return ""
