"""Lowtide: OpenAI's Batch API on your own spot and dedicated GPUs."""

from __future__ import annotations

__version__ = "0.1.0"
