"""Conditions on the use of rows: from their licenses, and from the terms of models."""
