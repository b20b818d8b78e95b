"""The commands of instructgen as Python functions, and code that several commands use."""
