"""Generated sets on disk: read back, made again when damaged, a full disk costs a warning."""

import os

import numpy as np
import pytest

from vitq import data
from vitq.data import cache, glyphs


def load():
    return data.load("glyphs", "val", images=41)


def file(own_cache):
    (found,) = own_cache.glob("*.npy")
    return found


def test_the_second_load_reads_the_file(own_cache, monkeypatch):
    first = load()
    monkeypatch.setattr(glyphs, "render", None)
    assert load().images.equal(first.images)
    assert [path.name for path in own_cache.iterdir()] == [f"{first.version}.npy"]


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "garbage", "other size", "pickle"])
def test_a_damaged_file_is_made_again(own_cache, damage):
    first = load()
    path = file(own_cache)
    whole = path.read_bytes()
    if damage == "other size":
        np.save(path, np.zeros(10, np.uint8))
    elif damage == "pickle":
        np.save(path, np.array([{"a": 1}], dtype=object))
    else:
        flipped = whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:]
        wrong = {"truncate": whole[: len(whole) // 2], "flip": flipped, "empty": b"", "garbage": b"no array at all"}
        path.write_bytes(wrong[damage])
    assert load().images.equal(first.images)
    assert path.read_bytes() == whole


def test_changing_loaded_pixels_does_not_change_the_file(own_cache):
    load()
    whole = file(own_cache).read_bytes()
    load().images.zero_()
    assert file(own_cache).read_bytes() == whole


def test_a_full_disk_costs_a_warning_and_leaves_nothing_behind(own_cache, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.np, "save", full)
    with pytest.warns(UserWarning, match="No space left"):
        dataset = load()
    assert len(dataset) == 41 and not list(own_cache.iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_costs_a_warning(own_cache):
    own_cache.mkdir(mode=0o500)
    with pytest.warns(UserWarning, match="could not be written"):
        assert len(load()) == 41


def test_a_file_in_place_of_the_folder_costs_a_warning(own_cache):
    own_cache.write_text("")
    with pytest.warns(UserWarning, match="could not be written"):
        assert len(load()) == 41
