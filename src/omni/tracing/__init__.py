"""Omni's memory of every turn: events in, one timeline out."""
