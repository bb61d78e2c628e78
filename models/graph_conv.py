"""Graph convolution of class prototypes over WordNet: the propagation rule of Kipf & Welling (2017).

    H_0 = T,  H_l = leaky_relu(A_hat H_(l-1) W_l)      (N, D or H); no activation after the last layer
    A_hat = D^-1 (A + I)  or  D^-1/2 (A + I) D^-1/2    A: undirected hypernym edges, D: degrees with the self loop

SRE-CLIP takes the class rows of the last layer as its graph branch.

Suffixes: K lanes, N graph nodes, C classes, D CLIP dimension, H hidden width.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.stacked import LaneModule, lane_normal

Normalisation = Literal["row", "symmetric"]


def normalised_adjacency(edges_E2: Tensor, num_nodes: int, normalisation: Normalisation) -> Tensor:
    """Build the normalised adjacency with self loops of the undirected graph, sparse COO (N, N), float32.

    `edges_E2`: int64 (E, 2) child-parent pairs. `row`: D^-1 (A + I); `symmetric`: D^-1/2 (A + I) D^-1/2.
    """
    loops = torch.arange(num_nodes).repeat(2, 1)
    index = torch.cat([edges_E2.T, edges_E2.T.flip(0), loops], dim=1)
    size = (num_nodes, num_nodes)
    pairs = torch.sparse_coo_tensor(index, torch.ones(index.shape[1]), size, check_invariants=False).coalesce()
    rows, cols = pairs.indices()
    values = torch.ones(rows.shape[0])  # parallel edges count once
    degree_N = torch.zeros(num_nodes).index_add_(0, rows, values)
    if normalisation == "row":
        values = values / degree_N[rows]
    else:
        values = values * (degree_N[rows] * degree_N[cols]).rsqrt()
    return torch.sparse_coo_tensor(pairs.indices(), values, size, is_coalesced=True, check_invariants=False)


def propagate(adjacency_MN: Tensor, hidden_KNH: Tensor) -> Tensor:
    """Compute `adjacency @ hidden` of every lane (K, M, H): the lanes are folded into the columns of one product."""
    k, n, h = hidden_KNH.shape
    columns = hidden_KNH.transpose(0, 1).reshape(n, k * h)
    return torch.sparse.mm(adjacency_MN, columns).view(-1, k, h).transpose(0, 1)


class GraphConv(LaneModule):
    """One to three layers; only class rows come out.

    `A_hat T` does not depend on the weights and is computed once here; the last layer multiplies with the class rows
    of A_hat alone.
    The last layer starts at zero (`zero_init`), so that beside a residual path an untrained network is silent. Without
    that path one layer starts as the identity, texts smoothed over the graph; deeper networks start at random.
    """

    propagated_ND: Tensor
    adjacency_NN: Tensor
    class_rows_CN: Tensor

    def __init__(
        self,
        *,
        text_features_ND: Tensor,
        edges_E2: Tensor,
        class_node_C: Tensor,
        layers: int,
        width: int,
        normalisation: Normalisation,
        zero_init: bool,
        generators: Sequence[torch.Generator],
    ) -> None:
        super().__init__()
        num_nodes, dim = text_features_ND.shape
        adjacency = normalised_adjacency(edges_E2, num_nodes, normalisation)
        self.register_buffer("adjacency_NN", adjacency)
        self.register_buffer("class_rows_CN", adjacency.index_select(0, class_node_C).coalesce())
        propagated = torch.sparse.mm(adjacency, text_features_ND)
        self.register_buffer("propagated_ND", propagated[class_node_C] if layers == 1 else propagated)
        sizes = [dim] + [width] * (layers - 1) + [dim]
        self.weights_KIO = nn.ParameterList()
        for i, (fan_in, fan_out) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
            weight = lane_normal(generators, fan_in, fan_out, std=(2 / (fan_in + fan_out)) ** 0.5)
            if zero_init and i == layers - 1:
                weight.zero_()
            elif layers == 1:
                weight = torch.eye(dim).repeat(len(generators), 1, 1)
            self.weights_KIO.append(nn.Parameter(weight))

    def forward(self) -> Tensor:
        """Compute the class rows of the last layer (K, C, D)."""
        hidden = self.propagated_ND @ self.weights_KIO[0]
        for i, weight in enumerate(list(self.weights_KIO)[1:], start=1):
            hidden = F.leaky_relu(hidden, 0.2)
            last = i == len(self.weights_KIO) - 1
            hidden = propagate(self.class_rows_CN if last else self.adjacency_NN, hidden) @ weight
        return hidden
