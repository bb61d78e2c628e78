import pytest
import torch

from models.graph_conv import GraphConv, normalised_adjacency, propagate

EDGES = torch.tensor([[0, 2], [1, 2]])  # a star: nodes 0 and 1 under node 2


def test_row_normalised_adjacency_of_a_star() -> None:
    expected = [[1 / 2, 0, 1 / 2], [0, 1 / 2, 1 / 2], [1 / 3, 1 / 3, 1 / 3]]
    torch.testing.assert_close(normalised_adjacency(EDGES, 3, "row").to_dense(), torch.tensor(expected))


def test_symmetric_normalised_adjacency_of_a_star() -> None:
    r = 6**-0.5
    expected = [[1 / 2, 0, r], [0, 1 / 2, r], [r, r, 1 / 3]]
    torch.testing.assert_close(normalised_adjacency(EDGES, 3, "symmetric").to_dense(), torch.tensor(expected))


def test_an_edge_given_twice_counts_once() -> None:
    twice = torch.cat([EDGES, EDGES[:1], EDGES[:1].flip(1)])
    torch.testing.assert_close(
        normalised_adjacency(twice, 3, "row").to_dense(), normalised_adjacency(EDGES, 3, "row").to_dense()
    )


def test_propagate_is_the_dense_product_of_every_lane_and_so_is_its_gradient() -> None:
    adjacency = normalised_adjacency(EDGES, 3, "row")
    hidden = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    torch.testing.assert_close(propagate(adjacency, hidden), adjacency.to_dense() @ hidden)
    (sparse,) = torch.autograd.grad(propagate(adjacency, hidden).square().sum(), hidden)
    (dense,) = torch.autograd.grad((adjacency.to_dense() @ hidden).square().sum(), hidden)
    torch.testing.assert_close(sparse, dense)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_class_rows_equal_the_dense_network_over_all_nodes(layers: int) -> None:
    """Sparse, class rows only and `A_hat T` cached must not change a number."""
    g = torch.Generator().manual_seed(0)
    text, classes = torch.randn(3, 4, generator=g), torch.tensor([1, 0])
    gcn = GraphConv(
        text_features_ND=text,
        edges_E2=EDGES,
        class_node_C=classes,
        layers=layers,
        width=6,
        normalisation="row",
        zero_init=False,
        generators=[torch.Generator().manual_seed(s) for s in (1, 2)],
    )
    with torch.no_grad():
        for weight in gcn.weights_KIO:
            weight += torch.randn(weight.shape, generator=g)
    dense = normalised_adjacency(EDGES, 3, "row").to_dense()
    hidden = text.expand(2, -1, -1)
    for i, weight in enumerate(gcn.weights_KIO):
        hidden = dense @ (torch.nn.functional.leaky_relu(hidden, 0.2) if i else hidden) @ weight
    torch.testing.assert_close(gcn(), hidden[:, classes])
