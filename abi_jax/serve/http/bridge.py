"""From the engine's thread to the event loop: one call a step, whatever the number of answers."""

import asyncio
import contextlib
from collections.abc import Sequence

from abi_jax.serve.scheduler import Ended, Event, Ticket


class Mailbox:
    """The events of one request, of all its tickets, in their order."""

    def __init__(self) -> None:
        self._events: list[tuple[Ticket, Event]] = []
        self._woken = False
        self._waiter: asyncio.Future[None] | None = None

    def put(self, ticket: Ticket, event: Event) -> None:
        """Adds an event and wakes who waits."""
        self._events.append((ticket, event))
        self.wake()

    def wake(self) -> None:
        """Makes `take` return, with whatever there is."""
        self._woken = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def take(self) -> list[tuple[Ticket, Event]]:
        """Waits for events, or `wake`, and returns all that came."""
        if not self._woken:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        self._woken = False
        events, self._events = self._events, []
        return events


class Bridge:
    """Sorts the events of a worker into mailboxes. All but `deliver` belongs to the event loop's thread."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._boxes: dict[Ticket, Mailbox] = {}

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Says where the mailboxes are read; before the first ticket."""
        self._loop = loop

    def deliver(self, events: Sequence[tuple[Ticket, Event]]) -> None:
        """Takes the events of a step, on the engine's thread."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
                self._loop.call_soon_threadsafe(self._sort, events)

    def expect(self, ticket: Ticket, box: Mailbox) -> None:
        """Where a ticket's events go. Call it right after `submit`, before the event loop can run anything else."""
        self._boxes[ticket] = box

    def forget(self, ticket: Ticket) -> None:
        """Drops what still comes for a ticket."""
        self._boxes.pop(ticket, None)

    @property
    def open(self) -> int:
        """How many tickets have not ended."""
        return len(self._boxes)

    def _sort(self, events: Sequence[tuple[Ticket, Event]]) -> None:
        for ticket, event in events:
            box = self._boxes.get(ticket)
            if box is None:
                continue
            if isinstance(event, Ended):
                del self._boxes[ticket]
            box.put(ticket, event)
