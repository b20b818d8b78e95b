"""The commands as Python functions, and the code that several commands share."""
