"""A folder owned by one process at a time, which other processes can see and ask to stop."""

import fcntl
import os
import random
import time
from contextlib import contextmanager
from pathlib import Path
from socket import gethostname

PATIENCE = 10.0
"""Seconds in which those who only look at a lock have to let it go; they hold it for microseconds."""


@contextmanager
def owned(folder, kind="process", advice="wait for it, or stop it"):
    """Own a folder while the block runs. Raises ValueError where a living process, a ``kind`` in words, owns it.

    The owner holds ``flock`` on the file ``lock``, which the kernel drops with the process however that ends: what a
    crash or a reboot leaves behind is a file, no lock. NFS (Linux since 2.6.12) and Lustre mounted with ``flock`` hold
    it between hosts too; of a host that vanished, until the server has given it up. Mounted with ``nolock``,
    ``local_lock`` or ``localflock`` they hold it between processes of one host only.

    Who asks for the `owner` holds it too, shared and for a moment: that is waited for, an owner is not.
    """
    path, until = Path(folder) / "lock", time.monotonic() + PATIENCE
    with open(path, "a+") as lock:
        while not _locked(lock, fcntl.LOCK_EX):
            if not _locked(lock, fcntl.LOCK_SH) or time.monotonic() > until:
                raise ValueError(
                    f"{folder} is owned by a running {kind} ({path.read_text() or 'which has just begun'}); {advice}"
                )
            fcntl.flock(lock, fcntl.LOCK_UN)
            time.sleep(random.uniform(0, 2e-3))
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {gethostname()}")
        lock.flush()
        _stop_file(folder).unlink(missing_ok=True)
        yield


def owner(folder):
    """The living owner of a folder in words, or None."""
    path = Path(folder) / "lock"
    if not path.exists():
        return None
    with open(path) as lock:
        return None if _locked(lock, fcntl.LOCK_SH) else lock.read() or "a process that has just begun"


def _locked(file, how):
    """Whether a lock could be had at once."""
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def request_stop(folder):
    """Ask the owner of a folder to stop; returns it in words."""
    found = owner(folder)
    if found is None:
        raise ValueError(f"expected a running campaign to stop, found none that owns {folder}")
    _stop_file(folder).touch()
    return found


def stop_requested(folder):
    """Whether the owner of a folder has been asked to stop since it began."""
    return _stop_file(folder).exists()


def _stop_file(folder):
    return Path(folder) / "stop"
