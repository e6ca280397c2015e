"""Kafka's API keys, for the mock cluster."""

from __future__ import annotations

PRODUCE = 0  # Kafka's API keys
FETCH = 1
OFFSET_COMMIT = 8
