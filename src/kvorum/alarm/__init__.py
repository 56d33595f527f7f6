"""Alarms that are on: which member raised which."""

from kvorum.alarm.store import AlarmStore, alarm_name

__all__ = ["AlarmStore", "alarm_name"]
