"""Folders with one owner at a time, which may be looked at as often as one likes."""

import threading

import pytest

from iqagp_jax.machine.lock import owned, owner


def test_who_looks_does_not_keep_others_out(tmp_path):
    """A loop of ``campaign status`` made one start in four fail."""
    done, seen = threading.Event(), []

    def look():
        while not done.is_set():
            seen.append(owner(tmp_path))

    looking = [threading.Thread(target=look) for _ in range(3)]
    for thread in looking:
        thread.start()
    try:
        for _ in range(300):
            with owned(tmp_path):
                pass
    finally:
        done.set()
        for thread in looking:
            thread.join()
    assert None in seen and len(seen) > 300


def test_an_owner_keeps_others_out_at_once(tmp_path):
    with owned(tmp_path, "simulation"):
        assert owner(tmp_path).startswith("process ")
        with pytest.raises(ValueError, match=r"is owned by a running simulation \(process"), owned(tmp_path, "simulation"):
            pass
    assert owner(tmp_path) is None


def test_one_of_many_who_come_at_once_gets_in(tmp_path):
    """And always one: those who are refused do not keep it from the one who is not."""
    inside, refused = [], []

    def enter():
        try:
            with owned(tmp_path):
                inside.append(1)
                assert sum(inside) == 1
                inside.pop()
        except ValueError:
            refused.append(1)

    for _ in range(20):
        threads = [threading.Thread(target=enter) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not inside and len(refused) < 20 * 6
