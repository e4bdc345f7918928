"""Asking an engine from a test: a request whose answer is awaited."""

from __future__ import annotations

import asyncio

from cloudai.serving.engine import Waiting


class Awaited(Waiting):
    """A request whose outcome is a future's; who cancels the future gives it up."""

    def __init__(self):
        self.over = False
        self.answer = asyncio.get_running_loop().create_future()
        self.answer.add_done_callback(self._end)

    def _end(self, _):
        self.over = True

    def deliver(self, outcome):
        if isinstance(outcome, BaseException):
            self.answer.set_exception(outcome)
        else:
            self.answer.set_result(outcome)


def infer(engine, inputs, *, rows):
    """Submit a request and return the future of its outputs."""
    asked = Awaited()
    engine.submit(asked, inputs, rows)
    return asked.answer
