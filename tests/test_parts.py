"""Finished parts of long work: kept, found again, and refused where they are damaged or of other options."""

import numpy as np
import pytest

from iqagp_jax.machine.parts import NOTHING_KEPT, kept_in

OPTIONS = {"molecule": "OO", "seed": 3, "thermal": {300.0: 6}, "variable": None}


def counted(made):
    """A part that counts how often it is made."""

    def make():
        made.append(1)
        return {"positions": np.eye(3), "tries": np.array(7)}

    return make


def test_a_part_is_made_once(tmp_path):
    made = []
    for _ in range(2):
        with kept_in(tmp_path / "parts", OPTIONS) as parts:
            found = parts.part("bond", counted(made))
            np.testing.assert_array_equal(found["positions"], np.eye(3))
            assert set(found) == {"positions", "tries"} and found["tries"] == 7
            assert parts.kept == ["bond"]
    assert len(made) == 1
    NOTHING_KEPT.part("bond", counted(made))
    assert len(made) == 2 and NOTHING_KEPT.kept == []


def test_parts_of_other_options_are_refused(tmp_path):
    with kept_in(tmp_path, OPTIONS):
        pass
    other = {**OPTIONS, "seed": 4, "thermal": {500.0: 6}}
    sentence = r"found others \(seed 3 there, 4 here; thermal {'300.0': 6} there, {'500.0': 6} here\)"
    with pytest.raises(ValueError, match=sentence), kept_in(tmp_path, other):
        pass


def test_two_at_a_time_are_refused(tmp_path):
    sentence = "is owned by a running process"
    with kept_in(tmp_path, OPTIONS), pytest.raises(ValueError, match=sentence), kept_in(tmp_path, OPTIONS):
        pass


@pytest.mark.parametrize("damage", ["cut", "other", "nothing", "swapped"])
def test_damaged_parts_get_a_sentence(tmp_path, damage):
    with kept_in(tmp_path, OPTIONS) as parts:
        parts.part("bond", counted([]))
        whole = (tmp_path / "bond.npz").read_bytes()
        if damage == "cut":
            (tmp_path / "bond.npz").write_bytes(whole[:-30])
        elif damage == "nothing":
            (tmp_path / "bond.npz").write_bytes(b"")
        elif damage == "other":
            np.savez(tmp_path / "bond.npz", positions=np.eye(3))
        else:
            (tmp_path / "contact.npz").write_bytes(whole)
        with pytest.raises(ValueError, match=r"\.npz is damaged \(.*\); delete it, and it is made again"):
            parts.part("contact" if damage == "swapped" else "bond", counted([]))


@pytest.mark.parametrize("text", ["", "[1]", "{", "null"])
def test_damaged_options_get_a_sentence(tmp_path, text):
    (tmp_path / "options.json").write_text(text)
    with pytest.raises(ValueError, match="delete the folder"), kept_in(tmp_path, OPTIONS):
        pass
