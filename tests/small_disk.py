"""A small file system that can be full or read-only, without the rights of an administrator."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

SHELL = """
mount -t tmpfs -o "size=$1" tmpfs "$2" || exit 1
echo mounted
while read -r command; do eval "$command" && echo done || echo failed; done
"""
WAYS = (["unshare", "--user", "--map-root-user", "--mount"], ["unshare", "--mount"])
"""In the mount namespace of a child: first as any user may, then as an administrator."""


@dataclass(frozen=True)
class SmallDisk:
    """A disk as other processes of this user see it, through the process that has mounted it."""

    path: Path
    _child: subprocess.Popen[str]

    def mount_again(self, options: str) -> None:
        """Change how it is mounted, for example to `remount,bind,ro`, while no file is open."""
        self._do(f'mount -o {options} "$2"')

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """Within the block it is read-only, also while files are open; those can be written on."""
        self._do('mount --bind "$2" "$2" && mount -o remount,bind,ro "$2"')
        try:
            yield
        finally:
            self._do('umount "$2"')

    def _do(self, command: str) -> None:
        assert self._child.stdin
        assert self._child.stdout
        self._child.stdin.write(f"{command}\n")
        self._child.stdin.flush()
        assert self._child.stdout.readline() == "done\n"


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[SmallDisk]:
    """A disk of a size such as `1m`, which is gone after the block. Fails where it cannot be."""
    folder.mkdir()
    for way in WAYS:
        child = subprocess.Popen(
            [*way, "sh", "-c", SHELL, "sh", size, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        with child:
            if child.stdout and child.stdout.readline() == "mounted\n":
                yield SmallDisk(Path(f"/proc/{child.pid}/root{folder}"), child)
                return
    pytest.fail(
        "no file system can be mounted here; allow user namespaces "
        "(sysctl kernel.apparmor_restrict_unprivileged_userns=0), or run as root"
    )
