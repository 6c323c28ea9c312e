"""Tests of identity providers and their tokens."""
