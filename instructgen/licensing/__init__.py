"""The conditions that licenses and the terms of models put on the use of rows."""
