"""Running studies on this machine."""
