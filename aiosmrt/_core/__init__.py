"""The client's inside: one call from its parameters to its result, and what all calls share."""
