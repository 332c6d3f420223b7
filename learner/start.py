"""One rank, from nothing to the training loop: engine, reference, publisher, and the state it continues from."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from cluster.buffer import Buffer
from cluster.config import RunConfig
from cluster.types import Group, Mixed, Scores

log = logging.getLogger(__name__)

Mix = Callable[[Group, dict[str, Scores]], Mixed]
Save = Callable[..., None]
