"""Keeps the shares that groups of rows, such as languages, have among the seeds.

A model that knows one language well gives many instructions in it and few in others. So the next
draft is probably one of the group that needs most drafts, and instructions of a group that has more
than its share wait until the others have theirs. These decisions depend only on what was accepted
before, and not on the target, so that a run can be replayed and its target raised.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

# How many rows a group may have in addition to its share.
_AHEAD = 2
# After 40 drafts, a group is given up if fewer than one row per 40 drafts is expected.
_PATIENCE, _TOO_FEW = 40, 0.025


class Group(NamedTuple):
    """A language, and the values of the columns whose shares among the seeds are kept."""

    language: str
    values: tuple[str, ...] = ()


@dataclass(slots=True)
class Shares:
    """What each group has: its seeds, started drafts, and rows.

    ``accepted`` counts accepted rows, ``pending`` the accepted instructions whose rows are being
    generated, and ``waiting`` those for which no rows are asked yet.
    """

    seeds: Mapping[Group, int]
    started: Counter[Group] = field(default_factory=Counter)
    accepted: Counter[Group] = field(default_factory=Counter)
    pending: Counter[Group] = field(default_factory=Counter)
    waiting: Counter[Group] = field(default_factory=Counter)

    def expected(self, group: Group) -> int:
        """Return the number of accepted rows of a group, plus one for each instruction."""
        return self.accepted[group] + self.pending[group] + self.waiting[group]

    def fractions(self) -> dict[Group, float]:
        """Return the share that the rows of each group should have, 0 for those given up."""
        kept = {g: n for g, n in self.seeds.items() if not self._given_up(g)} or self.seeds
        total = sum(kept.values())
        return {group: kept.get(group, 0) / total for group in self.seeds}

    def draw(self, rng: random.Random) -> Group:
        """Return a random group for a draft, with a higher probability if its rows are missing.

        The probability is proportional to the number of drafts that the group is expected to need.
        """
        groups = sorted(self.seeds)
        fractions = self.fractions()
        total = sum(map(self.expected, groups)) + _AHEAD * len(groups)
        weights = []
        for group in groups:
            missing = max(fractions[group] * total - self.expected(group), 0.0)
            rows_per_draft = (self.expected(group) + 1) / (self.started[group] + 2)
            weights.append(missing / rows_per_draft)
        return rng.choices(groups, weights)[0]

    def has_room(self, group: Group) -> bool:
        """Return whether rows of another instruction of a group may be asked for now."""
        if len(self.seeds) < 2 or group not in self.seeds:
            return True
        asked = self.accepted + self.pending
        return asked[group] < self.fractions()[group] * asked.total() + _AHEAD

    def useful(self, target: int, rows_per_task: float) -> float:
        """Return how many expected rows count for a target; of each group, at most its share."""
        fractions, total = self.fractions(), 0.0
        for group in fractions.keys() | self.accepted.keys() | self.pending.keys():
            tasks = self.pending[group] + self.waiting[group]
            have = self.accepted[group] + rows_per_task * tasks
            # The rows of a group that no seed is in have no share to keep.
            most = fractions[group] * target + _AHEAD if group in fractions else have
            total += min(have, most)
        return total

    def _given_up(self, group: Group) -> bool:
        started = self.started[group]
        return started >= _PATIENCE and self.expected(group) < _TOO_FEW * started
