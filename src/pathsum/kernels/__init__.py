"""Implementations: a folder each, a file a lattice, none importing another."""
