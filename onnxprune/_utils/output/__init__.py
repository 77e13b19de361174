"""Text that people and programs read: numbers, HTML tables, terminals, progress and events."""
