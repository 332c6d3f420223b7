"""What the endpoint answers instead of a turn, as OpenAI's clients read it."""

from __future__ import annotations

from typing import Any


class ApiError(Exception):
    """A request that is refused; `message` says what is wrong, what is expected, and what to do."""

    def __init__(self, status: int, message: str, *, code: str = "invalid_request", param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param

    @property
    def body(self) -> dict[str, Any]:
        kind = {401: "authentication_error", 404: "not_found_error"}.get(self.status, "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}
