"""Servers that are put back to a backup, as operators do it.

The backup is a copy of the folder of a member that does not run. It is as good as a snapshot, and
the same on all versions. Without `--bump-revision` the store then reaches the same revisions again,
with other content.
"""

import shutil
from pathlib import Path

import anyio.to_thread

from kvorum import EmbeddedEtcd


async def back_up(etcd: EmbeddedEtcd, backup: Path) -> None:
    """Copy the data of a server."""
    await etcd.kill()
    await anyio.to_thread.run_sync(shutil.copytree, etcd.data_dir, backup)
    await etcd.restart()


async def put_back(etcd: EmbeddedEtcd, backup: Path) -> None:
    """Replace the data of a server by a copy."""
    await etcd.kill()
    await anyio.to_thread.run_sync(shutil.rmtree, etcd.data_dir)
    await anyio.to_thread.run_sync(shutil.copytree, backup, etcd.data_dir)
    await etcd.restart()
