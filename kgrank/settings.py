"""What every section of the configuration shares: frozen, typed, and strict about names."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A group of settings that live beside the code that reads them.

    A change gives a new value (`section.model_copy(update=…)`); an unknown name is an error.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
