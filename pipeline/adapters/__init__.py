"""Adapter methods, one file each. base.py says what all of them promise, files.py keeps them on disk."""
