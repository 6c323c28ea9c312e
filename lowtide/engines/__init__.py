"""Inference engine adapters."""
