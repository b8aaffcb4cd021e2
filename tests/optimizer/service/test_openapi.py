"""The API is what its OpenAPI says: schemathesis asks every operation with what fits its schema and what does not."""

from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given
from hypothesis import settings as bounded
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import positive_data_acceptance

from optimizer.service.app import make_app
from optimizer.service.runner import Runner
from optimizer.service.settings import Settings
from storage.store import Store

EXAMPLES = 12
ENDLESS = "/v1/studies/{name}/events"
"""Its stream ends with the study; what it sends is tested where a listener listens."""


@pytest.mark.usefixtures("shared")
def test_every_operation_keeps_to_its_schema(
    measured: Store, settings: Settings, token: Callable[[str], dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Runner, "look", lambda self: None)
    operator = token("operator")
    schema = schemathesis.openapi.from_asgi("/openapi.json", make_app(settings, measured), headers=operator)
    asked = [result.ok() for result in schema.get_all_operations()]
    assert len(asked) >= 15
    for operation in [o for o in asked if o.path != ENDLESS]:
        for mode in GenerationMode:
            _ask(operation, mode, operator)


def _ask(operation: Any, mode: GenerationMode, headers: dict[str, str]) -> None:
    @given(case=operation.as_strategy(mode), known=st.booleans())
    @bounded(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    def keeps_to_it(case: Any, known: bool) -> None:
        if known and mode is GenerationMode.POSITIVE and "name" in (case.path_parameters or {}):
            case.path_parameters["name"] = "tiny"
        # A study file is told what it is by the preflight's rules, of which the schema says no more than "an object".
        case.call_and_validate(headers=headers, timeout=120, excluded_checks=[positive_data_acceptance])

    # An operation that takes nothing cannot be asked wrongly.
    with suppress(Unsatisfiable) if mode is GenerationMode.NEGATIVE else nullcontext():
        keeps_to_it()
