"""The commands, one file each: what the command line and `import instructgen` call."""
