"""Made-up requests to routes, by schemathesis, from their OpenAPI description."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fuzzing import fuzz


def ask_all_routes(api: Any) -> set[str]:
    """Ask everything that the schema describes, and check that the answers are as described. Returns the paths."""
    checks = pytest.importorskip("schemathesis.specs.openapi.checks")
    operations = [each.ok() for each in api.get_all_operations()]
    for operation in operations:

        @fuzz(case=operation.as_strategy())
        def asked(case: Any) -> None:
            # Any list is a valid request, and one that no model answers is refused.
            case.call_and_validate(excluded_checks=[checks.positive_data_acceptance])

        asked()
    return {each.path for each in operations}
