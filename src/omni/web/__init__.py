"""The HTTP side of Omni: webhook and REST."""
