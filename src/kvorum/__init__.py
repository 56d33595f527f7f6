"""Kvorum: etcd in Python."""

from kvorum.version import VERSION as __version__

__all__ = ["__version__"]
