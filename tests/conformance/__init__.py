"""The API contract, by the official client and by raw HTTP."""
