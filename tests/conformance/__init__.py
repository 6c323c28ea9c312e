"""The API contract, row by row, by the official client and by raw HTTP."""
