"""What the command line and `import instructgen` call, and what several commands share."""
