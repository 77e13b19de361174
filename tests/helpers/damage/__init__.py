"""Damage: attacks on files that commands read, and faults of the disk."""
