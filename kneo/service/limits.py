"""A bound on request bodies that holds for streamed ones too; and all bounds by the names that programs already use."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kneo.errors import Invalid
from kneo.service.problems import too_large
from kneo.settings import Limits


@dataclass(frozen=True)
class RequestLimits:
    """Bounds on what a request may bring, in place of those that the settings say."""

    max_body_bytes: int = Limits.body_bytes
    max_input_chars: int = Limits.input_chars
    max_human_content_chars: int = Limits.human_content_chars
    max_inline_spec_bytes: int = Limits.inline_spec_bytes
    max_overrides_bytes: int = Limits.overrides_bytes
    max_metadata_bytes: int = Limits.metadata_bytes
    max_list_items: int = Limits.page_items
    max_path_chars: int = Limits.path_chars

    def as_limits(self) -> Limits:
        """Return the same as a setting.

        Raises:
            Invalid: one is not positive.
        """
        for name, value in vars(self).items():
            if value <= 0:
                msg = f"{name} must be positive, not {value}."
                raise Invalid(msg, code="invalid_setting")
        return Limits(
            body_bytes=self.max_body_bytes,
            input_chars=self.max_input_chars,
            human_content_chars=self.max_human_content_chars,
            inline_spec_bytes=self.max_inline_spec_bytes,
            overrides_bytes=self.max_overrides_bytes,
            metadata_bytes=self.max_metadata_bytes,
            path_chars=self.max_path_chars,
            page_items=self.max_list_items,
        )


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
