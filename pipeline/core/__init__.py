"""What every room needs and that needs no room: settings, records, seeds, provenance, and the doorways."""
