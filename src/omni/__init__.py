"""Omni: a gateway between WhatsApp and AI agents whose traces tell the truth about streaming.

The public names below are resolved on first use; importing ``omni`` pulls in no HTTP client and no database. Names that need a
store or a client find the process's own, opened from the environment (docs/reference/settings.md) when they are first called.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omni.gateway.enhanced_streamer import EnhancedAutomagikHiveStreamer as EnhancedAutomagikHiveStreamer
    from omni.gateway.message_router import MessageRouter as MessageRouter
    from omni.model import InstanceConfig as InstanceConfig
    from omni.runtime import message_router as message_router
    from omni.settings import Settings as Settings
    from omni.tracing.service import TraceService as TraceService
    from omni.tracing.service import create_streaming_trace_context as create_streaming_trace_context
    from omni.tracing.streaming_trace_context import StreamingTraceContext as StreamingTraceContext
    from omni.tracing.trace_context import TraceContext as TraceContext

__version__ = "1.0.0"

_MODULE_BY_NAME = {
    "EnhancedAutomagikHiveStreamer": "omni.gateway.enhanced_streamer",
    "InstanceConfig": "omni.model",
    "MessageRouter": "omni.gateway.message_router",
    "Settings": "omni.settings",
    "StreamingTraceContext": "omni.tracing.streaming_trace_context",
    "TraceContext": "omni.tracing.trace_context",
    "TraceService": "omni.tracing.service",
    "create_streaming_trace_context": "omni.tracing.service",
    "message_router": "omni.runtime",
}
# These act through the process's own parts; asking for one says where they are, and opens nothing yet.
_WIRED = frozenset({
    "EnhancedAutomagikHiveStreamer",
    "MessageRouter",
    "TraceService",
    "create_streaming_trace_context",
    "message_router",
})  # fmt: skip

__all__ = [*sorted(_MODULE_BY_NAME), "__version__"]  # noqa: PLE0604 - the names are strings


def __getattr__(name: str) -> Any:
    if name not in _MODULE_BY_NAME:
        raise AttributeError(f"module 'omni' has no attribute {name!r}")
    if name in _WIRED:
        import_module("omni.runtime").provide_defaults()
    value = getattr(import_module(_MODULE_BY_NAME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
