"""Alarms that are on: which member raised which."""

from kvorum.alarm.store import AlarmStore

__all__ = ["AlarmStore"]
