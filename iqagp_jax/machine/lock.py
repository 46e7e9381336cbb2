"""A folder owned by one process at a time, which other processes can see and ask to stop."""

import fcntl
import os
from contextlib import contextmanager
from pathlib import Path
from socket import gethostname


@contextmanager
def owned(folder, kind="process", advice="wait for it, or stop it"):
    """Own a folder while the block runs. Raises ValueError where a living process, a ``kind`` in words, owns it.

    The owner holds ``flock`` on the file ``lock``, which the kernel drops with the process however that ends: what a
    crash or a reboot leaves behind is a file, no lock. NFS (Linux since 2.6.12) and Lustre mounted with ``flock`` hold
    it between hosts too; of a host that vanished, until the server has given it up. Mounted with ``nolock``,
    ``local_lock`` or ``localflock`` they hold it between processes of one host only.
    """
    path = Path(folder) / "lock"
    with open(path, "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{folder} is owned by a running {kind} ({path.read_text()}); {advice}") from None
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
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return lock.read()
    return None


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
