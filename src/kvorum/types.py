"""The numbers that must not be mixed up, each with a type of its own."""

from __future__ import annotations

from typing import NewType

Term = NewType("Term", int)
"""A raft term, counted from 1."""

Index = NewType("Index", int)
"""A position in the raft log, counted from 1; 0 is before the first entry."""

MemberID = NewType("MemberID", int)
"""A member's unsigned 64-bit id; 0 is none."""

LeaseID = NewType("LeaseID", int)
"""A lease's signed 64-bit id; 0 is none."""

Revision = NewType("Revision", int)
"""A main revision of the key space; an empty store is at 1."""

RevKey = NewType("RevKey", bytes)
"""A full revision as it is stored: main (8 bytes BE), ``_``, sub (8 bytes BE), and ``t`` on a
tombstone. It compares as the revision does, so that it serves as key, index entry and order."""
