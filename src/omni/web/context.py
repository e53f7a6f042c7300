"""What the routes of one application share while it runs: the parts, and the objects made from them."""

import asyncio
import logging
from dataclasses import dataclass

from starlette.requests import Request

from omni.web.instance_cache import InstanceCache
from omni.web.parts import WebParts
from omni.web.store_calls import StoreCalls
from omni.web.webhook_auth import WebhookGuard

log = logging.getLogger(__name__)

FLUSH_WAIT_S = 5.0
"""Seconds a read waits until what was logged is stored, before it reads what there is."""


@dataclass(frozen=True, slots=True)
class WebContext:
    """The parts and what is built on them; one per application, kept in its state."""

    parts: WebParts
    instances: InstanceCache
    store_calls: StoreCalls
    webhook_guard: WebhookGuard
    flush_wait_s: float = FLUSH_WAIT_S

    async def flushed(self) -> None:
        """Wait, briefly, until what was logged is stored. Never raises."""
        try:
            await asyncio.wait_for(self.parts.flush_traces(), self.flush_wait_s)
        except TimeoutError:
            log.warning("trace_flush_slow", extra={"waited_s": self.flush_wait_s})

    def instance_changed(self, name: str) -> None:
        """Forget what is known of an instance, here and wherever ``on_instances_changed`` reaches."""
        self.instances.forget(name)
        self.parts.on_instances_changed(name)


def build_context(parts: WebParts) -> WebContext:
    """The context for one application."""
    return WebContext(
        parts=parts,
        instances=InstanceCache(parts.instances, parts.clock),
        store_calls=StoreCalls(),
        webhook_guard=WebhookGuard(
            parts.api_key, is_required_everywhere=parts.settings.require_webhook_auth, clock=parts.clock
        ),
    )


def close_context(context: WebContext) -> None:
    """Let go of the threads. Does not wait for calls that hang."""
    context.instances.close()
    context.store_calls.close()


def context_of(request: Request) -> WebContext:
    """The context of the application that serves ``request``."""
    context = request.app.state.web
    assert isinstance(context, WebContext)
    return context
