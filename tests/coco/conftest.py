"""Json files to read, and a cache of their own."""

import gzip
import json

import pytest

from rs_d2.coco import reading


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The user's cache in a temporary folder; nothing is kept in memory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(reading, "_in_memory", {})
    return tmp_path / "cache" / "rs_d2" / "annotations"


@pytest.fixture
def save(tmp_path, cache):
    """Write content as json."""

    def write(content, name="train.json"):
        data = json.dumps(content).encode()
        path = tmp_path / name
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return path

    return write
