"""JAX does not survive ``os.fork``: a child that uses it after its parent did waits forever. It gets a sentence instead."""

import os

_user: list[int] = []


def computing() -> None:
    """To be called before JAX computes. Raises RuntimeError where another process, the parent, did so before the fork."""
    if not _user:
        _user.append(os.getpid())
    elif _user[0] != os.getpid():
        raise RuntimeError(
            "expected a process of its own for this potential, found one forked after its parent computed with JAX, which would"
            " wait forever; start processes with multiprocessing.get_context('spawn') or 'forkserver'"
        )
