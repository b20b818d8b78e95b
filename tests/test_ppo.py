"""The functions of PPO against values calculated by hand, and the start of a real training."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from instructgen.training.ppo import gae, policy_loss, value_loss, whitened  # noqa: E402


def test_gae_has_the_values_calculated_by_hand() -> None:
    rewards = torch.tensor([[0.0, 1.0, 2.0]])
    values = torch.tensor([[0.5, 0.4, 0.3]])
    mask = torch.ones(1, 3)
    advantages, returns = gae(rewards, values, mask, gamma=0.9, lam=0.8)
    # delta_3 = 2 - 0.3; delta_2 = 1 + 0.9 * 0.3 - 0.4; delta_1 = 0.9 * 0.4 - 0.5
    third = 1.7
    second = 0.87 + 0.72 * third
    first = -0.14 + 0.72 * second
    assert advantages[0].tolist() == pytest.approx([first, second, third])
    assert returns[0].tolist() == pytest.approx([first + 0.5, second + 0.4, third + 0.3])


def test_gae_ignores_tokens_after_the_completion() -> None:
    rewards = torch.tensor([[0.0, 1.0, 9.0]])
    values = torch.tensor([[0.2, 0.1, 9.0]])
    mask = torch.tensor([[1.0, 1.0, 0.0]])
    advantages, returns = gae(rewards, values, mask, gamma=1.0, lam=1.0)
    # Without discount: the sum of the rewards that follow, minus the predicted value.
    assert advantages[0].tolist() == pytest.approx([0.8, 0.9, 0.0])
    assert returns[0].tolist() == pytest.approx([1.0, 1.0, 0.0])


def test_the_ratio_is_one_before_the_first_update() -> None:
    log_probabilities = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    mask = torch.ones(1, 2)
    advantages = torch.tensor([[1.0, -0.5]])
    loss, ratio = policy_loss(
        log_probabilities, log_probabilities.detach(), advantages, mask, clip=0.2
    )
    assert ratio.tolist() == [[1.0, 1.0]]
    assert float(loss) == pytest.approx(-0.25)
    loss.backward()
    # At ratio 1 the gradient is the plain policy gradient.
    assert log_probabilities.grad[0].tolist() == pytest.approx([-0.5, 0.25])


def test_the_gradient_is_zero_beyond_the_clipping_range() -> None:
    then = torch.tensor([[-2.0, -2.0]])
    now = torch.tensor([[-1.0, -3.0]], requires_grad=True)
    loss, _ = policy_loss(now, then, torch.tensor([[1.0, -1.0]]), torch.ones(1, 2), clip=0.2)
    loss.backward()
    assert now.grad.abs().sum() == 0
    assert float(loss) == pytest.approx((-1.2 + 0.8) / 2)


def test_the_value_loss_is_clipped() -> None:
    then, returns, mask = torch.tensor([[0.0]]), torch.tensor([[1.0]]), torch.ones(1, 1)
    inside = value_loss(torch.tensor([[0.1]]), then, returns, mask, clip=0.2)
    beyond = value_loss(torch.tensor([[0.9]]), then, returns, mask, clip=0.2)
    assert float(inside) == pytest.approx(0.5 * 0.9**2)
    assert float(beyond) == pytest.approx(0.5 * 0.8**2)


def test_whitening_ignores_masked_values() -> None:
    values = torch.tensor([[1.0, 3.0, 100.0]])
    mask = torch.tensor([[1.0, 1.0, 0.0]])
    assert whitened(values, mask)[0].tolist() == pytest.approx([-1.0, 1.0, 0.0], abs=1e-4)


@pytest.mark.slow
def test_a_training_starts_at_ratio_one_and_zero_kl(tmp_path: Path) -> None:
    import orjson

    from instructgen import train
    from tests.tiny_model import make_tiny_model
    from tests.training_data import dataset, sentences

    model = make_tiny_model(tmp_path / "tiny")
    data = dataset(tmp_path / "rows", sentences(60))
    for peft in ("none", "lora"):
        out = tmp_path / peft
        train(
            "ppo",
            data,
            out,
            model=str(model),
            reward=["verifiers:ifeval"],
            steps=2,
            batch_size=4,
            max_length=128,
            max_new_tokens=8,
            peft=peft,
            evaluate=False,
        )
        first = orjson.loads((out / "log.jsonl").read_bytes().split(b"\n")[0])
        assert first["ratio_first"] == pytest.approx(1.0, abs=1e-5)
        assert first["kl"] == pytest.approx(0.0, abs=1e-5)


@pytest.mark.slow
def test_tokens_of_steps_that_are_not_logged_are_counted(tmp_path: Path) -> None:
    from instructgen import train
    from tests.tiny_model import make_tiny_model
    from tests.training_data import dataset, sentences

    model = make_tiny_model(tmp_path / "tiny")
    data = dataset(tmp_path / "rows", sentences(60))
    seen: dict[int, list[int]] = {1: [], 2: []}
    for every, tokens in seen.items():
        train(
            "ppo",
            data,
            tmp_path / str(every),
            model=str(model),
            reward=["verifiers:ifeval"],
            steps=2,
            batch_size=4,
            max_length=128,
            max_new_tokens=8,
            log_every=every,
            evaluate=False,
            watch=lambda progress, tokens=tokens: tokens.append(progress.figures["tokens"]),
        )
    assert len(seen[1]) == 2
    assert seen[1][-1] > seen[1][0]
    assert seen[2] == [seen[1][-1]]
