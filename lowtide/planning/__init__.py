"""Pure scheduling: demand, rates, escalation."""
