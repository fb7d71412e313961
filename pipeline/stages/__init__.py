"""One module per rule: reads files, calls one room, writes files."""
