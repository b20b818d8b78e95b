"""What the licenses of rows, and the terms of the models that wrote them, ask of their users."""
