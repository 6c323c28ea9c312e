"""Buckets of tenants: their URLs, who may use them, and the bytes in them."""
