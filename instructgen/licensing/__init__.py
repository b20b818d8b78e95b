"""Determines the conditions for using rows, from licenses and from the terms of models."""
