"""Scripts for ScriptedAgent, timed on the fake clock."""

from omni.model import FirstByte, RequestWritten, RunActivity, RunEnded, RunStarted, TextDelta, ToolCall, Usage

JOKE = ["Why do programmers prefer dark mode?", "\n\n", "Because light ", "attracts bugs! ", "🐛"]


def telling(clock, texts, *, ending="completed", gap_ms=60, error=None, with_tool=False, content=None):
    """Steps of a run that says ``texts``: 150 ms to the first, ``gap_ms`` between them."""

    def steps(request):
        yield RequestWritten(clock.mono_ns())
        clock.advance_ms(20)
        yield FirstByte(clock.mono_ns())
        yield RunStarted(mono_ns=clock.mono_ns(), run_id="r1", session_id=request.session_id, model="fake")
        clock.advance_ms(130)
        for text in texts:
            yield TextDelta(clock.mono_ns(), text, "RunContent")
            clock.advance_ms(gap_ms)
        if with_tool:
            yield ToolCall(mono_ns=clock.mono_ns(), phase="started", name="get_stock")
            yield ToolCall(mono_ns=clock.mono_ns(), phase="completed", name="get_stock", is_error=True)
            yield RunActivity(clock.mono_ns(), "MemoryUpdateStarted")
        if isinstance(error, Exception):
            yield error
        else:
            yield RunEnded(
                mono_ns=clock.mono_ns(),
                ending=ending,
                event_type="RunCompleted",
                content="".join(texts) if content is None else content,
                error_message=error,
                usage=Usage(input_tokens=11, output_tokens=7, total_tokens=18),
            )

    return steps
