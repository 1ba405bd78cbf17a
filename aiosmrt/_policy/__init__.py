"""Decisions as pure functions: whether to try again, how long to wait, how much to let through."""
