from __future__ import annotations

from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from tests.api.serving import KEY
from tests.commands.calling import Api, HistoryApi, Site


@pytest.fixture
def api() -> Iterator[Api]:
    made = Api(KEY)
    with capture_logs():  # of the server, which shares the process and so the output
        made.start()
        yield made
        made.stop()


@pytest.fixture(scope="module")
def history_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HistoryApi]:
    made = HistoryApi(tmp_path_factory.mktemp("history"))
    with capture_logs():
        made.start()
        yield made
        made.stop()


@pytest.fixture(scope="module")
def site(history_api: HistoryApi) -> Iterator[Site]:
    made = Site(history_api)
    yield made
    made.close()
