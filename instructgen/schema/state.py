"""The base class of models with options and state, such as engines and filters."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


class StatefulModel(BaseModel):
    """A pydantic model whose private attributes are read as fast as those of any other class.

    Pydantic looks them up in a function, which takes 40 times as long. This was an eighth of the
    time of the client of model servers. Two objects with the same options are equal, whatever
    their private attributes are.
    """

    def model_post_init(self, context: Any) -> None:
        """Move the private attributes to the place of normal ones."""
        private = self.__pydantic_private__ or {}
        # A subclass may have set some of them before it calls this method.
        self.__dict__.update({k: v for k, v in private.items() if k not in self.__dict__})
        private.clear()

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; only the private ones of a frozen model can be set."""
        if name.startswith("_"):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)
