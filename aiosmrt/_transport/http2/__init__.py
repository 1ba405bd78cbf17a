"""HTTP/2 for bidirectional streams: ``core`` is the protocol without I/O, ``connection`` and ``pool`` its shell."""
