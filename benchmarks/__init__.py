"""What produces the performance figures; each file prints a table and writes JSON on request."""
