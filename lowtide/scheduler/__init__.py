"""The scheduler: tick, plan, repairs, pauses."""
