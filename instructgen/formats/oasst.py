"""Reads OASST1 and OASST2 (OpenAssistant): message trees, with one message or tree per row.

Messages that were deleted or failed review are rejected, together with all direct and indirect
replies to them. Every message is either part of a sample or rejected with a reason.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from instructgen.formats import BadRow, Conversion, Format, RowError, UnusedRow, number, text
from instructgen.formats.fields import word
from instructgen.formats.records import Record
from instructgen.schema.messages import Message
from instructgen.schema.sample import Origin, Sample, Score

_ROLES = {"prompter": "user", "assistant": "assistant"}
# The number of paths and pairs grows quadratically; published trees have a few hundred messages.
_MAX_MESSAGES = 1_000
# These scores rate the answer; for all other scores, the worst in the conversation is used.
_ANSWER_SCORES = ("quality", "helpfulness", "creativity", "humor")


@dataclass(slots=True)
class _Node:
    """A message of a tree, with its replies as children."""

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


class OASST(Format):
    """Rows with one message or one tree each (Apache-2.0, Köpf et al. 2023).

    ``--take=best`` follows the best-ranked replies from the first prompt to the end, ``--take=all``
    takes every path from the first prompt to an answer that no other answer follows, and
    ``--take=first`` takes only the first prompt with its best-ranked answer. With
    ``--as=preferences``, each pair of differently ranked answers to the same user message is a
    row, with the better-ranked answer as the chosen one.
    """

    name = "oasst"
    fields = frozenset({"message_tree_id", "tree_state"})
    example: ClassVar[Mapping[str, Any]] = {
        "message_id": "m1",
        "parent_id": None,
        "text": "Add 2 and 3.",
        "role": "prompter",
        "lang": "en",
        "message_tree_id": "m1",
        "tree_state": "ready_for_export",
    }
    license = "Apache-2.0"
    attribution = ("OpenAssistant Conversations, LAION and contributors 2023",)
    unit = "messages"
    shapes = ("instructions", "preferences")
    takes = ("best", "all", "first")

    def samples(self, record: Mapping[str, Any]) -> list[Sample]:
        """Return the samples of one tree, which the record contains."""
        (tree,) = self.convert_all([Record(1, dict(record))])
        return tree.samples

    def convert_all(self, records: Iterable[Record]) -> Iterator[Conversion]:
        """Yield the samples of each tree; the rows of a tree must be consecutive."""
        done: set[str] = set()
        for key, rows in itertools.groupby(records, key=_tree_id):
            group = list(itertools.islice(rows, _MAX_MESSAGES + 1))
            if "prompt" in group[0].fields:
                # Each record is a nested tree.
                for record in itertools.chain(group, rows):
                    yield self._tree(key, [record], *_flattened(record))
                continue
            if len(group) > _MAX_MESSAGES:
                reason = f"the tree has more than {_MAX_MESSAGES:,} messages."
                for record in itertools.chain(group, rows):
                    yield Conversion(record.line, 0, [], [BadRow(record.line, reason)], 1)
                continue
            if key is None or key in done:
                reason = (
                    "the rows of this tree are not consecutive; sort the file by message_tree_id."
                )
                if key is None:
                    reason = '"message_tree_id" is missing or not text.'
                bad_rows: list[BadRow | UnusedRow] = [BadRow(r.line, reason) for r in group]
                yield Conversion(group[0].line, 0, [], bad_rows, len(group))
                continue
            done.add(key)
            nodes, bad = [], []
            for record in group:
                try:
                    nodes.append(_node(record.line, record.fields))
                except RowError as error:
                    bad.append(BadRow(record.line, str(error)))
            yield self._tree(key, group, nodes, bad)

    def _tree(
        self, key: str | None, records: list[Record], nodes: list[_Node], bad: list[BadRow]
    ) -> Conversion:
        if len(nodes) > _MAX_MESSAGES:
            reason = f"the tree has {len(nodes):,} messages, more than {_MAX_MESSAGES:,}."
            bad += [BadRow(node.line, reason) for node in nodes]
            nodes = []
        roots, rejections = _link(nodes)
        samples: list[Sample] = []
        used: set[str] = set()
        for root in roots:
            for path in self._paths(root, rejections):
                used.update(node.id for node in path)
                if self.shape == "preferences":
                    samples.append(_preference(path[:-1], path[-1], str(key)))
                else:
                    samples.append(_sample(path, str(key)))
        for node in nodes:
            if node.id not in used and node.id not in rejections:
                rejections[node.id] = self._unselected(node)
        others: list[BadRow | UnusedRow] = [*bad]
        others += [
            UnusedRow(node.line, *rejections[node.id], _rejected_sample(node, str(key)))
            for node in nodes
            if node.id in rejections
        ]
        return Conversion(records[0].line, len(used), samples, others, len(records))

    def _paths(self, root: _Node, rejections: Mapping[str, Any]) -> Iterator[list[_Node]]:
        """Yield each path of messages that forms a sample; its last message is an answer.

        For preferences, the last two messages answer the same user message, the better one first.
        """
        if root.id in rejections:
            return
        if self.shape == "preferences":
            for path in _all_paths(root, rejections):
                if path[-1].role == "user":
                    ranked = [c for c in path[-1].children if c.id not in rejections]
                    ranked = sorted(
                        (c for c in ranked if c.rank is not None), key=lambda c: c.rank or 0
                    )
                    for better, worse in itertools.combinations(ranked, 2):
                        if better.rank != worse.rank and better.text != worse.text:
                            yield [*path, better, worse]
            return
        if self.take == "all":
            for path in _all_paths(root, rejections):
                has_later_answer = any(
                    answer.id not in rejections
                    for question in path[-1].children
                    if question.id not in rejections
                    for answer in question.children
                )
                if path[-1].role == "assistant" and not has_later_answer:
                    yield path
            return
        path = [root]
        while True:
            answers = [c for c in path[-1].children if c.id not in rejections]
            if not answers:
                break
            best = min(answers, key=_by_rank)
            path.append(best)
            if self.take == "first":
                break
            replies = [c for c in best.children if c.id not in rejections]
            # Replies with an answer come first, because only they continue the path.
            replies.sort(key=lambda c: (all(a.id in rejections for a in c.children), *_by_rank(c)))
            if not replies or all(a.id in rejections for a in replies[0].children):
                break
            path.append(replies[0])
        if len(path) > 1:
            yield path

    def _unselected(self, node: _Node) -> tuple[str, str]:
        if self.shape == "preferences":
            return "no_ranked_sibling", "the message is not in a pair of ranked answers"
        if node.role == "user" and not node.children:
            return "unanswered", "the message has no reply"
        if self.take == "first":
            return "not_first_turn", "the message is neither the first prompt nor its best answer"
        if self.take == "best":
            return "not_best_path", "the message is not on the best-ranked path"
        return "unanswered", "no usable answer follows the message"


def _by_rank(node: _Node) -> tuple[float, int]:
    return (float("inf") if node.rank is None else node.rank, node.line)


def _tree_id(record: Record) -> str | None:
    is_text = isinstance(record.fields.get("message_tree_id"), str)
    return (word(record.fields, "message_tree_id") or None) if is_text else None


def _flattened(record: Record) -> tuple[list[_Node], list[BadRow]]:
    """Return the messages of a nested tree, each before its replies, and the invalid messages."""
    nodes: list[_Node] = []
    bad: list[BadRow] = []
    pending: list[Any] = [(record.fields.get("prompt"), None)]
    while pending:
        fields, parent = pending.pop()
        if not isinstance(fields, Mapping):
            bad.append(BadRow(record.line, "a message of the tree is not a JSON object."))
            continue
        tree = {k: record.fields.get(k) for k in ("message_tree_id", "tree_state")}
        try:
            node = _node(record.line, {**tree, "parent_id": parent, **fields})
            nodes.append(node)
        except RowError as error:
            bad.append(BadRow(record.line, f"a message of the tree is invalid: {error}"))
        replies = fields.get("replies") or []
        if isinstance(replies, list):
            message_id = fields.get("message_id")
            pending += [(reply, message_id) for reply in reversed(replies)]
        else:
            bad.append(BadRow(record.line, '"replies" is not a list.'))
    return nodes, bad


def _node(line: int, fields: Mapping[str, Any]) -> _Node:
    role = _ROLES.get(text(fields, "role"))
    if role is None:
        raise RowError(f'"role" is {fields["role"][:40]!r}, but must be {" or ".join(_ROLES)}.')
    rank = number(fields, "rank")
    state = text(fields, "tree_state", required=False)
    fault = None
    if state and state != "ready_for_export":
        fault = ("tree_not_ready", f"the state of the tree is {state}, not ready_for_export")
    if fields.get("review_result") is False:
        fault = ("failed_review", "reviewers rejected the message")
    if fields.get("deleted") is True:
        fault = ("deleted", "the message was deleted")
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
    """Return reviewers' ratings (stored as two lists or one dict) and Detoxify's toxicity score."""
    scores: dict[str, Any] = {}
    labels = fields.get("labels")
    if isinstance(labels, Mapping):
        names, values = labels.get("name"), labels.get("value")
        if isinstance(names, list) and isinstance(values, list):
            scores = dict(zip(map(str, names), values, strict=False))
        else:
            scores = {k: v.get("value") for k, v in labels.items() if isinstance(v, Mapping)}
    detoxify = fields.get("detoxify")
    if isinstance(detoxify, Mapping):
        scores["detoxify_toxicity"] = detoxify.get("toxicity")
    return {
        name: score
        for name, value in scores.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
        if (score := number(scores, name)) is not None
    }


def _link(nodes: list[_Node]) -> tuple[list[_Node], dict[str, tuple[str, str]]]:
    """Link replies to parents; return the first prompt in a list, and rejections by message id."""
    rejections: dict[str, tuple[str, str]] = {}
    by_id: dict[str, _Node] = {}
    for node in nodes:
        if node.id in by_id:
            node.id = f"{node.id}#{node.line}"
            rejections[node.id] = ("duplicate_id", "another message of the tree has the same id")
        else:
            by_id[node.id] = node
    roots = []
    for node in nodes:
        if node.id in rejections:
            continue
        parent = by_id.get(node.parent or "")
        if node.parent is not None and parent is None:
            rejections[node.id] = ("orphan", f"the parent {node.parent} is not in the same tree")
        elif parent is None and node.role != "user":
            rejections[node.id] = ("wrong_role", "the first message of a tree must be a prompt")
        elif parent is not None and parent.role == node.role:
            rejections[node.id] = ("wrong_role", "the message has the same role as its parent")
        elif node.fault:
            rejections[node.id] = node.fault
        elif parent is None:
            roots.append(node)
        if parent is not None and node.id not in rejections:
            parent.children.append(node)
    for extra in roots[1:]:
        rejections[extra.id] = ("wrong_tree", "the tree already has a first prompt")
    # Messages below a rejected message, or in a loop, cannot be reached from the first prompt.
    reached = {roots[0].id} if roots else set()
    pending = roots[:1]
    while pending:
        for child in pending.pop().children:
            if child.id not in rejections:
                reached.add(child.id)
                pending.append(child)
    for node in nodes:
        if node.id not in reached and node.id not in rejections:
            rejections[node.id] = ("parent_rejected", "the parent of the message was rejected")
    return roots[:1], rejections


def _all_paths(root: _Node, rejections: Mapping[str, Any]) -> Iterator[list[_Node]]:
    """Yield the path from the root to each message, except to rejected ones and their replies."""
    pending = [[root]]
    while pending:
        path = pending.pop()
        yield path
        pending += [[*path, c] for c in reversed(path[-1].children) if c.id not in rejections]


def _sample(path: list[_Node], tree: str) -> Sample:
    """Return the sample of a path. Scores such as toxicity are the maximum over its messages."""
    *before, question, answer = path
    scores: dict[str, float] = {}
    for node in path:
        for name, value in node.scores.items():
            if name in _ANSWER_SCORES:
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


def _rejected_sample(node: _Node, tree: str) -> Sample:
    prompt, answer = (node.text, "") if node.role == "user" else ("", node.text)
    origin = Origin(record=node.id, group=tree)
    return Sample(prompt, output=answer, language=node.language, origin=origin)
