"""NetHack and MiniHack as text. `game` needs the extra `nethack`; nothing else here imports it."""

from actors.environments.nethack.play import NetHack

__all__ = ["NetHack"]
