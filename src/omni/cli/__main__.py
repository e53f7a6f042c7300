"""``python -m omni.cli`` is the command ``omni``."""

from omni.cli import main

main()
