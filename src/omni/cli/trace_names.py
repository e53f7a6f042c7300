"""Which trace a person means by an id, the beginning of one, or ``last``."""

from omni.errors import RecordNotFound
from omni.ports import TraceFilter, TraceReader, TraceRow


def find_trace(reader: TraceReader, wanted: str) -> TraceRow:
    """The trace that is meant. Raises RecordNotFound when there is none, or more than one begins like this."""
    if wanted == "last":
        rows = reader.list_traces(TraceFilter(limit=1))
        if not rows:
            raise RecordNotFound("there are no traces yet")
        return rows[0]
    row = reader.get_trace(wanted)
    if row is not None:
        return row
    matches = [row for row in reader.list_traces(TraceFilter(limit=1000)) if row.trace_id.startswith(wanted)]
    if len(matches) != 1:
        found = "no trace" if not matches else f"{len(matches)} traces"
        raise RecordNotFound(f"{found} among the newest 1000 whose id begins with {wanted!r}")
    return matches[0]
