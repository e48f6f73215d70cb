"""The folder with the service's socket for VMs."""

import os
import socket
from pathlib import Path

from cpi.host import guest_socket


def test_the_folder_is_open_and_what_is_around_it_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "guest"
    old = os.umask(0o077)
    try:
        path = guest_socket.make_folder(folder)
    finally:
        os.umask(old)
    assert path == folder
    assert path.stat().st_mode & 0o777 == 0o755
    assert folder.parent.stat().st_mode & 0o777 == 0o700
    inode = path.stat().st_ino
    assert guest_socket.make_folder(folder).stat().st_ino == inode


def test_whether_a_service_listens(tmp_path: Path) -> None:
    folder = tmp_path / "guest"
    assert guest_socket.is_served(folder) is False
    path = guest_socket.make_folder(folder) / guest_socket.SOCKET
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        assert guest_socket.is_served(folder) is False
        server.listen()
        assert guest_socket.is_served(folder) is True
    assert guest_socket.is_served(folder) is False  # the file is still there
