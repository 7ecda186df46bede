"""Config files, one a preset; each states its command and what it reached."""
