"""From an inbound message to a delivered answer."""
