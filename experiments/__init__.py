"""The edge: config files and the commands that a user starts."""
