"""Determines how rows may be used, from licenses and the terms of the models that wrote them."""
