"""Whether everything a test left in a database verifies: for suites to call when their server has stopped."""

from omni.store.database import Database
from omni.store.trace_pages import SqlTracePages
from omni.tracing.verify import check_trace


def disagreements_in(database_url: str, *, may_be_open: bool = True) -> list[str]:
    """One line for each disagreement of each trace, empty when all agree; open traces are one too unless they may be.

    ``database_url`` is as SQLAlchemy reads it. Blocks.
    """
    database = Database.open(database_url)
    try:
        reports = [check_trace(row, payloads) for page in SqlTracePages(database).walk() for row, payloads in page]
    finally:
        database.close()
    lines = [f"{report.trace_id}: {one.sentence}" for report in reports for one in report.disagreements]
    if not may_be_open:
        lines += [f"{report.trace_id}: still open" for report in reports if report.state == "open"]
    return lines
