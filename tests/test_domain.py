"""The user's domain reaches the model: answers, brief, languages, products and own prompts."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

import instructgen
from instructgen.commands.options import PreviewOptions
from instructgen.commands.preview import preview
from instructgen.engines import Request
from instructgen.errors import ConfigError
from instructgen.filters.novelty import Novelty
from instructgen.generation.methods.self_instruct import INSTANCES, INSTRUCTIONS, SelfInstruct
from instructgen.generation.prompts import template_for, without_number
from instructgen.generation.seed_pool import Pool, load_seeds, value_of
from instructgen.schema.sample import Label, Sample, Score
from tests.conftest import ROOT
from tests.scripted import Played, play

SUPPORT = ROOT / "examples" / "support.jsonl"
MAPPING = {
    "instruction": "question",
    "output": "answer",
    "language": "language",
    "license": "license",
    "label.product": "product",
}
BRIEF = (
    "Questions to the support of Larkfield. Each answer ends with the words Your Larkfield team."
)


def support() -> list[Sample]:
    seeds, bad = load_seeds([SUPPORT], mapping=MAPPING)
    assert not bad
    assert len(seeds) == 60
    return seeds


class Strong:
    """A model that follows the brief, the language and the subjects of the demonstrations."""

    def __init__(self) -> None:
        self.written = 0

    def __call__(self, request: Request) -> str:
        text = request.prompt[0].content  # type: ignore[union-attr]
        if request.stage == INSTRUCTIONS:
            tasks = []
            for _ in range(7):
                self.written += 1
                words = [f"w{self.written * 37 + k * 11}" for k in range(9)]
                tasks.append(f"3. {' '.join(words)}?" if self.written % 2 else " ".join(words))
            return orjson.dumps({"tasks": tasks}).decode()
        end = " Your Larkfield team." if "Your Larkfield team" in text else ""
        examples = [{"input": "", "output": f"Answer {self.written}.{end}"}]
        flag = (
            {"classification": False} if request.schema["properties"].get("classification") else {}
        )  # type: ignore[index]
        return orjson.dumps({**flag, "examples": examples}).decode()


def expanded(target: int = 60, **options: Any) -> tuple[Played, list[Sample]]:
    seeds = support()
    method = SelfInstruct(style="chat", diversity="within", brief=BRIEF, **options)
    done = play(
        method, seeds, Strong(), target=target, window=8, most=4000, balance=("product",),
        filters=[Novelty(threshold=0.7)],
    )  # fmt: skip
    return done, seeds


class Lopsided(Strong):
    """A model that proposes seven tasks in English, and one in Spanish."""

    short = 0

    def __call__(self, request: Request) -> str:
        reply = super().__call__(request)
        if request.stage != INSTRUCTIONS or "¿" not in request.prompt[0].content:  # type: ignore[union-attr]
            return reply
        self.short += 1
        return orjson.dumps({"tasks": orjson.loads(reply)["tasks"][:1]}).decode()


@pytest.mark.parametrize("window", [1, 8, 64])
def test_rows_keep_the_shares_also_if_the_model_knows_one_language_best(window: int) -> None:
    seeds = support()
    method = SelfInstruct(style="chat", diversity="within")
    model = Lopsided()
    done = play(method, seeds, model, target=60, window=window, most=4000, balance=("product",))
    assert len(done.rows) == 60
    assert model.short > 10
    for column in ("language", "product"):
        for value, share in shares(seeds, column).items():
            assert abs(shares(done.rows, column).get(value, 0.0) - share) < 0.1
    # A draft of its own for each instruction that had to wait.
    assert len(done.requests) < 60 * 4


def shares(rows: list[Sample], column: str) -> dict[str, float]:
    values = [row.language if column == "language" else value_of(row, column) for row in rows]
    return {value: count / len(rows) for value, count in Counter(values).items()}


def test_sixty_support_questions_become_sixty_more_of_the_same_kind() -> None:
    done, seeds = expanded()
    assert len(done.rows) == 60
    for column in ("language", "product"):
        before, after = shares(seeds, column), shares(done.rows, column)
        assert before.keys() == after.keys()
        assert all(abs(before[value] - after[value]) <= 0.10 for value in before)
    # The model obeys the brief, and the list numbers of its instructions are gone.
    assert all(row.output.endswith("Your Larkfield team.") for row in done.rows)
    assert not any(re.match(r"\W*\d+[.)]", row.instruction) for row in done.rows)


def test_the_answers_of_the_user_are_in_every_answering_prompt() -> None:
    done, seeds = expanded(20)
    asked = [r for r in done.requests if r.stage == INSTANCES]
    assert asked
    built_in = "Stand it on your sunniest windowsill"
    for request in asked:
        text = request.prompt[0].content  # type: ignore[union-attr]
        assert BRIEF in text
        shown = [s for s in seeds if s.output in text]
        assert 1 <= len(shown) <= 5
        assert built_in not in text
        # Worked examples are in one language and about one product.
        assert len({(s.language, value_of(s, "product")) for s in shown}) == 1
    for request in (r for r in done.requests if r.stage == INSTRUCTIONS):
        text = request.prompt[0].content  # type: ignore[union-attr]
        assert BRIEF in text
        demonstrated = [s for s in seeds if s.instruction in text]
        assert len({(s.language, value_of(s, "product")) for s in demonstrated}) == 1
        assert "stay with the subjects" in text or demonstrated[0].language == "es"


def test_broad_and_within_are_different_questions() -> None:
    template = template_for("en")
    prompts = [template.instructions_chat(["Do a."], 3, True, within=w) for w in (False, True)]
    assert prompts[0] != prompts[1]


def test_the_recipe_of_the_paper_has_no_answers_of_seeds_in_its_prompts() -> None:
    from instructgen.generation.options import load_config

    config = load_config("self_instruct", {"generate": {"target": 5}, "engine": {"name": "echo"}})
    method = config.method
    pool = Pool(support())
    from tests.test_methods import COMPLETION, started

    ((draft, _),) = started(method, pool)
    task = replace(draft, stage=INSTANCES, sample=replace(draft.sample, instruction="Do it."))
    prompt = method.request(pool, task, COMPLETION).prompt
    assert not any(seed.output in str(prompt) for seed in pool.seeds)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("1. Write a poem", "Write a poem"),
        ("**2.** Say hi", "Say hi"),
        ("3) Go", "Go"),
        ("(4) Bar", "Bar"),
        ("5、写一首诗", "写一首诗"),
        ("۳. بنویس", "بنویس"),
        ("3.5 million people", "3.5 million people"),
        ("1984: a novel", "1984: a novel"),
        ("10 ideas for lunch", "10 ideas for lunch"),
        ("24/7 support", "24/7 support"),
    ],
)
def test_a_list_number_never_stays_in_an_instruction(text: str, plain: str) -> None:
    assert without_number(text) == plain


# -- through the commands -------------------------------------------------------------------


def options(**more: Any) -> dict[str, Any]:
    return {"seeds": SUPPORT, "mapping": MAPPING, "engine": "echo", **more}


def test_a_brief_may_be_a_file_and_prompts_can_be_shown_and_replaced(tmp_path: Path) -> None:
    (tmp_path / "brief.md").write_text(f"{BRIEF}\n")
    (tmp_path / "own.toml").write_text('[completion]\ninstructions = "Customers ask:"\n')
    shown = preview(
        PreviewOptions(
            **options(
                target=3, brief=str(tmp_path / "brief.md"), prompts=tmp_path / "own.toml",
                show_prompts=True,
            )
        )
    ).prompts  # fmt: skip
    assert [p.stage for p in shown] == ["instructions", "classification", "instances"]
    for exchange in shown:
        assert BRIEF in exchange.prompt
    assert "Customers ask:" in shown[0].prompt


def test_an_unknown_text_of_own_prompts_is_an_error(tmp_path: Path) -> None:
    for text in ('[completion]\nnothing = "x"\n', '[nothing]\na = "x"\n', "a = 1\n"):
        (tmp_path / "own.toml").write_text(text)
        with pytest.raises(ConfigError):
            instructgen.generate(
                **options(target=1, out=tmp_path / "o", prompts=tmp_path / "own.toml")
            )
    assert not (tmp_path / "o").exists()


def test_a_group_without_rows_is_named_in_a_warning(tmp_path: Path) -> None:
    result = instructgen.generate(**options(target=2, out=tmp_path / "o", balance=["product"]))
    groups = {share.group for share in result.facts.shares}
    assert len(groups) == 6
    without = [share for share in result.facts.shares if not share.rows]
    assert without
    assert len(result.warnings) == 1
    assert all(part in result.warnings[0] for share in without for part in share.group)
    assert sum(share.rows for share in result.facts.shares) == 2


def test_a_column_that_no_seed_has_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="produkt"):
        instructgen.generate(**options(target=2, out=tmp_path / "o", balance=["produkt"]))


# -- coverage -------------------------------------------------------------------------------


def test_demonstrations_come_from_the_topic_with_the_fewest_instructions() -> None:
    import random

    seeds = [
        replace(
            Sample(f"Seed {i} of topic {t}", output="x", language="en"),
            scores=(Score("cluster", float(t)),),
        )
        for t, count in enumerate((20, 6, 10))
        for i in range(count)
    ]
    pool = Pool(seeds, coverage=True)
    rng = random.Random(0)
    (group,) = pool.shares.seeds
    counts: Counter[int] = Counter()
    for _ in range(60):
        parents = pool.draw(rng, group, 4, 2)
        topics = {seeds[p].scores[0].value for p in parents}
        assert len(topics) == 1
        counts[int(topics.pop() or 0)] += 1
        pool.start(seeds[parents[0]], parents)
    # 32 drafts make up for the differences of the topics, and the rest is spread evenly.
    assert counts == {0: 12, 1: 26, 2: 22}


def test_a_topic_with_few_members_is_filled_up_from_others() -> None:
    import random

    seeds = [
        replace(Sample(f"Seed {i}", output="x", language="en"),
                scores=(Score("cluster", float(i > 1)),))
        for i in range(10)
    ]  # fmt: skip
    parents = Pool(seeds, coverage=True).draw(random.Random(0), *[("en", ())], 6, 2)  # type: ignore[arg-type]
    assert {0, 1} <= set(parents)
    assert len(set(parents)) == 8


@pytest.mark.slow
def test_clusters_are_recorded_and_a_run_is_rebuilt_without_embeddings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    settings = {"generate.demonstrations": "coverage"}
    result = instructgen.generate(**options(target=6, out=out, settings=settings))
    clusters = set(orjson.loads((out / "run.json").read_bytes())["clusters"])
    assert len(clusters) == round((60 / 2) ** 0.5)
    for row in instructgen.open(out).rows():
        assert {s["name"] for s in row["scores"]} == {"cluster"}

    def fail(name: str) -> Any:
        raise AssertionError(name)

    monkeypatch.setattr("instructgen.filters.cluster.encoder", fail)
    assert instructgen.rebuild(out).unchanged
    assert instructgen.generate(**options(target=6, out=out, settings=settings)).unchanged
    assert result.rows == 6


def test_coverage_needs_demonstrations(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="coverage"):
        instructgen.generate(
            **options(
                target=2, out=tmp_path / "o", method="evol",
                settings={"generate.demonstrations": "coverage"},
            )
        )  # fmt: skip


def test_a_label_of_the_seeds_is_kept_in_rows_only_if_it_is_balanced() -> None:
    seed = Sample("a b c d", output="x", language="en", labels=(Label("product", "p"),))
    pool = Pool([seed], balance=("product",))
    from instructgen.generation.methods import child_sample

    assert child_sample(pool, (0,), "en").labels == (Label("product", "p"),)
    assert child_sample(Pool([seed]), (0,), "en").labels == ()


def test_a_run_of_several_languages_is_resumed_with_a_higher_target(tmp_path: Path) -> None:
    seeds, out = ROOT / "seeds" / "multilingual.jsonl", tmp_path / "run"
    first = instructgen.generate(seeds, 20, out, engine="echo")
    journal = (out / "journal.jsonl").read_bytes()
    more = instructgen.generate(seeds, 45, out, engine="echo")
    assert (first.rows, more.rows) == (20, 45)
    assert (out / "journal.jsonl").read_bytes().startswith(journal)
    rows = {share.group[0]: share.rows for share in more.facts.shares}
    assert len(rows) == 7
    manifest = (out / "manifest.json").read_bytes()
    instructgen.rebuild(out)
    assert (out / "manifest.json").read_bytes() == manifest
