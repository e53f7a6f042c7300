"""The reference pages say what the code does: settings, routes, stages, figures, public names."""

import doctest
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import omni
from omni.clock import Anchor
from omni.tracing.document import delivery_document, timeline_document
from omni.tracing.summary import streaming_summary
from omni.tracing.timeline import build_timeline

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"


def test_settings_and_routes_are_all_documented():
    result = subprocess.run(
        [sys.executable, ROOT / "tools" / "write_reference.py", "--check"], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout) == (0, "")


def test_every_figure_of_the_document_is_defined():
    text = (REFERENCE / "metrics.md").read_text(encoding="utf-8")
    timeline = build_timeline("t", Anchor(0, 0), [])
    figures = {*timeline_document(timeline), *timeline_document(timeline)["stages"], *delivery_document(timeline)}
    told_elsewhere = {"received_at", "is_streaming", "stages", "messages", "usage", "ending"}
    assert sorted(name for name in figures - told_elsewhere if f"`{name}`" not in text) == []


def test_every_stage_is_documented():
    text = (REFERENCE / "stages.md").read_text(encoding="utf-8")
    stages = [
        "webhook_received",
        "agent_request",
        "streaming_request",
        "streaming_start",
        "first_token",
        "streaming_chunks",
        "streaming_complete",
        "streaming_error",
        "agent_response",
        "evolution_send",
        "message_receipt",
        "streaming_chunk",
    ]
    assert [stage for stage in stages if f"`{stage}`" not in text] == []


def test_public_names_resolve_and_import_pulls_in_no_client_and_no_database():
    code = (
        "import sys, omni; heavy = [m for m in ('aiohttp', 'sqlalchemy', 'fastapi') if m in sys.modules]; "
        "assert not heavy, heavy; [getattr(omni, name) for name in omni.__all__]"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_the_names_the_contract_fixes_are_public():
    assert {
        "TraceContext",
        "StreamingTraceContext",
        "create_streaming_trace_context",
        "TraceService",
        "EnhancedAutomagikHiveStreamer",
        "MessageRouter",
        "message_router",
    } <= set(omni.__all__)


def test_every_key_of_the_summary_is_documented():
    text = (REFERENCE / "summary.md").read_text(encoding="utf-8")
    keys = streaming_summary(build_timeline("t", Anchor(0, 0), []))
    assert [key for key in keys if f"`{key}`" not in text] == []


def test_documents_named_in_the_code_exist():
    named = {
        name
        for path in [*(ROOT / "src").rglob("*.py"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")]
        for name in re.findall(r"docs/[a-z]+/[\w.-]+\.(?:md|png|svg)", path.read_text(encoding="utf-8"))
    }
    assert len(named) > 5
    assert sorted(name for name in named if not (ROOT / name).exists()) == []


def modules_with_examples():
    for path in sorted((ROOT / "src").rglob("*.py")):
        if ">>> " in path.read_text(encoding="utf-8"):
            yield path.relative_to(ROOT / "src").with_suffix("").as_posix().replace("/", ".")


@pytest.mark.parametrize("name", list(modules_with_examples()))
def test_examples_in_docstrings_hold(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0
