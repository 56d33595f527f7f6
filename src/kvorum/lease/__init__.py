"""Leases: keys that live as long as somebody keeps renewing what they hang on."""
