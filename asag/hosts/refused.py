"""The error that ends a request."""

from __future__ import annotations

try:
    from fastapi import HTTPException as Answered
except ImportError:  # no WebUI, and no API

    class Answered(Exception):  # type: ignore[no-redef]
        """What fastapi's is made of."""

        def __init__(self, status_code: int, detail: str) -> None:
            super().__init__(detail)
            self.status_code, self.detail = status_code, detail


class Refused(Answered):
    """Ends the request with a message for the user; the host's API answers with `status_code` and `detail`.

    422 is a mistake of the user's, and one line in the log; 500 is a failure, whose cause is logged where it is caught.
    Of fastapi's own errors hosts log no traceback (modules/api/api.py: handle_exception).
    """

    status_code: int
    detail: str

    def __init__(self, message: str, status_code: int) -> None:
        super().__init__(status_code, message)

    def __str__(self) -> str:
        return self.detail
