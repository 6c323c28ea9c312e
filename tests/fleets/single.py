"""The fleet of an installation that declares none, for tests."""

from __future__ import annotations

from lowtide.fleets.file import default_fleet
from lowtide.fleets.model import Fleets
from lowtide.settings import Settings

SINGLE = Fleets((default_fleet(Settings()),))
