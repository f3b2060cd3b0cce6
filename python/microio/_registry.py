"""Requests and replies: who waits for which answer."""

import asyncio
import inspect
from collections.abc import Callable, Hashable
from typing import TypeVar

from ._errors import BrokenResourceError, ClosedResourceError
from ._microio import ReplyHandle, seconds
from ._microio import RequestRegistry as _RequestRegistry

__all__ = ["BrokenResourceError", "ClosedResourceError", "ReplyHandle", "RequestRegistry"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class RequestRegistry(_RequestRegistry[K, V]):
    __doc__ = _RequestRegistry.__doc__

    async def request_async(
        self, key: K, send: Callable[[ReplyHandle[K, V]], object], timeout: float | None = None
    ) -> V:
        """Registers, calls ``send(reply)`` (and awaits it, if that can be awaited), and waits for the answer.

        At most ``timeout`` seconds for both (None: for ever). The value; raises the failure's exception, or TimeoutError.
        However it ends, the request is not pending any more.
        """
        timeout = None if timeout is None else seconds(timeout)
        reply = self.reply(key)
        try:
            wait = self.wait_async(key, reply.waiter, timeout)
            sent = send(reply)
            if not inspect.isawaitable(sent):
                return await wait
            clock = asyncio.get_running_loop().time
            began = clock()
            try:
                async with asyncio.timeout(timeout) as limit:
                    await sent
            except TimeoutError:
                if limit.expired():
                    raise TimeoutError(f"timed out waiting for request {key!r}") from None
                raise
            if timeout is None:
                return await wait
            return await self.wait_async(key, reply.waiter, max(0.0, timeout - (clock() - began)))
        finally:
            reply.pop()
