"""What travels on the wire, as functions of bytes: no I/O, no clock, no randomness."""
