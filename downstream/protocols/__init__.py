"""Protocols: how a downstream number is obtained; one file and one line of `PROTOCOLS` each."""

from __future__ import annotations

from downstream.protocols import hear, paper
from downstream.protocols.base import Found, Protocol, Settings

__all__ = ["PROTOCOLS", "Found", "Protocol", "Settings"]

PROTOCOLS: dict[str, Protocol] = {one.name: one for one in (hear.PROTOCOL, paper.PROTOCOL)}
