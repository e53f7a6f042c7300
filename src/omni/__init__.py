"""Omni: a gateway between WhatsApp and AI agents whose traces tell the truth about streaming."""
