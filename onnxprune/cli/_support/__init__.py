"""Support of the commands: options and their defaults, checks of files, stages, tables, errors and exit statuses."""
