"""Traces the predecessor wrote, read through the same document as ours: what it measured is shown, what it did not is null."""

import shutil
from pathlib import Path

import pytest

from omni.ports import TraceFilter
from omni.store.database import Database
from omni.store.queries import SqlTraceReader
from omni.tracing.document import streaming_document
from omni.tracing.stored import read_stored_trace

CAPTURES = Path(__file__).parents[1] / "captures" / "legacy"


@pytest.fixture(params=["legacy_cd5.db", "legacy_head.db"])
def documents(request, tmp_path):
    path = tmp_path / request.param
    shutil.copy(CAPTURES / request.param, path)
    database = Database.open(f"sqlite:///{path}")
    reader = SqlTraceReader(database)
    rows = reader.list_traces(TraceFilter(limit=1000))
    yield {
        row.whatsapp_message_id: streaming_document(read_stored_trace(row, reader.get_payloads(row.trace_id)))
        for row in rows
    }
    database.close()


def test_every_legacy_trace_has_a_document(documents):
    assert len(documents) >= 3
    for document in documents.values():
        assert document["headline"].startswith("written by the predecessor")
        assert document["timeline"]["stages"]["turn_total_ms"] is None


def test_a_legacy_stream_is_shown_as_it_was_stored(documents):
    document = documents["3EB0STREAMOK01"]
    assert document["ending"] == "completed"
    assert document["first_token"]["first_token_latency_ms"] == 60
    assert document["timeline"]["first_token_latency_ms"] == 60
    assert document["timeline"]["total_content_length"] == 710
    assert [chunk["chunk_index"] for chunk in document["streaming_chunks"]] == [0, 10, 20, 25]
    assert all(chunk["is_preview"] for chunk in document["streaming_chunks"])
    assert document["streaming_complete"]["final_content"].startswith("Porque os programadores")
    assert document["timeline"]["longest_gap_ms"] is None


def test_an_open_legacy_trace_stays_open(documents):
    """Rows of the predecessor are never changed, not even to close them; they are shown as open."""
    open_ones = [document for document in documents.values() if document["status"] == "received"]
    assert open_ones
    assert all(document["ending"] is None for document in open_ones)
