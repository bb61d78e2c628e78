"""What a method must offer and may offer, and the checks that all configurations share."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from models.baselines import BaselineConfig
from models.stacked import StackedModule, check_fields, lane_field


class Constant(StackedModule):
    """A method whose logits are one row of numbers per lane."""

    def __init__(self, rows: Sequence[Sequence[float]]) -> None:
        super().__init__()
        self.register_lane("rows_KC", torch.tensor(rows))

    def losses(self, images_KBD: Tensor, labels_KB: Tensor, target_KBD: Tensor | None = None) -> dict[str, Tensor]:
        return {"cls": self.rows_KC.sum(1)}

    def total(self, losses: dict[str, Tensor]) -> Tensor:
        return losses["cls"]

    def logits(self, images_BD: Tensor) -> Tensor:
        return self.rows_KC[:, None].expand(-1, len(images_BD), -1)

    rows_KC: Tensor


def test_a_method_must_say_its_losses_their_total_and_its_logits() -> None:
    assert StackedModule.__abstractmethods__ == {"losses", "total", "logits"}
    with pytest.raises(TypeError, match="abstract"):
        StackedModule()  # type: ignore[abstract]


def test_the_defaults_divide_by_logits_and_sweep_nothing() -> None:
    module = Constant([[1.0, 4.0, 2.5], [3.0, 0.0, 1.0]])
    images_BD, seen_KC = torch.zeros(2, 8), torch.tensor([[True, False, True], [True, True, False]])
    lead, seen, unseen = module.divide(images_BD, seen_KC)
    assert lead.tolist() == [[-1.5, -1.5], [2.0, 2.0]]
    assert seen.tolist() == [[2, 2], [0, 0]] and unseen.tolist() == [[1, 1], [2, 2]]
    assert module.sweep(images_BD, torch.zeros(2, dtype=torch.int64)) == []
    assert module.unseen_by_lambda(images_BD) is None


def test_lanes_are_kept_and_joined() -> None:
    module, other = Constant([[1.0], [2.0], [3.0]]), Constant([[4.0]])
    module.keep(torch.tensor([0, 2]))
    module.join(other)
    assert module.rows_KC.flatten().tolist() == [1.0, 3.0, 4.0]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"at_least_one": ["batch_size"]}, "batch_size must be at least 1, got 0"),
        ({"positive": ["lr"]}, "lr must be finite and positive, got 0.0"),
        ({"not_negative": ["weight_decay"]}, "weight_decay must be finite and not negative, got inf"),
    ],
)
def test_a_broken_rule_names_field_rule_and_value(rule: dict[str, list[str]], message: str) -> None:
    config = BaselineConfig()
    for name, value in (("batch_size", 0), ("lr", 0.0), ("weight_decay", float("inf"))):
        object.__setattr__(config, name, value)
    with pytest.raises(ValueError, match=f"^{message}$"):
        check_fields(config, **rule)


def test_a_field_of_all_lanes() -> None:
    assert lane_field([BaselineConfig(lr=0.5), BaselineConfig(lr=2)], "lr").tolist() == [0.5, 2.0]
