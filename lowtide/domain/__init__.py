"""Pure rules: no I/O; time and randomness are passed in."""
