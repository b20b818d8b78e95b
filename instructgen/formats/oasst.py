"""OASST1 and OASST2: trees of messages by volunteers, flat (a message a row) or nested.

Messages are taken as their reviewers left them: what was deleted or failed
review is left out with all that answers it. Every message is in a sample or left
out with a reason.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from instructgen.formats import BadRow, LeftOut, RowError, Source, Taken, number, text
from instructgen.formats.records import Record
from instructgen.schema.sample import Message, Origin, Sample, Score

_ROLES = {"prompter": "user", "assistant": "assistant"}
# Paths and pairs grow with the square of a tree; real ones have some hundred at most.
_MOST_MESSAGES = 1_000
# Of the answer; the others are the worst of the whole conversation.
_OF_ANSWER = ("quality", "helpfulness", "creativity", "humor")


@dataclass(slots=True)
class _Node:
    """A message of a tree, with the answers to it."""

    line: int
    id: str
    parent: str | None
    role: str
    text: str
    language: str
    rank: int | None
    state: str
    fault: tuple[str, str] | None
    scores: dict[str, float]
    model: str | None
    children: list[_Node] = field(default_factory=list)


class OASST(Source):
    """Message rows, or one tree a row (Apache-2.0, Köpf et al. 2023).

    ``best`` follows the best-ranked answer from the first prompt on, ``all`` every
    path to a last answer, ``first`` takes the best-ranked answer to the first
    prompt alone. As preferences, of any two ranked answers to a prompt the better
    one is chosen.
    """

    name = "oasst"
    fields = frozenset({"message_tree_id", "tree_state"})
    license = "Apache-2.0"
    attribution = ("OpenAssistant Conversations, LAION and contributors 2023",)
    unit = "messages"
    shapes = ("instructions", "preferences")
    takes = ("best", "all", "first")

    def samples(self, record: Mapping[str, Any]) -> list[Sample]:
        """Of one tree."""
        (taken,) = self.taken([Record(1, dict(record))])
        return taken.samples

    def taken(self, records: Iterable[Record]) -> Iterator[Taken]:
        """Tree by tree; the messages of a flat one have to stand together."""
        done: set[str] = set()
        for key, rows in itertools.groupby(records, key=_tree_id):
            group = list(rows)
            if "prompt" in group[0].fields:
                # Nested: each is a tree of its own.
                for record in group:
                    yield self._tree(key, [record], *_flattened(record))
                continue
            if key is None or key in done:
                reason = "the other messages of its tree stand elsewhere; sort by message_tree_id."
                if key is None:
                    reason = '"message_tree_id" is missing, or no text.'
                bad: list[BadRow | LeftOut] = [BadRow(r.line, reason) for r in group]
                yield Taken(group[0].line, 0, [], bad, len(group))
                continue
            done.add(key)
            nodes, faults = [], []
            for record in group:
                try:
                    nodes.append(_node(record.line, record.fields))
                except RowError as error:
                    faults.append(BadRow(record.line, str(error)))
            yield self._tree(key, group, nodes, faults)

    def _tree(
        self, key: str | None, records: list[Record], nodes: list[_Node], faults: list[BadRow]
    ) -> Taken:
        if len(nodes) > _MOST_MESSAGES:
            reason = f"its tree has {len(nodes):,} messages, more than {_MOST_MESSAGES:,}."
            faults += [BadRow(node.line, reason) for node in nodes]
            nodes = []
        roots, lost = _linked(nodes)
        samples: list[Sample] = []
        used: set[str] = set()
        for root in roots:
            for path in self._paths(root, lost):
                used.update(node.id for node in path)
                if self.shape == "preferences":
                    samples.append(_preference(path[:-1], path[-1], str(key)))
                else:
                    samples.append(_sample(path, str(key)))
        for node in nodes:
            if node.id not in used and node.id not in lost:
                lost[node.id] = self._not_taken(node)
        others: list[BadRow | LeftOut] = [*faults]
        others += [
            LeftOut(node.line, *lost[node.id], _left_out(node, str(key)))
            for node in nodes
            if node.id in lost
        ]
        return Taken(records[0].line, len(used), samples, others, len(records))

    def _paths(self, root: _Node, lost: Mapping[str, Any]) -> Iterator[list[_Node]]:
        """Paths of messages that make a sample, their last one an answer.

        For preferences the last two are answers to the same prompt, the better first.
        """
        if root.id in lost:
            return
        if self.shape == "preferences":
            for path in _all_paths(root, lost):
                if path[-1].role == "user":
                    ranked = [c for c in path[-1].children if c.id not in lost]
                    ranked = sorted(
                        (c for c in ranked if c.rank is not None), key=lambda c: c.rank or 0
                    )
                    for better, worse in itertools.combinations(ranked, 2):
                        if better.rank != worse.rank and better.text != worse.text:
                            yield [*path, better, worse]
            return
        if self.take == "all":
            for path in _all_paths(root, lost):
                followed = any(
                    answer.id not in lost
                    for question in path[-1].children
                    if question.id not in lost
                    for answer in question.children
                )
                if path[-1].role == "assistant" and not followed:
                    yield path
            return
        path = [root]
        while True:
            answers = [c for c in path[-1].children if c.id not in lost]
            if not answers:
                break
            best = min(answers, key=_by_rank)
            path.append(best)
            if self.take == "first":
                break
            asked = [c for c in best.children if c.id not in lost]
            # A question that was answered goes before one that was not.
            asked.sort(key=lambda c: (all(a.id in lost for a in c.children), *_by_rank(c)))
            if not asked or all(a.id in lost for a in asked[0].children):
                break
            path.append(asked[0])
        if len(path) > 1:
            yield path

    def _not_taken(self, node: _Node) -> tuple[str, str]:
        if self.shape == "preferences":
            return "no_ranked_sibling", "it is no answer that was ranked beside another one"
        if node.role == "user" and not node.children:
            return "unanswered", "nobody answered it"
        if self.take == "first":
            return "not_first_turn", "only the best answer to the first prompt was taken"
        if self.take == "best":
            return "not_best_path", "the best-ranked path does not lead over it"
        return "unanswered", "no answer follows that could be taken"


def _by_rank(node: _Node) -> tuple[float, int]:
    return (float("inf") if node.rank is None else node.rank, node.line)


def _tree_id(record: Record) -> str | None:
    value = record.fields.get("message_tree_id")
    return value if isinstance(value, str) else None


def _flattened(record: Record) -> tuple[list[_Node], list[BadRow]]:
    """The messages of a nested tree, each before its replies."""
    nodes: list[_Node] = []
    faults: list[BadRow] = []
    waiting: list[Any] = [(record.fields.get("prompt"), None)]
    while waiting:
        fields, parent = waiting.pop()
        if not isinstance(fields, Mapping):
            faults.append(BadRow(record.line, "a message of the tree is no object."))
            continue
        tree = {k: record.fields.get(k) for k in ("message_tree_id", "tree_state")}
        try:
            node = _node(record.line, {**tree, "parent_id": parent, **fields})
            nodes.append(node)
        except RowError as error:
            faults.append(BadRow(record.line, f"a message of the tree: {error}"))
        replies = fields.get("replies") or []
        if isinstance(replies, list):
            here = fields.get("message_id")
            waiting += [(reply, here) for reply in reversed(replies)]
        else:
            faults.append(BadRow(record.line, '"replies" is no list.'))
    return nodes, faults


def _node(line: int, fields: Mapping[str, Any]) -> _Node:
    role = _ROLES.get(text(fields, "role"))
    if role is None:
        raise RowError(f'"role" is {fields["role"][:40]!r}, not {" or ".join(_ROLES)}.')
    rank = number(fields, "rank")
    state = text(fields, "tree_state", required=False)
    fault = None
    if state and state != "ready_for_export":
        fault = ("tree_not_ready", f"its tree is in the state {state}")
    if fields.get("review_result") is False:
        fault = ("failed_review", "its reviewers rejected it")
    if fields.get("deleted") is True:
        fault = ("deleted", "it was deleted")
    synthetic = fields.get("synthetic") is True
    return _Node(
        line=line,
        id=text(fields, "message_id"),
        parent=text(fields, "parent_id", required=False) or None,
        role=role,
        text=text(fields, "text"),
        language=text(fields, "lang", required=False) or "und",
        rank=None if rank is None else int(rank),
        state=state,
        fault=fault,
        scores=_scores(fields),
        model=(text(fields, "model_name", required=False) or "unknown") if synthetic else None,
    )


def _scores(fields: Mapping[str, Any]) -> dict[str, float]:
    """Labels by reviewers, in either of their two forms, and Detoxify's toxicity."""
    found: dict[str, Any] = {}
    labels = fields.get("labels")
    if isinstance(labels, Mapping):
        names, values = labels.get("name"), labels.get("value")
        if isinstance(names, list) and isinstance(values, list):
            found = dict(zip(map(str, names), values, strict=False))
        else:
            found = {k: v.get("value") for k, v in labels.items() if isinstance(v, Mapping)}
    detoxify = fields.get("detoxify")
    if isinstance(detoxify, Mapping):
        found["detoxify_toxicity"] = detoxify.get("toxicity")
    return {
        name: float(value)
        for name, value in found.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _linked(nodes: list[_Node]) -> tuple[list[_Node], dict[str, tuple[str, str]]]:
    """The first prompts, and the messages that cannot be used with the reason why."""
    lost: dict[str, tuple[str, str]] = {}
    by_id: dict[str, _Node] = {}
    for node in nodes:
        if node.id in by_id:
            node.id = f"{node.id}#{node.line}"
            lost[node.id] = ("doubled", "another message of the tree has its id")
        else:
            by_id[node.id] = node
    roots = []
    for node in nodes:
        if node.id in lost:
            continue
        parent = by_id.get(node.parent or "")
        if node.parent is not None and parent is None:
            lost[node.id] = ("orphan", f"what it answers, {node.parent}, is not in its tree")
        elif parent is None and node.role != "user":
            lost[node.id] = ("wrong_role", "a tree begins with a prompt")
        elif parent is not None and parent.role == node.role:
            lost[node.id] = ("wrong_role", "it answers a message of its own side")
        elif node.fault:
            lost[node.id] = node.fault
        elif parent is None:
            roots.append(node)
        if parent is not None and node.id not in lost:
            parent.children.append(node)
    for extra in roots[1:]:
        lost[extra.id] = ("wrong_tree", "its tree has another first prompt")
    # What answers a lost message, or nothing that leads to a first prompt.
    reached = {roots[0].id} if roots else set()
    waiting = roots[:1]
    while waiting:
        for child in waiting.pop().children:
            if child.id not in lost:
                reached.add(child.id)
                waiting.append(child)
    for node in nodes:
        if node.id not in reached and node.id not in lost:
            lost[node.id] = ("parent_left_out", "what it answers was left out")
    return roots[:1], lost


def _all_paths(root: _Node, lost: Mapping[str, Any]) -> Iterator[list[_Node]]:
    """The path from the root to every message that is not lost."""
    waiting = [[root]]
    while waiting:
        path = waiting.pop()
        yield path
        waiting += [[*path, c] for c in reversed(path[-1].children) if c.id not in lost]


def _sample(path: list[_Node], tree: str) -> Sample:
    """The path's last answer as a sample; scores of the answer, and the worst of the whole."""
    *before, question, answer = path
    scores: dict[str, float] = {}
    for node in path:
        for name, value in node.scores.items():
            if name in _OF_ANSWER:
                if node is answer:
                    scores[name] = value
            else:
                scores[name] = max(value, scores.get(name, value))
    if answer.rank is not None:
        scores["rank"] = float(answer.rank)
    models = tuple(sorted({node.model for node in path if node.model}))
    return Sample(
        instruction=question.text,
        output=answer.text,
        history=tuple(Message(node.role, node.text) for node in before),
        language=answer.language,
        generators=models,
        origin=Origin(
            method="model" if answer.model else "human",
            model=answer.model,
            record=answer.id,
            group=tree,
        ),
        scores=tuple(Score(name, value) for name, value in sorted(scores.items())),
    )


def _preference(path: list[_Node], worse: _Node, tree: str) -> Sample:
    sample = _sample(path, tree)
    record = f"{path[-1].id}>{worse.id}"
    models = {*sample.generators, *([worse.model] if worse.model else [])}
    return replace(
        sample,
        rejected_output=worse.text,
        generators=tuple(sorted(models)),
        origin=replace(sample.origin, record=record),
    )


def _left_out(node: _Node, tree: str) -> Sample:
    asked, answered = (node.text, "") if node.role == "user" else ("", node.text)
    origin = Origin(record=node.id, group=tree)
    return Sample(asked, output=answered, language=node.language, origin=origin)
