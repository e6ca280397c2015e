"""Requests made from the OpenAPI document, right and wrong ones, and every answer held to it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis import Case
from structlog.testing import capture_logs

from dispatcher.api import openapi
from tests.api.real import InThread
from tests.api.serving import KEY

EXAMPLES = 10


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InThread]:
    made = InThread(tmp_path_factory.mktemp("dispatcher"), KEY)
    with capture_logs():
        made.start()
        yield made
        made.stop()


@schemathesis.serializer("application/x-ndjson")
def lines(_context: Any, value: Any) -> bytes:
    rows = value if isinstance(value, list) else [value]
    return "\n".join(map(json.dumps, rows)).encode()  # integers of any size, which orjson has not


# What a schema can't say, such as which cursors were handed out, is a 422 or a 412 for a request that fits it.
CONFIG = {
    "checks": {
        "positive_data_acceptance": {
            "expected-statuses": ["2xx", "401", "403", "404", "409", "412", "413", "422", "429"]
        }
    }
}
# The served document is the same: test_openapi.py.
schema = schemathesis.openapi.from_dict(
    orjson.loads(openapi.document()), config=schemathesis.Config.from_dict(CONFIG)
)


# Hypothesis takes a move of the global generator during a draw for the strategy's doing; it is the jitter of the
# dispatcher, which runs in another thread of this process.
@pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")
@schema.exclude(operation_id="followStream").parametrize()  # it has no end
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    database=None,
)
def test_no_request_gets_an_answer_that_is_not_documented(case: Case[Any], api: InThread) -> None:
    case.call_and_validate(base_url=api.url, headers={"Authorization": f"Bearer {KEY}"})
