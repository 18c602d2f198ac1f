"""Has the huggingface_hub of the tests' own process use a fake hub."""

from pathlib import Path

import pytest
from huggingface_hub import constants

from t2i_cli.hub import snapshot
from tests.fakes.hub import FakeHub


def use_fake_hub(hub: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point it at the fake hub, with an empty cache in `folder`, which is returned."""
    cache = folder / "cache"
    cache.mkdir()
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(snapshot, "_COMMIT_TTL", -1)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return cache
