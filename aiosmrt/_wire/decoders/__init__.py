"""Decoders of streamed responses: bytes, cut anywhere, into text, lines, server-sent events and JSON values."""
