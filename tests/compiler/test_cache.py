"""The cache: what was stored comes back byte for byte, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler import cache as cache_module
from compiler.cache import KEPT_ENTRIES, Cache, default_folder

ENTRY = {"packerOut.zip": bytes(range(256)), "log": b"", "name with / and é": b"x"}


def test_what_was_stored_comes_back(tmp_path):
    cache = Cache(tmp_path / "not" / "there" / "yet")
    key = cache.key("kind", b"model", b"3.19.2")
    assert cache.get(key) is None
    cache.put(key, ENTRY)
    assert cache.get(key) == ENTRY
    assert [path.name for path in cache.folder.iterdir()] == [key]


@given(st.lists(st.binary(max_size=4), max_size=4), st.lists(st.binary(max_size=4), max_size=4))
def test_different_parts_have_different_keys(first, second):
    assert (Cache.key("k", *first) == Cache.key("k", *second)) == (first == second)


@pytest.mark.parametrize("damage", [lambda d: d[:-1], lambda d: b"", lambda d: d[:40] + b"!" + d[41:]])
def test_a_damaged_entry_is_absent_and_gets_replaced(tmp_path, damage):
    cache = Cache(tmp_path)
    key = cache.key("kind", b"model")
    cache.put(key, ENTRY)
    path = tmp_path / key
    path.write_bytes(damage(path.read_bytes()))
    assert cache.get(key) is None
    cache.put(key, ENTRY)
    assert cache.get(key) == ENTRY


def test_the_entries_used_last_are_kept(tmp_path):
    cache = Cache(tmp_path)
    keys = [cache.key("kind", bytes([number])) for number in range(KEPT_ENTRIES + 3)]
    for age, key in enumerate(reversed(keys[:-1])):
        cache.put(key, ENTRY)
        os.utime(tmp_path / key, (1e9 - age, 1e9 - age))
    # stored in reverse: the last keys are the youngest; reading the oldest makes it young again
    survivors = {path.name for path in tmp_path.iterdir()}
    oldest = min(survivors, key=lambda name: (tmp_path / name).stat().st_mtime)
    assert cache.get(oldest) == ENTRY
    cache.put(keys[-1], ENTRY)
    kept = {path.name for path in tmp_path.iterdir()}
    assert len(kept) == KEPT_ENTRIES
    assert {oldest, keys[-1]} <= kept


@pytest.mark.parametrize("name", [".{}.part", "{}.training"])
def test_what_a_killed_writer_left_goes_away(tmp_path, name):
    old, young = tmp_path / name.format("a"), tmp_path / name.format("b")
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (1e9, 1e9))
    cache = Cache(tmp_path)
    cache.put(cache.key("kind"), ENTRY)
    assert not old.exists()
    assert young.exists()


def test_a_folder_that_cannot_be_used_costs_time_only(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    cache = Cache(blocked / "cache")
    cache.put(cache.key("kind"), ENTRY)
    assert cache.get(cache.key("kind")) is None
    assert blocked.read_text() == "not a folder"


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError("no")

    cache = Cache(tmp_path)
    monkeypatch.setattr(cache_module.os, "replace", refuse)
    cache.put(cache.key("kind"), ENTRY)
    assert list(tmp_path.iterdir()) == []


def test_the_folder_follows_xdg(monkeypatch):
    monkeypatch.delenv("PICOSAM2_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_folder() == Path("/somewhere/picosam2-compile")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/someone")
    assert default_folder() == Path("/home/someone/.cache/picosam2-compile")
