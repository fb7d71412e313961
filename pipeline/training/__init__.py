"""Everything that takes a gradient."""
