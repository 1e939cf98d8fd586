"""A bound on request bodies that holds for streamed ones too."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kneo.service.problems import too_large


class BodyLimit:
    """Counts the bytes of a request's body and answers 413 when there are too many."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if declared.isdigit() and int(declared) > self.max_bytes:
            await too_large(self.max_bytes)(scope, receive, send)
            return
        counted = 0
        begun = False

        async def sending(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        async def counting() -> Message:
            nonlocal counted
            message = await receive()
            counted += len(message.get("body", b""))
            if counted > self.max_bytes:
                raise HTTPException(413)
            return message

        try:
            await self.app(scope, counting, sending)
        except HTTPException as error:
            # Whoever reads the body outside of the framework lets it through.
            if error.status_code != 413 or begun:
                raise
            await too_large(self.max_bytes)(scope, receive, send)
