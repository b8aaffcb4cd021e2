"""What both databases must do alike."""

from collections.abc import Iterator

import pytest

from storage.store import Store


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, storage: str) -> Iterator[Store]:
    url = storage if request.param == "sqlite" else request.getfixturevalue("postgresql_url")
    store = Store.open(url, create=True)
    yield store
    store.close()
