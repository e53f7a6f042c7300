"""The REST route that sends a text to someone who did not ask.

The text takes its place in the recipient's lane, so it never lands inside an answer that is going out. It is one message, or several
in order when it is split or too long for one; the first one that is refused ends it, so that nobody gets the end of a text without
its middle. Its trace is opened before the first message goes out, so that receipts find it and a process that dies in the middle leaves
it behind. A refused message is an answer (``success`` false), not an error of this API: older callers read it that way.
"""

import asyncio
import re
from typing import Annotated, Any
from uuid import uuid4

from fastapi import Path, Request
from msgspec.structs import replace
from pydantic import BaseModel, ConfigDict, Field, field_validator

from omni.errors import RecordNotFound
from omni.model import MessageOutcome
from omni.web.auth import keyed_router
from omni.web.context import context_of
from omni.web.errors import documented, input_refused

router = keyed_router("/instance", tag="messages")

MAX_TEXT_CHARS = 65_536
"""Longest text accepted: 16 full WhatsApp messages, more than anyone should be sent at once."""

_JID = re.compile(r"[\w.:-]{1,64}@(s\.whatsapp\.net|lid|g\.us)")
# What people write between the digits of a phone number.
_PUNCTUATION = re.compile(r"[\s().-]")
# E.164 allows 15 digits; the shortest national numbers with a country code have 7.
_PHONE = re.compile(r"\+?([0-9]{7,15})")


class SendText(BaseModel):
    """A text and whom to send it to."""

    model_config = ConfigDict(extra="ignore")

    phone_number: str | None = Field(
        None, description="The recipient: a number with country code, or a WhatsApp address with its `@`."
    )
    user_id: str | None = Field(None, description="Not supported: name the recipient by `phone_number`.")
    text: str = Field(description="The text; not blank.", max_length=MAX_TEXT_CHARS)
    split_message: bool | None = Field(
        None, description="Whether to split the text at blank lines; null takes the instance's `enable_auto_split`."
    )
    quoted_message_id: str | None = Field(None, description="Accepted, without effect.")
    auto_parse_mentions: bool | None = Field(None, description="Accepted, without effect.")
    mentioned: list[str] | None = Field(None, description="Accepted, without effect.")
    mentions_everyone: bool | None = Field(None, description="Accepted, without effect.")

    @field_validator("text")
    @classmethod
    def _not_blank(cls, text: str) -> str:
        if not text.strip():
            raise ValueError("must not be blank")
        return text


class SendReply(BaseModel):
    """What became of the text."""

    success: bool = Field(description="Whether Evolution accepted all of it, which is not yet delivery.")
    message_id: str | None = Field(description="WhatsApp's id of the (first) message; null when none was accepted.")
    status: str = Field(description="`sent` or `failed`.")
    evolution_response: dict[str, Any] | None = Field(
        description="The HTTP status Evolution answered last, and each message with its status, id and error."
    )
    error: str | None = Field(description="Why it failed, null otherwise.")
    trace_id: str | None = Field(description="The trace of this sending, null when none is kept.")


@router.post("/{name}/send-text", summary="Send a text", response_model=SendReply, responses=documented(404, 413))
async def send_text(
    request: Request, name: Annotated[str, Path(description="Name of a configured instance.")], wanted: SendText
) -> SendReply:
    """Send a text through an instance. Answers 200 with `success` false when Evolution refuses it."""
    context = context_of(request)
    recipient = _recipient(wanted)
    instance = await context.instances.get(name)
    if instance is None:
        raise RecordNotFound(f"Instance '{name}' not found")
    is_split = instance.enable_auto_split if wanted.split_message is None else wanted.split_message
    trace_id, begun_ns = str(uuid4()), context.parts.clock.mono_ns()
    answer = context.parts.open_text(replace(instance, enable_auto_split=is_split), recipient, trace_id=trace_id)
    answer.feed(wanted.text, 0)
    answer.finish()
    if not answer.num_messages:
        raise input_refused("text", "shows nothing")
    record = context.parts.open_outbound(
        trace_id=trace_id, instance_name=name, recipient=recipient, num_chars=len(wanted.text), begun_ns=begun_ns
    )
    try:
        await answer.wait_done()
    except asyncio.CancelledError:
        answer.abandon()
        raise
    finally:
        # Also when the server stops in the middle: what went out is recorded.
        outcomes = [_without_chunks(outcome) for outcome in answer.snapshot()]
        recorded_as = record(outcomes)
    return _reply(outcomes, recorded_as)


def _recipient(wanted: SendText) -> str:
    """Where to send: an address as it stands, or the digits of a number. No country code is ever guessed."""
    if not wanted.phone_number or not wanted.phone_number.strip():
        if wanted.user_id:
            raise input_refused("user_id", "is not supported; send phone_number")
        raise input_refused("phone_number", "is required")
    written = wanted.phone_number.strip()
    if _JID.fullmatch(written):
        return written
    number = _PHONE.fullmatch(_PUNCTUATION.sub("", written))
    if number is None:
        raise input_refused("phone_number", "must be 7 to 15 digits with country code, or a WhatsApp address")
    return number[1]


def _without_chunks(outcome: MessageOutcome) -> MessageOutcome:
    """No agent's chunks became this text."""
    return replace(outcome, message=replace(outcome.message, first_chunk=None, last_chunk=None))


def _reply(outcomes: list[MessageOutcome], trace_id: str | None) -> SendReply:
    # Nothing is tried when Omni is about to stop.
    tried = [outcome for outcome in outcomes if outcome.attempts] or outcomes
    last = tried[-1]
    is_sent = last.status == "accepted"
    return SendReply(
        success=is_sent,
        message_id=tried[0].key_id,
        status="sent" if is_sent else "failed",
        evolution_response={
            "status_code": last.status_code,
            "messages": [
                {"status": outcome.status, "key_id": outcome.key_id, "error": outcome.error} for outcome in outcomes
            ],
        },
        error=None if is_sent else (last.error or last.error_kind or "Evolution did not accept the message."),
        trace_id=trace_id,
    )
