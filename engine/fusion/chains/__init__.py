"""Which operations of a traced graph one operator computes together, and what that saves."""
