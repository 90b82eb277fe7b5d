import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VITQ_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
