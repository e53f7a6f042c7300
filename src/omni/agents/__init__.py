"""Agent back ends: from bytes on a socket to the events of a run."""
